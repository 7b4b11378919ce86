"""Repairs of what people see of a model: its README and its covers."""

from __future__ import annotations

import io
import posixpath
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.archive.references import is_url
from gap_bioimage.validation.repairing.formats import shown
from gap_bioimage.validation.repairing.work import Change

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from gap_bioimage.validation.repairing.work import Work

README, COVER = "README.md", "cover.png"
NO_VALIDATION = "# Validation\n\nNo validation was described by the authors.\n"
_README_NAME = re.compile(r"(readme|documentation|docs?)\.(md|markdown|txt)", re.IGNORECASE)
_HEADING = re.compile(r"^#+.*validation", re.MULTILINE | re.IGNORECASE)

_MAX_README_BYTES = 2**20
MAX_COVER_BYTES = 480_000
"""Some room below the zoo's 500 kB."""
_ASPECTS, _ASPECT_TOLERANCE = (1.0, 2.0), 0.02
_COVER_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif")
_PANEL_PX = 512
_SHRINK = 0.8


def readme(work: Work) -> list[Change]:
    """Give the model a README.md in UTF-8 with a heading about validation."""
    stated = work.rdf.get("documentation")
    source = stated.get("source") if isinstance(stated, dict) else stated
    if source and is_url(str(source)):
        work.notes.append(f"documentation is on the network and is not looked at: {source}")
        return []
    changes = []
    if work.file(stated) is None:
        name = next((name for name in work.names if _README_NAME.fullmatch(name)), None)
        after = f"{name}, which was there"
        if name is None:
            name = work.free_name(README)
            text = f"# {work.rdf.get('name') or 'Model'}\n\n{work.rdf.get('description') or ''}\n\n{NO_VALIDATION}"
            (work.folder / name).write_text(text, encoding="utf-8")
            after = f"{name}, written from name and description"
        work.rdf["documentation"] = work.reference(name)
        changes.append(Change("readme", "documentation", shown(source), after))
    else:
        name = PurePosixPath(str(source)).as_posix()
    if not name.endswith(".md"):
        new = work.free_name(posixpath.splitext(name)[0] + ".md", besides=name)
        work.move({name: new})
        changes.append(Change("readme", "name of the documentation", name, new))
        name = new
    return changes + _readme_text(work, name)


def _readme_text(work: Work, name: str) -> list[Change]:
    path = work.folder / name
    changes: list[Change] = []
    if path.stat().st_size > _MAX_README_BYTES:
        return changes
    written = path.read_bytes()
    try:
        text = written.decode("utf-8")
    except UnicodeDecodeError:
        text = written.decode("latin-1")  # any bytes are valid in it
        changes.append(Change("readme", f"encoding of {name}", "not UTF-8", "UTF-8"))
    if not _HEADING.search(text):
        text = f"{text.rstrip()}\n\n{NO_VALIDATION}"
        after = "'# Validation', which says that the authors described none"
        changes.append(Change("readme", f"heading in {name}", "none about validation", after))
    if changes:
        path.write_bytes(text.encode("utf-8"))
        work.rehash(name)
    return changes


def covers(work: Work) -> list[Change]:
    """Draw a cover where there is none; fit those that are too large or of another shape."""
    listed = work.rdf.get("covers")
    listed = listed if isinstance(listed, list) else []
    remote = [cover for cover in listed if is_url(str(cover.get("source") if isinstance(cover, dict) else cover))]
    there = [cover for cover in listed if cover in remote or work.file(cover) is not None]
    if not there:
        return _drawn(work, listed)
    changes = []
    if len(there) < len(listed):
        changes.append(Change("cover", "covers", shown(listed), f"{shown(there)}, which are there"))
        work.rdf["covers"] = there
    for index, cover in enumerate(there):
        if cover not in remote:
            changes += _fitted(work, index, cover)
    return changes


def _drawn(work: Work, listed: list[Any]) -> list[Change]:
    planes = [plane for plane in (_plane(work, "inputs"), _plane(work, "outputs")) if plane is not None]
    if not planes:
        work.notes.append("no cover is drawn: the test tensors are no npy files with two spatial axes")
        return []
    name = work.free_name(COVER)
    content, size = _encoded(_side_by_side(planes), "PNG")
    (work.folder / name).write_bytes(content)
    work.rdf["covers"] = [work.reference(name)]
    what = "test input and output" if len(planes) == 2 else "a test tensor"
    return [Change("cover", "covers", shown(listed), f"{name}, {what}, {size[0]} x {size[1]}")]


