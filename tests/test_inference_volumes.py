import errno
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xarray as xr
from command_line import one_sentence
from fixtures_model import Trained, random_model

from gap_bioimage.camera.camera import Detector, PixelMaps
from gap_bioimage.config import Camera, SamplingConfig
from gap_bioimage.errors import AxesError, ConfigError, GapWarning, HotPixelWarning, NotPhotonCountsError, OutputError
from gap_bioimage.inference import reach, tiling
from gap_bioimage.inference.denoising import denoise
from gap_bioimage.inference.sampling import sample
from gap_bioimage.inference.volumes import denoise_volume
from gap_bioimage.io import pixel_size_um, read_photons, sum_frames, write_image
from gap_bioimage.io.blocks import volume_status
from gap_bioimage.model import Model, load_model
from gap_bioimage.simulation import simulate

zarr = pytest.importorskip("zarr")

PLAIN = random_model(dim=2, start_filts=2)


def counts(dims: str = "zyx", size: int = 40) -> xr.DataArray:
    """Counts with structure, pixel sizes and names."""
    lengths = {"t": 2, "c": 2, "z": 10, "y": size, "x": size - 8}
    shape = [lengths[axis] for axis in dims]
    light = 3.0 * (1 + np.sin(np.arange(shape[-1]) / 5)) * (1 + np.cos(np.arange(shape[-2]) / 7))[:, None]
    values = np.random.default_rng(0).poisson(np.broadcast_to(light, shape)).astype(np.uint16)
    coords = {a: np.arange(lengths[a]) * s for a, s in {"z": 0.4, "y": 0.1, "x": 0.1}.items() if a in dims}
    return xr.DataArray(values, dims=list(dims), coords=coords | ({"c": ["actin", "DNA"]} if "c" in dims else {}))


def anchored(dim: int = 3, channels: int = 1) -> Model:
    return random_model(dim=dim, anchor=True, channels=channels, start_filts=2)


def in_blocks(folder: Path, model: Model, image: xr.DataArray, name: str = "out.zarr", **how: Any) -> xr.DataArray:
    """Denoise an image as a volume, with the halo that changes nothing; others are measured, which takes a while."""
    write_image(folder / "in.zarr", image)
    given = {"halo_px": reach.exact_halo_px(model.network), **how}
    assert denoise_volume(model, folder / "in.zarr", folder / name, **given).complete
    return read_photons(folder / name, check=False)


