"""Files that bioio reads: DeltaVision, as its library writes it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons
from gap_bioimage.io import vendors as others

if TYPE_CHECKING:
    from pathlib import Path

mrc = pytest.importorskip("mrc")
pytest.importorskip("bioio")


def written(path: Path) -> np.ndarray[Any, np.dtype[np.uint16]]:
    counts = np.random.default_rng(0).poisson(3, (2, 3, 16, 20)).astype(np.uint16)
    mrc.imsave(path, counts, metadata={"dx": 0.1, "dy": 0.1, "dz": 0.3})
    return counts


def test_deltavision_files_are_read(tmp_path: Path) -> None:
    counts = written(tmp_path / "cells.dv")
    image = read_photons(tmp_path / "cells.dv")
    assert image.dims == ("c", "z", "y", "x")
    np.testing.assert_array_equal(image.values, counts)
    assert pixel_size_um(image) == pytest.approx({"z": 0.3, "y": 0.1, "x": 0.1})
    one = read_photons(tmp_path / "cells.dv", channel=1, series=0, level=0)
    np.testing.assert_array_equal(one.values, counts[1])


@pytest.mark.parametrize(
    ("scene", "channels", "kept"),
    [
        ("Image:0", ["Channel:0:0", "Channel:0:1"], ("", ())),
        ("well B2", ["DAPI", "GFP"], ("well B2", ("DAPI", "GFP"))),
        ("Image:0", "DAPI", ("", ("DAPI",))),
    ],
)
def test_numbers_of_bioio_are_no_names(scene: str, channels: Any, kept: Any) -> None:
    sizes = SimpleNamespace(Z=None, Y=0.1, X=0.1)
    image = SimpleNamespace(coords={"C": SimpleNamespace(values=np.array(channels))})
    meta = others._of_bioio(
        SimpleNamespace(physical_pixel_sizes=sizes, time_interval=None),
        image,
        "" if others._NUMBERED.fullmatch(scene) else scene,
    )
    assert (meta.name, meta.channels) == kept
    assert meta.pixel_size_um == {"y": 0.1, "x": 0.1}


def test_other_series_and_levels_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "cells.dv")
    with pytest.raises(ValueError, match="series 3 was asked for"):
        read_photons(tmp_path / "cells.dv", series=3)
    with pytest.raises(ValueError, match="level 1 was asked for"):
        read_photons(tmp_path / "cells.dv", level=1)


def test_files_that_nobody_reads_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_text("no image")
    (tmp_path / "cut.dv").write_bytes(b"no image at all" * 10)
    for name in ("notes.xyz", "cut.dv"):
        with pytest.raises(UnreadableImageError, match="cannot be read as an image"):
            read_photons(tmp_path / name)


def test_without_bioio_other_files_are_tried_as_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "cells.dv")
    monkeypatch.setattr(others, "find_spec", lambda name: None)
    with pytest.raises(UnreadableImageError, match="cannot be read as an image"):
        read_photons(tmp_path / "cells.dv")


def test_tiffs_do_not_wait_for_bioio(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "counts.dat", np.random.default_rng(0).poisson(3, (32, 32)).astype(np.uint16))
    before = set(sys.modules)
    assert read_photons(tmp_path / "counts.dat").shape == (32, 32)
    assert not {name for name in set(sys.modules) - before if name.startswith("bioio.")}
