"""Images written as ImageJ's TIFF where that can hold them, else as OME-TIFF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from gap_bioimage.errors import OutputError
from gap_bioimage.files import replacing
from gap_bioimage.photons.formats.tiff_metadata import to_imagej, to_ome

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from gap_bioimage.photons.formats.stored import Metadata

_IMAGEJ_LIMIT_BYTES = 4 * 10**9  # classic TIFF has 32-bit offsets; the rest is for its tags


def write_tiff(path: Path, values: npt.NDArray[Any], axes: str, meta: Metadata, compression: str | None) -> None:
    """Write a TIFF, by rename.

    Parameters
    ----------
    path
        ``.ome.tif`` is OME-TIFF; other names are, where ImageJ lacks the type, or values take 4 GB and more.
    values, axes
        Array and one lower-case letter per axis, out of ``t z c y x`` in this order.
    meta
        Calibration.
    compression
        One that tifffile knows, or None.

    Raises
    ------
    OutputError
        If the compression is unknown, or integers do not fit into 32 bits.
    """
    values, axes = _writable(path, values), axes.upper()
    imagej = values.dtype in (np.uint8, np.uint16, np.float32) and values.nbytes < _IMAGEJ_LIMIT_BYTES
    options: dict[str, Any] = {"photometric": "minisblack", "compression": compression}
    if imagej and not path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        words, resolution = to_imagej(meta, axes, values.shape)
        options |= {"imagej": True, "metadata": words, "resolution": resolution}
    else:
        options |= {"ome": True, "bigtiff": True, "metadata": to_ome(meta, axes)}
    with replacing(path) as temporary:
        try:
            tifffile.imwrite(temporary, values, **options)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"cannot write {path} ({reason}); try it without compression, or as .npy") from error


def _writable(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values in a type that TIFF readers know."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return values
    narrow = np.uint32 if values.min(initial=0) >= 0 else np.int32
    if values.max(initial=0) <= np.iinfo(narrow).max and values.min(initial=0) >= np.iinfo(narrow).min:
        return values.astype(narrow)
    raise OutputError(f"cannot write {path}: its 64-bit integers do not fit into 32 bits; write .npy instead")