def stored(path: Path) -> dict[str, bytes]:
    """All files of a store."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def close(result: xr.DataArray, expected: xr.DataArray) -> None:
    assert result.dims == expected.dims
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert pixel_size_um(result) == pytest.approx(pixel_size_um(expected))


@pytest.mark.parametrize(
    ("dims", "dim", "channels", "options"),
    [
        ("zyx", 3, 1, {}),
        ("tcyx", 2, 2, {}),
        ("czyx", 3, 1, {"separate_channels": True}),
        ("tyx", 3, 1, {"time_as_z": True}),
        ("tyx", 2, 1, {}),
        ("zyx", 2, 1, {"planes": True}),
    ],
)
def test_blocks_are_what_the_whole_image_is(
    tmp_path: Path, dims: str, dim: int, channels: int, options: dict[str, bool]
) -> None:
    image, model = counts(dims), anchored(dim, channels)
    close(in_blocks(tmp_path, model, image, block_px=(8, 24, 24)[-dim:], **options), denoise(model, image, **options))
    assert volume_status(tmp_path / "out.zarr").total > 1


def test_plain_networks_conserve_photons_in_a_box(tmp_path: Path) -> None:
    image, model = counts(size=64), random_model(dim=3, start_filts=2)
    given = {"blocks": (8, 24, 24), "other": (6, 48, 32), "whole": (10, 64, 56)}
    blocks, other, whole = (in_blocks(tmp_path, model, image, f"{n}.zarr", block_px=b) for n, b in given.items())
    close(whole, denoise(model, image))
    close(blocks, other)  # no seams
    assert float(blocks.sum()) == pytest.approx(float(image.sum()), rel=0.03)


@pytest.mark.parametrize("kind", ["in.h5", "planes"])
def test_other_kinds_of_files_give_the_same_values(tmp_path: Path, kind: str) -> None:
    image = counts()
    if kind == "planes":
        (tmp_path / kind).mkdir()
        image = image.drop_vars(list("zyx"))
        for number, plane in enumerate(image.values):
            tifffile.imwrite(tmp_path / kind / f"plane{number}.tif", plane)
    else:
        write_image(tmp_path / kind, image)
    denoise_volume(PLAIN, tmp_path / kind, tmp_path / "out.zarr", block_px=(40, 32), planes=True)
    close(read_photons(tmp_path / "out.zarr", check=False), denoise(PLAIN, image, planes=True))


def filled(tmp_path: Path, name: str, **options: Any) -> Path:
    """Denoise one volume of 8 blocks, some of them narrow, and of 2 in a smaller level."""
    if not (tmp_path / "in.tif").exists():
        write_image(tmp_path / "in.tif", counts(size=300).isel(z=slice(3), x=slice(200)))
    given: dict[str, Any] = {"planes": True, "block_px": (96, 128), "halo_px": (16, 16), **options}
    denoise_volume(PLAIN, tmp_path / "in.tif", tmp_path / name, **given)
    return tmp_path / name


def test_the_order_and_the_number_of_workers_change_no_byte(tmp_path: Path) -> None:
    whole, parts, sizes = filled(tmp_path, "whole.zarr"), tmp_path / "parts" / "whole.zarr", []
    parts.parent.mkdir()
    for number in (3, 1, 2):
        assert not parts.exists() or not volume_status(parts).complete
        filled(tmp_path, "parts/whole.zarr", part=(number, 3), on_block=lambda done, total: sizes.append(total))
    assert volume_status(parts).complete
    assert stored(parts) == stored(whole)
    assert len(stored(whole)) > 10
    assert max(sizes) < 1.1 * min(sizes)  # of parts of 2 and of 3 blocks


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    out, told = tmp_path / "out.zarr", []
    for _ in range(2):
        filled(tmp_path, "out.zarr", on_block=lambda done, total: told.append((volume_status(out), done / total)))
    assert len(told) == 8  # none of them in the second call
    assert all(status.done >= number for number, (status, _) in enumerate(told, 1))  # the writer may be ahead
    assert told[-2][0].done_smaller >= 1  # as soon as what it averages is done
    assert told[-1] == (volume_status(out), 1)
    before = stored(out)
    for other, told in (
        ({"halo_px": (8, 8)}, r"halo=\[16, 16\], not \[8, 8\]"),
        ({"block_px": (48, 128)}, r"block\.y="),
    ):
        with pytest.raises(OutputError, match=told):
            filled(tmp_path, "out.zarr", **other)
    with pytest.raises(OutputError, match=r"model\.network[,)]"):
        denoise_volume(anchored(2), tmp_path / "in.tif", out, planes=True, halo_px=(16, 16))
    assert stored(out) == before
    filled(tmp_path, "out.zarr", block_px=None)  # the blocks are kept where no others are asked for
    assert stored(out) == before
    write_image(tmp_path / "other.zarr", counts())
    with pytest.raises(OutputError, match="already exists"):
        filled(tmp_path, "other.zarr")


def test_a_halo_is_measured_once_and_kept_and_names_do_not_depend_on_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, model = simulate(2, (288, 96), 1.0, seed=1)[0], load_model("nuclei")
    how: dict[str, Any] = {"block_px": (96, 96)}
    in_blocks(tmp_path, model, image, "whole.zarr", halo_px=None, **how)
    assert denoise_volume(model, tmp_path / "in.zarr", tmp_path / "two.zarr", part=(1, 2), **how).done == 2
    monkeypatch.setattr(tiling, "measured_halo", None)
    result = in_blocks(tmp_path, model, image, "two.zarr", halo_px=None, part=(2, 2), **how)
    assert stored(tmp_path / "two.zarr") == stored(tmp_path / "whole.zarr")
    expected = denoise(model, image)
    assert 0 < float(np.square(result - expected).mean() / np.square(expected).mean()) < 1e-6
    close(in_blocks(tmp_path, model, image, "exact.zarr", **how), expected)


@pytest.mark.parametrize("damage", ["cut", "changed", "lost"])
def test_damaged_blocks_and_averages_of_them_are_done_again(tmp_path: Path, damage: str) -> None:
    out = filled(tmp_path, "out.zarr")
    before, records = stored(out), [out / name for name in ("0/.done/0.0.0", "0/.done/0.1.0", "1/.done/0.0.0")]
    shard, times, told = out / "0/c/0/0/0", [record.stat().st_mtime_ns for record in records], []
    content = shard.read_bytes()
    shard.write_bytes(content[:-9] if damage == "cut" else content[:9] + b"?" + content[10:])
    if damage == "lost":
        shard.unlink()
    filled(tmp_path, "out.zarr")
    assert stored(out) != before
    filled(tmp_path, "out.zarr", verify=True, on_block=lambda done, total: told.append(done))
    assert stored(out) == before
    assert len(told) == 1
    again = [record.stat().st_mtime_ns > time for record, time in zip(records, times, strict=True)]
    assert again == [True, False, True]


def test_a_full_disk_is_a_sentence_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls, replace = filled(tmp_path, "whole.zarr"), 0, os.replace

    def full(source: Any, target: Any) -> None:
        nonlocal calls
        calls += "0/c/" in str(target)
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    (tmp_path / "full").mkdir()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="no space left on device"):
        filled(tmp_path, "full/whole.zarr")
    monkeypatch.undo()
    assert 0 < volume_status(tmp_path / "full" / "whole.zarr").done < 6
    assert stored(filled(tmp_path, "full/whole.zarr")) == stored(whole)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_sizes_names_and_ranges_are_those_of_ome_zarr(tmp_path: Path, version: str) -> None:
    yaozarrs = pytest.importorskip("yaozarrs")
    image, model = counts("czyx", size=300).isel(z=slice(3), x=slice(40)), anchored(2)
    how: dict[str, Any] = {"planes": True, "separate_channels": True}
    result = in_blocks(tmp_path, model, image, "out.ome.zarr", version=version, block_px=(128, 64), **how)
    yaozarrs.validate_zarr_store(str(tmp_path / "out.ome.zarr"))
    close(result, denoise(model, image, **how))
    assert result.c.values.tolist() == ["actin", "DNA"]
    group = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")
    words = group.attrs["ome"] if version == "0.5" else group.attrs.asdict()
    assert [window["window"]["end"] for window in words["omero"]["channels"]] == pytest.approx(
        [float(group["0"][channel].max()) for channel in range(2)]
    )
    assert [dataset["path"] for dataset in words["multiscales"][0]["datasets"]] == ["0", "1"]
    assert group["0"].shards == ((2, 3, 128, 40) if version == "0.5" else None)
    full = group["0"][:].reshape(2, 3, 150, 2, 20, 2)
    np.testing.assert_allclose(group["1"][:], full.mean((3, 5)), rtol=1e-5)


def test_cameras_with_maps_are_cropped_to_blocks(tmp_path: Path) -> None:
    light, rng = counts(), np.random.default_rng(0)
    maps = PixelMaps(
        *(np.asarray(m, np.float32) for m in (rng.integers(95, 105, (40, 32)), rng.uniform(1, 2, (40, 32))))
    )
    detector = Detector(Camera(gain=2.0, offset=100, read_noise=1.5), maps)
    adu = np.rint(maps.offset + 2 * (light + rng.normal(0, 1, light.shape) * maps.read_noise)).astype(np.uint16)
    image, model = light.copy(data=adu.values), anchored(2)
    how: dict[str, Any] = {"planes": True, "camera": detector}
    close(in_blocks(tmp_path, model, image, block_px=(16, 16), **how), denoise(model, image, **how))
    with pytest.raises(OutputError, match="camera"):
        how["camera"] = Detector(detector.camera, PixelMaps(maps.offset + 1, maps.read_noise))
        in_blocks(tmp_path, model, image, block_px=(16, 16), **how)


def test_one_bit_frames_are_summed_block_by_block(tmp_path: Path) -> None:
    frames = (np.random.default_rng(0).random((26, 40, 32)) < 0.2).astype(np.uint8)
    movie = xr.DataArray(frames, dims=["t", "y", "x"], coords={"t": ("t", np.arange(26) * 0.5)})
    model = replace(anchored(2), n_frames=8)
    with pytest.warns(GapWarning, match="last 2 frames"):
        result = in_blocks(tmp_path, model, movie, sum_frames=8, block_px=(24, 24))
    close(result, denoise(model, sum_frames(movie[:24], 8)))
    np.testing.assert_allclose(result.t, [0, 4, 8])


def test_dark_blocks_of_summed_frames_are_not_taken_for_single_ones(tmp_path: Path) -> None:
    image, model = np.minimum(counts("yx"), 6), replace(anchored(2), n_frames=8)
    image[20:] = np.minimum(image[20:], 1)
    how: dict[str, Any] = {"block_px": (8, 8), "halo_px": (0, 0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", GapWarning)
        in_blocks(tmp_path, model, image, **how)
    with pytest.warns(GapWarning, match="0 and 1 only"):
        in_blocks(tmp_path, model, np.minimum(image, 1), "single.zarr", **how)


def test_hot_pixels_are_told_once_and_dark_blocks_are_dark(tmp_path: Path) -> None:
    image = counts("tyx")
    image[0], image[1, 33, 30] = 0, 5000
    with pytest.warns(HotPixelWarning, match=r"1 hot pixel.* 5000 at \(y 33, x 30\).* other blocks"):
        result = in_blocks(tmp_path, PLAIN, image, block_px=(8, 8))
    with pytest.raises(NotPhotonCountsError):
        in_blocks(tmp_path, PLAIN, 0 * counts("yx"), "black.zarr")
    assert not result[0].any()
    assert result[1].min() > 0
    assert result.max() < 100


def test_a_volume_that_is_brighter_than_the_training_of_a_plain_network_is_told(tmp_path: Path) -> None:
    with pytest.warns(GapWarning, match=r"in\.zarr is .* brighter"):
        in_blocks(tmp_path, random_model(trained_range_db=(-40.0, -10.0)), counts("yx"), block_px=(24, 24))


def test_samples_give_mean_and_standard_deviation(tmp_path: Path) -> None:
    image, model = counts("yx"), anchored(2)
    write_image(tmp_path / "in.tif", image)
    how: dict[str, Any] = {"n_samples": 3, "seed": 1, "settings": SamplingConfig(steps=2)}
    denoise_volume(model, tmp_path / "in.tif", tmp_path / "out.ome.zarr", **how)
    mean, std = (read_photons(tmp_path / f"out_{name}.ome.zarr", check=False) for name in ("mean", "std"))
    drawn = sample(model, image, **how)
    close(mean, drawn.mean("sample"))
    np.testing.assert_allclose(std, drawn.std("sample", ddof=1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"part": (3, 2)}, ConfigError),
        ({"part": (0, 2)}, ConfigError),
        ({"version": "0.3"}, ConfigError),
        ({"image": counts()}, ConfigError),
        ({"n_samples": 0}, ConfigError),
        ({"n_samples": 1, "batch": 0}, ConfigError),
        ({"block_px": (8, 8, 8)}, ConfigError),
        ({"tile_px": (16, 16), "halo_px": (16, 16)}, ConfigError),
        ({"planes": False}, AxesError),
        ({"sum_frames": 4}, ConfigError),
        ({"out": "out.tif"}, OutputError),
        ({"scale": 0.37}, NotPhotonCountsError),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    given = {"planes": True, **options}
    out = tmp_path / given.pop("out", "out.zarr")
    write_image(tmp_path / "in.tif", counts() * given.pop("scale", 1))
    with pytest.raises(error):
        denoise_volume(PLAIN, given.pop("image", tmp_path / "in.tif"), out, **given)
    assert [file.name for file in tmp_path.iterdir()] == ["in.tif"] or "batch" in options


def test_a_scheduler_that_does_not_answer_is_told(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with (
        pytest.importorskip("dask").config.set({"distributed.comm.timeouts.connect": "100ms"}),
        pytest.raises(ConfigError),
    ):
        filled(tmp_path, "out.zarr", scheduler="tcp://127.0.0.1:9")


def test_the_verbs_fill_zarrs_and_tell_how_far_they_are(tmp_path: Path, run: Any, trained_2d: Trained) -> None:
    model, files = load_model(trained_2d.run), (trained_2d.run, tmp_path / "in.tif")
    write_image(tmp_path / "in.tif", trained_2d.counts)
    halo = ",".join(map(str, reach.exact_halo_px(model.network)))
    given = ("denoise", *files, tmp_path / "out.ome.zarr", "--block", "64,64", "--halo", halo)
    assert run(*given, "--part", "1/2").code == 0
    assert run(*given, "--status").out.startswith("5 of 9 blocks are done")
    assert run(*given).code == 0
    assert volume_status(tmp_path / "out.ome.zarr").complete
    result = read_photons(tmp_path / "out.ome.zarr", check=False)
    close(result, denoise(model, trained_2d.counts))
    assert run("denoise", *files, tmp_path / "bf16.zarr", "--precision", "bf16").code == 0
    rough = read_photons(tmp_path / "bf16.zarr", check=False)
    close(rough, denoise(model, trained_2d.counts, precision="bf16"))
    assert float(abs(rough - result).max()) > 1e-4
    drawn = ("sample", *files, tmp_path / "s.zarr", "--samples", 2, "--seed", 1, "--steps", 1, "--part", "1/1")
    assert run(*drawn).code == 0
    assert volume_status(tmp_path / "s_std.zarr").complete
    for wrong in (("--part", "2"), ("--ome-zarr", "0.3"), ("--precision", "half")):
        one_sentence(run(*given, *wrong))
    one_sentence(run("denoise", *files, tmp_path / "bf16.zarr", "--precision", "float32"))
    one_sentence(run("denoise", *files, tmp_path / "out.tif", "--part", "1/2"))
    one_sentence(run("denoise", *files, tmp_path / "none.zarr", "--status"))
