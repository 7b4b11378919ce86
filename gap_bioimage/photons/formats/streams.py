"""Photon streams of time-correlated counting, summed over their arrival times in the laser's period.

PicoQuant PTU through ptufile, Becker & Hickl SDT through sdtfile (both BSD-3-Clause).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.photons.formats.stored import Metadata, Stored, choose, choose_level, damaged, missing, naming_damage
from gap_bioimage.photons.formats.units import to_seconds, to_um

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_SMALL = np.iinfo(np.uint16).max


def open_ptu(path: Path, series: int | str | None, level: int | None) -> Stored:
    """Open the image in a PTU file: photons per frame, pixel and detector channel.

    Parameters
    ----------
    path
        The file.
    series, level
        None or 0: there is one image.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, no raster image in T3 mode, or ptufile is not installed.
    AxesError
        If another series or level was asked for.
    """
    try:
        from ptufile import PtuFile
    except ImportError:
        raise missing(path, "formats") from None
    with naming_damage(path):
        with PtuFile(str(path)) as file:
            axes = "".join(file.dims)
            if not {"Y", "X"} < set(axes) or axes[-1] != "H":
                raise UnreadableImageError(
                    f"{path} holds a point or line measurement, expected an image scan in T3 mode; name another file"
                )
            shape = tuple(int(length) for length in file.shape[:-1])
            choose(path, [("", shape)], series)
            choose_level(path, [shape], level)
            step = file.tags.get("ImgHdr_PixResol")  # micrometres
            size = to_um(step, "um")
            interval = to_seconds(file.frame_time, "s") if axes[0] == "T" and shape[0] > 1 else None

    def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
        with PtuFile(str(path)) as file:
            values = file.decode_image(dtime=-1, dtype=np.uint32, keepdims=True)
        return _narrow(np.asarray(values)[..., 0][index])

    meta = Metadata({} if size is None else {"y": size, "x": size}, interval)
    return Stored(axes[:-1], shape, np.dtype(np.uint32), read, meta)


def open_sdt(path: Path, series: int | str | None, level: int | None) -> Stored:
    """Open the image in an SDT file: photons per pixel, with a channel per block of data.

    Parameters
    ----------
    path
        The file. It does not say how large its pixels are.
    series
        Which block, where blocks have different shapes.
    level
        None or 0.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, holds no image, holds several of which none was chosen, or sdtfile is not installed.
    AxesError
        If there is no such series or level.
    """
    try:
        from sdtfile import SdtFile
    except ImportError:
        raise missing(path, "formats") from None
    try:
        with SdtFile(str(path)) as file:
            blocks = [block for block in file.data if block.ndim == 3 and min(block.shape[:2]) > 1]
    except Exception as error:  # sdtfile raises many types on damaged files
        raise damaged(path, error) from None
    if not blocks:
        raise UnreadableImageError(f"{path} holds decay curves, expected an image scan; name another file")
    if len({block.shape for block in blocks}) > 1:
        blocks = [blocks[choose(path, [("", block.shape[:2]) for block in blocks], series)]]
    else:
        choose(path, [("", blocks[0].shape[:2])], series)
    shape = (len(blocks), *blocks[0].shape[:2])
    choose_level(path, [shape], level)

    def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
        return _narrow(np.stack([block[index[1:]].sum(axis=-1, dtype=np.uint32) for block in blocks[index[0]]]))

    return Stored("CYX", shape, np.dtype(np.uint32), read)


def _narrow(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return counts in 16 bits where they fit, as Fiji's own format and most detectors have them."""
    return counts.astype(np.uint16) if counts.max(initial=0) <= _SMALL else counts
