from __future__ import annotations

import numpy as np
import pytest
from made_images import assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io import read_photons
from gap_bioimage.io import vendors as czi

pytest.importorskip("czifile")
writing = pytest.importorskip("pylibCZIrw.czi")  # Zeiss's own writer


def write_czi(path, image, scenes=1, tile=None, **options):
    """Write planes, scene by scene 40 pixels apart, each in tiles of ``tile`` pixels where given."""
    full = image
    for dim in "zct":
        full = full if dim in full.dims else full.expand_dims(dim)
    full = full.transpose("t", "c", "z", "y", "x")
    with writing.create_czi(str(path), **options) as file:
        for scene in range(scenes):
            for (t, c, z), _ in np.ndenumerate(full[..., 0, 0]):
                plane = full.values[t, c, z] + scene
                step = tile or max(plane.shape)
                for y in range(0, plane.shape[0], step):
                    for x in range(0, plane.shape[1], step):
                        part = np.ascontiguousarray(plane[y : y + step, x : x + step])[..., None]
                        place = (x + 40 * scene, y)
                        file.write(part, location=place, plane={"T": t, "C": c, "Z": z}, scene=scene)
        names = dict(enumerate(["actin", "DNA"])) if "c" in image.dims else {}
        scales = {f"scale_{axis}": um * 1e-6 for axis, um in {"z": 0.3, "y": 0.065, "x": 0.108}.items()}
        file.write_metadata(document_name="made", channel_names=names, **scales)


def without_time(image):
    """Return what the writer keeps: it has no frame intervals."""
    return image.drop_vars("t") if "t" in image.coords else image


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("dims", ["yx", "zyx", "tyx", "czyx", "tczyx"])
def test_every_axis_and_calibration_is_read(tmp_path, dims, tile):
    image = without_time(counts(dims))
    write_czi(tmp_path / "a.czi", image, tile=tile)
    assert_same(read_photons(tmp_path / "a.czi"), image)
    if "t" in dims:
        assert_same(read_photons(tmp_path / "a.czi", time="::2"), image[::2])
        assert_same(read_photons(tmp_path / "a.czi", time=1), image[1])
    if "c" in dims:
        assert_same(read_photons(tmp_path / "a.czi", channel="DNA"), image.isel(c=1))


def test_scenes_are_series(tmp_path):
    write_czi(tmp_path / "a.czi", counts("zyx"), scenes=3)
    for scene in range(3):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.czi", series=scene), counts("zyx") + scene)
    with pytest.raises(UnreadableImageError, match=r"3 images: 0 .*series=0") as error:
        read_photons(tmp_path / "a.czi")
    one_sentence(error)
    with pytest.raises(AxesError, match="series 3"):
        read_photons(tmp_path / "a.czi", series=3)
    with pytest.raises(AxesError, match="level 1"):
        read_photons(tmp_path / "a.czi", series=0, level=1)


def test_photographs_are_refused(tmp_path):
    with writing.create_czi(str(tmp_path / "a.czi")) as file:
        file.write(np.random.default_rng(0).poisson(5, (17, 12, 3)).astype(np.uint8))
    with pytest.raises(NotPhotonCountsError, match="RGB photograph"):
        read_photons(tmp_path / "a.czi")


@pytest.mark.parametrize("compression", ["zstd0:ExplicitLevel=1", "zstd1:ExplicitLevel=1;PreProcess=HiLoByteUnpack"])
def test_compressed_files_are_read_or_refused_in_words(tmp_path, compression):
    import czifile

    write_czi(tmp_path / "a.czi", counts("yx"), compression_options=compression)
    if hasattr(czifile.CziFile, "scenes"):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.czi"), counts("yx"))
        return
    with pytest.raises(UnreadableImageError, match=r"use Python 3\.12 or later") as error:
        read_photons(tmp_path / "a.czi")
    one_sentence(error)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.001])
def test_truncated_files_are_noticed(tmp_path, share):
    write_czi(tmp_path / "a.czi", counts("tczyx"))
    whole = (tmp_path / "a.czi").read_bytes()
    (tmp_path / "a.czi").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableImageError, match=r"a\.czi") as error:
        read_photons(tmp_path / "a.czi", check=False)
    one_sentence(error)


def test_frame_intervals_and_scenes_names_come_from_the_metadata():
    xml = "<a><Image><Dimensions><T><Positions><Interval><Increment>2.5</Increment></Interval></Positions></T>"
    meta = czi._of_czi(czi.ElementTree.fromstring(f"{xml}</Dimensions></Image></a>"), "P1")
    assert (meta.interval_s, meta.name) == (2.5, "P1")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.czi").write_bytes(bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "czifile", None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'gap-bioimage\[formats\]'") as error:
        read_photons(tmp_path / "a.czi")
    one_sentence(error)