def _plane(work: Work, which: str) -> NDArray[np.generic] | None:
    """A plane of the first test input or output: the first image and channel, the middle of depth and time."""
    import numpy as np

    tensors = work.rdf.get(which)
    first = tensors[0] if isinstance(tensors, list) and tensors and isinstance(tensors[0], dict) else {}
    if isinstance(first.get("axes"), str):  # format 0.4
        files = work.rdf.get(f"test_{which}")
        array, axes = work.load(files[0] if isinstance(files, list) and files else None), list(first["axes"])
    else:
        facts = work.facts.inputs if which == "inputs" else work.facts.outputs
        array, axes = (work.test_array(facts[0]), facts[0].axis_ids) if facts else (None, [])
    if array is None or array.ndim != len(axes) or not {"x", "y"} <= set(axes) or array.size == 0:
        return None
    middle = ("z", "t", "time")
    index = tuple(
        slice(None) if axis in ("y", "x") else size // 2 if axis in middle else 0
        for axis, size in zip(axes, array.shape, strict=True)
    )
    plane = np.asarray(array[index])
    return plane if axes.index("y") < axes.index("x") else plane.T


def _side_by_side(planes: list[NDArray[np.generic]]) -> Image:
    from PIL import Image

    cover = Image.new("L", (_PANEL_PX * len(planes), _PANEL_PX))
    for number, plane in enumerate(planes):
        cover.paste(_panel(plane), (number * _PANEL_PX, 0))
    return cover


def _panel(plane: NDArray[np.generic]) -> Image:
    import numpy as np
    from PIL import Image

    side = min(plane.shape)
    top, left = ((size - side) // 2 for size in plane.shape)
    values = np.nan_to_num(plane[top : top + side, left : left + side].astype(np.float64))
    low, high = np.percentile(values, (0.5, 99.5))
    if high <= low:  # few pixels that differ, or none
        low, high = values.min(), values.max()
    grey = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(values.shape, 0.5)
    image = Image.fromarray((grey * 255).astype(np.uint8))
    # small images show their pixels; large ones are averaged
    how = Image.Resampling.NEAREST if side < _PANEL_PX else Image.Resampling.BOX
    return image.resize((_PANEL_PX, _PANEL_PX), how)


def _fitted(work: Work, index: int, cover: Any) -> list[Change]:
    from PIL import Image, UnidentifiedImageError

    source = str(cover.get("source") if isinstance(cover, dict) else cover)
    name = PurePosixPath(source).as_posix()
    path = work.folder / name
    try:
        with Image.open(path) as opened:
            before = opened.size
            good = any(abs(before[0] / before[1] / aspect - 1) <= _ASPECT_TOLERANCE for aspect in _ASPECTS)
            known = path.suffix.lower() in _COVER_SUFFIXES
            if good and known and path.stat().st_size < 500_000:
                return []
            image = opened.convert("RGBA" if opened.mode in ("RGBA", "LA", "PA") else "RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        work.notes.append(f"the cover {name} is not looked at: it is no image that can be read")
        return []
    kilobytes = path.stat().st_size // 1000
    jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    content, size = _encoded(_padded(image), "JPEG" if jpeg else "PNG")
    new = _write_cover(work, path, name, content, jpeg)
    if new != name:
        work.rdf["covers"][index] = work.reference(new)
    after = f"{new}, {size[0]} x {size[1]}, {len(content) // 1000} kB"
    return [Change("cover", f"cover {name}", f"{before[0]} x {before[1]}, {kilobytes} kB", after)]


def _write_cover(work: Work, path: Path, name: str, content: bytes, jpeg: bool) -> str:
    """Write a cover in its place; under a new name where it is now a PNG, whose old file goes."""
    if jpeg or path.suffix.lower() == ".png":
        path.write_bytes(content)
        work.rehash(name)
        return name
    new = work.free_name(posixpath.splitext(name)[0] + ".png")
    work.move({name: new})
    (work.folder / new).write_bytes(content)
    work.rehash(new)
    return new


def _padded(image: Image) -> Image:
    """Add a white or transparent margin to the nearer of 1:1 and 2:1."""
    from PIL import Image as Pillow

    width, height = image.size
    if any(abs(width / height / aspect - 1) <= _ASPECT_TOLERANCE for aspect in _ASPECTS):
        return image
    options = [(max(width, round(height * aspect)), max(height, round(width / aspect))) for aspect in _ASPECTS]
    size = min(options, key=lambda option: option[0] * option[1])
    background = (255, 255, 255, 0) if image.mode == "RGBA" else (255, 255, 255)
    canvas = Pillow.new(image.mode, size, background)
    canvas.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
    return canvas


def _encoded(image: Image, how: str) -> tuple[bytes, tuple[int, int]]:
    """Encode an image, smaller and smaller until it fits."""
    from PIL import Image as Pillow

    options: dict[str, Any] = {"quality": 90} if how == "JPEG" else {"optimize": True}
    image = image.convert("RGB") if how == "JPEG" else image
    while True:
        buffer = io.BytesIO()
        image.save(buffer, how, **options)
        if buffer.tell() <= MAX_COVER_BYTES:
            return buffer.getvalue(), image.size
        width, height = (max(1, round(size * _SHRINK)) for size in image.size)
        image = image.resize((width, height), Pillow.Resampling.LANCZOS)
