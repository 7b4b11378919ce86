"""The repair of covers: remove missing ones, and fit the others to the zoo's aspect ratios and largest size."""

import io
from pathlib import PurePosixPath

from PIL import Image, ImageOps

from gap_bioimage.validation.archive.rdf import is_url
from gap_bioimage.validation.model import source_of
from gap_bioimage.validation.repair.editor import PackageEditor, shown
from gap_bioimage.validation.rules.zoo import ASPECTS, MAX_COVER_BYTES, has_good_aspect

_KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def covers(editor: PackageEditor) -> None:
    """Leave out covers that are missing, and fit those that are too large or have another aspect ratio."""
    listed = editor.rdf.get("covers")
    listed = listed if isinstance(listed, list) else []
    present = [cover for cover in listed if is_url(str(source_of(cover))) or editor.model.file_of(cover) is not None]
    if len(present) < len(listed):
        editor.rdf["covers"] = present
        editor.changed("cover", "covers", listed, f"{shown(present)}, without missing files")
    sources = (str(source_of(cover)) for cover in present)
    for name in (PurePosixPath(source).as_posix() for source in sources if not is_url(source)):
        try:
            _fit(editor, name)
        except (OSError, KeyError, Image.DecompressionBombError):
            editor.notes.append(f"the cover {name} stays as it is: it is not a readable PNG or JPEG")


def _fit(editor: PackageEditor, name: str) -> None:
    """Pad a cover to an aspect ratio that the zoo shows in full, and shrink it until it is small enough."""
    path, buffer = editor.folder / name, io.BytesIO()
    kind, n_bytes = _KINDS[path.suffix.lower()], path.stat().st_size
    with Image.open(path) as opened:
        size, image = opened.size, opened.convert("RGBA" if kind == "PNG" and "A" in opened.getbands() else "RGB")
    if has_good_aspect(size) and n_bytes < MAX_COVER_BYTES:
        return
    if not has_good_aspect(size):
        padded = [(max(size[0], round(size[1] * a)), max(size[1], round(size[0] / a))) for a in ASPECTS]
        margin = (255, 255, 255, 0)[: len(image.getbands())]
        image = ImageOps.pad(image, min(padded, key=lambda pair: pair[0] * pair[1]), color=margin)
    image.save(buffer, kind, quality=90, optimize=True)
    while buffer.tell() >= MAX_COVER_BYTES:
        image, buffer = ImageOps.scale(image, 0.8, Image.Resampling.LANCZOS), io.BytesIO()
        image.save(buffer, kind, quality=90, optimize=True)
    editor.rewrite(name, buffer.getvalue())
    before = f"{size[0]} x {size[1]}, {n_bytes // 1000} kB"
    editor.changed("cover", f"cover {name}", before, f"{name}, {buffer.tell() // 1000} kB")
