"""Repairs of a package's files: hashes, places and names, the README and the covers."""

import io
import mmap
import posixpath
import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from gap_bioimage.validation.archive.files import sha256_of
from gap_bioimage.validation.archive.rdf import is_url
from gap_bioimage.validation.model import Tensor
from gap_bioimage.validation.repair.editor import RDF_NAME, WRONG_HASH, PackageEditor, shown

_LEFTOVER_FOLDERS = {"__MACOSX", "__pycache__", ".git", ".ipynb_checkpoints"}
_LEFTOVER_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}
# files that run: whether theirs is the code that was described is for a person to say
_CODE = (".py", ".ipynb", ".ijm", ".bsh", ".groovy", ".js", ".jar", ".sh", ".bat", ".r", ".m", ".so", ".dll")
_READS_OTHERS = (".py", ".onnx", ".json", ".pb")  # files that may read others of the package by their paths

README, COVER = "README.md", "cover.png"
NO_VALIDATION = "# Validation\n\nNo validation was described by the authors.\n"
_README_NAME = re.compile(r"(readme|documentation|docs?)\.(md|markdown|txt)", re.IGNORECASE)
_HEADING = re.compile(r"^#+.*validation", re.MULTILINE | re.IGNORECASE)
_MAX_README_BYTES = 2**20

MAX_COVER_BYTES = 480_000  # some room below the zoo's 500 kB
_ASPECTS, _ASPECT_TOLERANCE = (1.0, 2.0), 0.02
_COVER_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif")
_PANEL_PX = 512


def rename_description(editor: PackageEditor) -> None:
    """Name the description rdf.yaml."""
    if editor.rdf_name != RDF_NAME:
        editor.changed("rdf_name", "name of the description", editor.rdf_name, RDF_NAME)
        editor.rdf_name = RDF_NAME


def remove_leftovers(editor: PackageEditor) -> None:
    """Remove what operating systems and Python leave behind in folders."""
    named = {reference.name for reference in editor.references}
    for name in editor.names:
        if name not in named and is_leftover(name):
            (editor.folder / name).unlink()
            editor.changed("leftovers", "file", name, "removed")


def is_leftover(name: str) -> bool:
    """Whether a file belongs to an operating system, an editor or Python, and not to the model."""
    parts = PurePosixPath(name).parts
    return bool(_LEFTOVER_FOLDERS & set(parts[:-1])) or parts[-1] in _LEFTOVER_FILES or parts[-1].startswith("._")


def hashes(editor: PackageEditor) -> None:
    """State the sha256 of every data file that the description names; code is left to its authors."""
    for reference in editor.references:
        path = None if not reference.hash_key or reference.is_remote else editor.file(reference.path)
        if path is None:
            continue
        stated, computed = reference.holder.get(reference.hash_key), sha256_of(path)
        if stated and str(stated).lower() == computed:
            continue
        if path.suffix.lower() in _CODE:
            state = f"is not the one stated for {reference.where}" if stated else "is not stated"
            to_do = f"read it, and if it is the right file write {reference.hash_key}: {computed}"
            editor.notes.append(f"{reference.name} is code, and its sha256 {state}: {to_do}")
            continue
        reference.holder[reference.hash_key] = computed
        if stated:
            what = f"sha256 of {reference.name}, {reference.where}{WRONG_HASH}"
            editor.changed("hash_wrong", what, stated, computed)
        else:
            editor.changed("hash_missing", f"sha256 of {reference.name}", "none", computed)


def plain_paths(editor: PackageEditor) -> None:
    """Write the names of files without ``./``, which Fiji's engine takes for a folder, and with Unix' slashes."""
    for reference in editor.references:
        if reference.path != reference.name and not reference.is_remote and editor.file(reference.name) is not None:
            reference.point_to(reference.name)
            editor.changed("plain_paths", reference.where, reference.path, reference.name)


def flatten(editor: PackageEditor) -> None:
    """Move files out of their folders to the top, under names of their own."""
    named = {reference.name for reference in editor.references}
    names = editor.names
    taken = {name.casefold() for name in names if "/" not in name} | {RDF_NAME}
    plan: dict[str, str] = {}
    for name in (name for name in names if "/" in name):
        wanted = [posixpath.basename(name)]
        if name in named:  # nobody would find another one under a new name
            wanted.append(name.replace("/", "_"))
        target = next((target for target in wanted if target.casefold() not in taken), None)
        why = "" if target else f"another file is named {wanted[0]}"
        if why := _reader_of(editor, names, name) or why:
            editor.notes.append(f"{name} stays in its folder: {why}")
        elif target:
            taken.add(target.casefold())
            plan[name] = target
    editor.move(plan)
    for old, new in plan.items():
        editor.changed("flat", "file", old, new)


