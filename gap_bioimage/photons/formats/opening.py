"""Which format a file has, and the function that opens it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.photons.formats import others
from gap_bioimage.photons.formats.ome_zarr import is_zarr, open_zarr
from gap_bioimage.photons.formats.stored import Stored, choose, choose_level, damaged
from gap_bioimage.photons.formats.tiff import open_tiff

if TYPE_CHECKING:
    from pathlib import Path

# module and function, imported when such a file is read
_OPENERS = {
    ".h5": ("hdf5", "open_hdf5"),
    ".hdf5": ("hdf5", "open_hdf5"),
    ".czi": ("czi", "open_czi"),
    ".lif": ("lif", "open_lif"),
    ".lof": ("lif", "open_lif"),
    ".xlif": ("lif", "open_lif"),
    ".nd2": ("nd2", "open_nd2"),
    ".ptu": ("streams", "open_ptu"),
    ".sdt": ("streams", "open_sdt"),
}
READABLE = (".tif", ".tiff", ".lsm", ".npy", ".zarr", *_OPENERS)


def open_image(path: Path, axes: str | None, series: int | str | None, level: int | None) -> Stored:
    """Open one image of a file, by its suffix; other files are tried as TIFF, and with bioio where it is installed.

    Parameters
    ----------
    path
        A file that exists and is not empty, or the folder of a Zarr store.
    axes
        Names of its axes, where the caller knows better.
    series, level
        Which image, and which level of its pyramid.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, holds several images of which none was chosen, or its library is not installed.
    AxesError
        If there is no such series or level.
    """
    suffix = path.suffix.lower()
    if is_zarr(path):
        return open_zarr(path, series, level)
    if suffix == ".npy":
        return _open_npy(path, series, level)
    if suffix in _OPENERS:
        module, function = _OPENERS[suffix]
        opened: Stored = getattr(import_module(f"{__package__}.{module}"), function)(path, series, level)
        return opened
    reader = others.reader_of(path)
    return open_tiff(path, axes, series, level) if reader is None else others.open_with(reader, path, series, level)


def _open_npy(path: Path, series: int | str | None, level: int | None) -> Stored:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise damaged(path, error) from None
    if not isinstance(values, np.ndarray):
        raise UnreadableImageError(f"{path} holds several arrays, expected one; save it with numpy.save")
    choose(path, [("", values.shape)], series)
    choose_level(path, [values.shape], level)
    axes = "YX" if values.ndim == 2 else "Q" * values.ndim
    return Stored(axes, values.shape, values.dtype, values.__getitem__, mapped=True)
