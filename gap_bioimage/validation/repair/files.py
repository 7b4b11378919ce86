"""Repairs of a package's files: hashes, places and names, the README and the covers."""

import posixpath
import re
from pathlib import PurePosixPath

from gap_bioimage.validation.archive.files import absence, sha256_of
from gap_bioimage.validation.archive.rdf import is_url
from gap_bioimage.validation.model import source_of
from gap_bioimage.validation.repair.editor import RDF_NAME, WRONG_HASH, PackageEditor, shown
from gap_bioimage.validation.rules.zoo import HEADING

_LEFTOVER_FOLDERS = {"__MACOSX", "__pycache__", ".git", ".ipynb_checkpoints"}
_LEFTOVER_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}
# files that run: whether theirs is the code that was described is for a person to say
_CODE = (".py", ".ipynb", ".ijm", ".bsh", ".groovy", ".js", ".jar", ".sh", ".bat", ".r", ".m", ".so", ".dll")

_README_NAME = re.compile(r"(readme|documentation|docs?)\.(md|markdown|txt)", re.IGNORECASE)


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
        path = None if not reference.hash_key or reference.is_remote else editor.model.file_of(reference.path)
        if path is None or absence(path):  # what a pointer of Git LFS stands for has another hash
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
        what = f"sha256 of {reference.name}, {reference.where}" + (WRONG_HASH if stated else "")
        editor.changed("hash_wrong" if stated else "hash_missing", what, stated, computed)


def plain_paths(editor: PackageEditor) -> None:
    """Write the names of files without ``./``, which Fiji's engine takes for a folder, and with Unix' slashes."""
    for reference in editor.references:
        if reference.is_remote or reference.path == reference.name or editor.model.file_of(reference.name) is None:
            continue
        reference.point_to(reference.name)
        editor.changed("plain_paths", reference.where, reference.path, reference.name)


def flatten(editor: PackageEditor) -> None:
    """Move TorchScript weights to the top, where JDLL looks for them; others of the package may read by their paths."""
    script = editor.model.weights.get("torchscript", {})
    for reference in editor.references:
        if reference.holder is script and "/" in reference.name and editor.model.file_of(reference.name) is not None:
            old = reference.name
            editor.changed("flat", "file", old, editor.move(old, posixpath.basename(old)))


def sample_tensors(editor: PackageEditor) -> None:
    """Leave out sample tensors, which are taken for test tensors, or no images that can be read; their files stay."""
    for tensor in editor.tensors:
        if tensor.written.get("sample_tensor") is not None:
            removed = source_of(tensor.written.pop("sample_tensor"))
            editor.changed("sample_tensor", f"sample_tensor of {tensor.id}", removed, "removed")


def readme(editor: PackageEditor) -> None:
    """Give the model a README.md in UTF-8; how it was validated its authors alone can say."""
    source = str(source_of(editor.rdf.get("documentation")) or "")
    if is_url(source):
        editor.notes.append(f"documentation is on the network and is not looked at: {source}")
        return
    name = PurePosixPath(source).as_posix()
    if editor.model.file_of(source) is None:
        name = next((name for name in editor.names if _README_NAME.fullmatch(name)), "")
        after = f"{name}, which was there" if name else "README.md, written from name and description"
        if not name:
            name = "README.md"
            text = f"# {editor.rdf.get('name') or 'Model'}\n\n{editor.rdf.get('description') or ''}\n"
            (editor.folder / name).write_text(text, encoding="utf-8")
        hashed = {"source": name, "sha256": sha256_of(editor.folder / name)}
        editor.rdf["documentation"] = name if editor.is_plain else hashed
        editor.changed("readme", "documentation", source, after)
    if not name.endswith(".md"):
        old, name = name, editor.move(name, posixpath.splitext(name)[0] + ".md")
        editor.changed("readme", "name of the documentation", old, name)
    written = (editor.folder / name).read_bytes()
    try:
        text = written.decode("utf-8")
    except UnicodeDecodeError:
        is_16 = written.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = written.decode("utf-16" if is_16 else "latin-1", errors="replace")  # any bytes are valid in the latter
        editor.rewrite(name, text.encode("utf-8"))
        editor.changed("readme", f"encoding of {name}", "not UTF-8", "UTF-8")
    if not HEADING.search(text):
        editor.notes.append(f"{name} has no heading about validation: say there how well the model works, and on what")


def covers(editor: PackageEditor) -> None:
    """Leave out covers that are not there."""
    listed = editor.rdf.get("covers")
    listed = listed if isinstance(listed, list) else []
    there = [cover for cover in listed if is_url(str(source_of(cover))) or editor.model.file_of(cover) is not None]
    if len(there) < len(listed):
        editor.rdf["covers"] = there
        editor.changed("cover", "covers", listed, f"{shown(there)}, which are there")