def _reader_of(editor: PackageEditor, names: list[str], name: str) -> str:
    """Which file holds the path of another one, as ONNX weights do that keep their arrays outside; or imports it."""
    folder, is_code = posixpath.dirname(name), name.endswith(".py")
    top = re.escape(folder.split("/")[0])
    for reader in names:
        path = editor.folder / reader
        if not reader.endswith(_READS_OTHERS) or path.stat().st_size == 0:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if reader != name and content.find(name.encode()) >= 0:
                return f"{reader} may read it by its path"
            # from .module in its own folder, or import folder.module from anywhere
            where = rf"(\.|{top}\b)" if posixpath.dirname(reader) == folder else rf"{top}\b"
            if (
                is_code
                and reader.endswith(".py")
                and re.search(rf"^\s*(from|import)\s+{where}".encode(), content, re.M)
            ):
                return f"{reader} imports modules by their folder"
    return ""


def sample_tensors(editor: PackageEditor) -> None:
    """Leave out sample tensors that are not the test tensors; their files stay."""
    for tensor in editor.tensors:
        sample = tensor.written.get("sample_tensor")
        files = editor.file(sample), editor.file(tensor.written.get("test_tensor"))
        is_test = files[0] is not None and files[1] is not None and files[0].read_bytes() == files[1].read_bytes()
        if sample is not None and not is_test:
            del tensor.written["sample_tensor"]
            source = sample.get("source") if isinstance(sample, dict) else sample
            editor.changed("sample_tensor", f"sample_tensor of {tensor.id}", source, "removed")


def readme(editor: PackageEditor) -> None:
    """Give the model a README.md in UTF-8 with a heading about validation."""
    stated = editor.rdf.get("documentation")
    source = stated.get("source") if isinstance(stated, dict) else stated
    if source and is_url(str(source)):
        editor.notes.append(f"documentation is on the network and is not looked at: {source}")
        return
    name = PurePosixPath(str(source)).as_posix()
    if editor.file(stated) is None:
        name = next((name for name in editor.names if _README_NAME.fullmatch(name)), "")
        after = f"{name}, which was there"
        if not name:
            name = editor.free_name(README)
            text = f"# {editor.rdf.get('name') or 'Model'}\n\n{editor.rdf.get('description') or ''}\n\n{NO_VALIDATION}"
            (editor.folder / name).write_text(text, encoding="utf-8")
            after = f"{name}, written from name and description"
        editor.rdf["documentation"] = editor.reference(name)
        editor.changed("readme", "documentation", source, after)
    if not name.endswith(".md"):
        new = editor.free_name(posixpath.splitext(name)[0] + ".md", besides=name)
        editor.move({name: new})
        editor.changed("readme", "name of the documentation", name, new)
        name = new
    _readme_text(editor, name)


def _readme_text(editor: PackageEditor, name: str) -> None:
    path = editor.folder / name
    if path.stat().st_size > _MAX_README_BYTES:
        return
    written = path.read_bytes()
    try:
        text = written.decode("utf-8")
    except UnicodeDecodeError:
        text = written.decode("latin-1")  # any bytes are valid in it
        editor.changed("readme", f"encoding of {name}", "not UTF-8", "UTF-8")
    if not _HEADING.search(text):
        text = f"{text.rstrip()}\n\n{NO_VALIDATION}"
        after = "'# Validation', which says that the authors described none"
        editor.changed("readme", f"heading in {name}", "none about validation", after)
    if text.encode("utf-8") != written:
        editor.rewrite(name, text.encode("utf-8"))


def covers(editor: PackageEditor) -> None:
    """Draw a cover where there is none; fit those that are too large or of another shape."""
    listed = editor.rdf.get("covers")
    listed = listed if isinstance(listed, list) else []
    sources = [str(cover.get("source") if isinstance(cover, dict) else cover) for cover in listed]
    there = [pair for pair in zip(listed, sources, strict=True) if is_url(pair[1]) or editor.file(pair[0]) is not None]
    if not there:
        _draw(editor, listed)
        return
    if len(there) < len(listed):
        editor.rdf["covers"] = [cover for cover, _ in there]
        editor.changed("cover", "covers", listed, f"{shown(editor.rdf['covers'])}, which are there")
    for index, (_, source) in enumerate(there):
        if not is_url(source):
            _fit(editor, index, PurePosixPath(source).as_posix())


def _draw(editor: PackageEditor, listed: list[Any]) -> None:
    """Show the first test input and output side by side."""
    model = editor.model
    tensors = [*model.inputs[:1], *model.outputs[:1]] if editor.is_05 else []
    planes = [plane for tensor in tensors if (plane := _plane(editor, tensor)) is not None]
    if not planes:
        editor.notes.append("no cover is drawn: the test tensors are not npy files with two spatial axes")
        return
    cover = Image.new("L", (_PANEL_PX * len(planes), _PANEL_PX))
    for number, plane in enumerate(planes):
        cover.paste(_panel(plane), (number * _PANEL_PX, 0))
    name = editor.free_name(COVER)
    content, size = _encoded(cover, "PNG")
    (editor.folder / name).write_bytes(content)
    editor.rdf["covers"] = [editor.reference(name)]
    what = "test input and output" if len(planes) == 2 else "a test tensor"
    editor.changed("cover", "covers", listed, f"{name}, {what}, {size[0]} x {size[1]}")


def _plane(editor: PackageEditor, tensor: Tensor) -> NDArray[np.generic] | None:
    """A plane of a test tensor: the first image and channel, the middle of depth and time."""
    array, axes = editor.test_array(tensor), tensor.axis_ids
    if array is None or not {"x", "y"} <= set(axes) or array.size == 0:
        return None
    index = tuple(
        slice(None) if axis in ("y", "x") else size // 2 if axis in ("z", "t", "time") else 0
        for axis, size in zip(axes, array.shape, strict=True)
    )
    plane = np.asarray(array[index])
    return plane if axes.index("y") < axes.index("x") else plane.T


def _panel(plane: NDArray[np.generic]) -> Image.Image:
    side = min(plane.shape)
    top, left = ((size - side) // 2 for size in plane.shape)
    values = np.nan_to_num(plane[top : top + side, left : left + side].astype(np.float64))
    low, high = np.percentile(values, (0.5, 99.5))
    if high <= low:  # few pixels that differ, or none
        low, high = values.min(), values.max()
    grey = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(values.shape, 0.5)
    # small images show their pixels; large ones are averaged
    how = Image.Resampling.NEAREST if side < _PANEL_PX else Image.Resampling.BOX
    return Image.fromarray((grey * 255).astype(np.uint8)).resize((_PANEL_PX, _PANEL_PX), how)


def _fit(editor: PackageEditor, index: int, name: str) -> None:
    """Rewrite a cover of another shape, kind or size than the zoo wants."""
    path = editor.folder / name
    suffix, n_bytes = path.suffix.lower(), path.stat().st_size
    try:
        with Image.open(path) as opened:
            before = opened.size
            if _has_good_shape(before) and suffix in _COVER_SUFFIXES and n_bytes < 500_000:
                return
            image = opened.convert("RGBA" if opened.mode in ("RGBA", "LA", "PA") else "RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        editor.notes.append(f"the cover {name} is not looked at: it is not an image that can be read")
        return
    if not _has_good_shape(before):  # a white or transparent margin makes it so
        width, height = before
        sizes = [(max(width, round(height * aspect)), max(height, round(width / aspect))) for aspect in _ASPECTS]
        margin = (255, 255, 255, 0) if image.mode == "RGBA" else (255, 255, 255)
        image = ImageOps.pad(image, min(sizes, key=lambda size: size[0] * size[1]), color=margin)
    content, size = _encoded(image, "JPEG" if suffix in (".jpg", ".jpeg") else "PNG")
    new = name if suffix in (".jpg", ".jpeg", ".png") else editor.free_name(posixpath.splitext(name)[0] + ".png")
    if new != name:
        editor.move({name: new})
        editor.rdf["covers"][index] = editor.reference(new)
    editor.rewrite(new, content)
    after = f"{new}, {size[0]} x {size[1]}, {len(content) // 1000} kB"
    editor.changed("cover", f"cover {name}", f"{before[0]} x {before[1]}, {n_bytes // 1000} kB", after)


def _has_good_shape(size: tuple[int, int]) -> bool:
    return any(abs(size[0] / size[1] / aspect - 1) <= _ASPECT_TOLERANCE for aspect in _ASPECTS)


def _encoded(image: Image.Image, how: str) -> tuple[bytes, tuple[int, int]]:
    """Encode an image, smaller and smaller until it fits."""
    options: dict[str, Any] = {"quality": 90} if how == "JPEG" else {"optimize": True}
    image = image.convert("RGB") if how == "JPEG" else image
    while True:
        buffer = io.BytesIO()
        image.save(buffer, how, **options)
        if buffer.tell() <= MAX_COVER_BYTES:
            return buffer.getvalue(), image.size
        width, height = (max(1, round(0.8 * size)) for size in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
