"""Anybody's model package, opened without trust: nothing is executed, nothing leaves a temp folder."""

import errno
import filecmp
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.validation.archive.entries import PATHS, entry_checks, few, open_zip, shown, unsafe_path
from gap_bioimage.validation.archive.rdf import FileReference, is_url, read_rdf, references
from gap_bioimage.validation.check import BLOCKS, DEGRADES, Check, declare, one_sentence

_YAML_NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml", "rdf.yml", "bioimageio.yml")
_WANTED = "give a model zip, its folder or its rdf.yaml"
_ZIP_START = b"PK\x03\x04"

INTACT = declare(
    "archive.intact", "archive", BLOCKS, order=5, asks="A whole zip.", breaks="it cannot be unpacked",
    fix="Write the zip again; it may have been cut short on its way.",
)  # fmt: skip
_ONE_RDF = declare(
    "archive.one_rdf", "archive", DEGRADES, order=7, asks="One description.",
    breaks="programs may read another description than the one checked here",
    fix="Keep one description, named rdf.yaml.",
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """An opened model package."""

    source: Path  # the zip, folder or yaml that the user named
    root: Path  # folder that holds the files: a temp folder for a zip, the user's own otherwise (only read)
    rdf_name: str  # posix path of the description inside root
    rdf: dict[str, Any]  # the description as parsed, never upgraded
    names: tuple[str, ...]  # posix paths of all files
    scratch: Path  # a temp folder that is removed when the package is closed

    @property
    def is_zip(self) -> bool:
        """Whether the package came as a zip."""
        return self.root.is_relative_to(self.scratch)

    @cached_property
    def references(self) -> list[FileReference]:
        """All places of the description that name a file."""
        return references(self.rdf)

    @property
    def remote(self) -> list[FileReference]:
        """References to URLs."""
        return [reference for reference in self.references if reference.is_remote]

    @cached_property
    def named(self) -> dict[str, Path]:
        """The files that the description refers to and that are there, by the paths that it writes."""
        found = ((r, self.file(r.path)) for r in self.references)
        return {r.path: path for r, path in found if path is not None and not stand_in(r, path)}

    @property
    def files(self) -> list[str]:
        """Names of all files: those of the zip or folder, and those that a yaml refers to."""
        return sorted({*self.names, *self.named})

    def file(self, name: object) -> Path | None:
        """The file of that name inside the package, or None if it is absent or outside."""
        if not isinstance(name, str) or unsafe_path(name):
            return None
        path = self.root / name
        return path if path.is_file() and _inside(path, self.root) else None

    def names_outside(self, name: str) -> bool:
        """Whether a text is the path of a file outside the package, or of a link that leads to one."""
        if os.name == "nt" and name.startswith(("\\\\", "//")):
            return True  # looking there would already reach for another computer
        try:
            path = self.root / name
            return path.is_file() and not _inside(path, self.root)
        except (OSError, ValueError):  # not a path at all, as most texts
            return False


def stand_in(reference: FileReference, path: Path) -> str:
    """What lies where weights or a tensor should: as a download leaves it that went wrong; empty if they may be it."""
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: fetch it with git lfs pull"
    if not reference.where.startswith(("weights.", "test_", "inputs", "outputs")) or path.suffix == ".py":
        return ""
    is_page = head.startswith((b"<!doctype html", b"<html"))
    return "is empty" if not head else "is a web page, not the file that was to be downloaded" if is_page else ""


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


Opened = tuple[Package | None, list[Check]]


@contextmanager
def open_package(path: str | Path) -> Iterator[Opened]:
    """Open a zip, a folder or a yaml, and say what is wrong with it as an archive.

    The package is None where it is too broken or too dangerous to be unpacked; `UnreadableModelError` is raised where
    the path is missing, is none of the three, or holds no description.
    """
    source = Path(path)
    if is_url(str(source)):
        raise UnreadableModelError(f"{source} is an address; nothing is downloaded: download it, and {_WANTED}.")
    if not source.exists():
        raise UnreadableModelError(f"{source} does not exist; {_WANTED}.")
    # Symlinked temp folders (macOS) would make every file look as if it lay outside.
    with tempfile.TemporaryDirectory(prefix="gap-validate-", ignore_cleanup_errors=True) as temp:
        scratch = Path(temp).resolve()
        if source.is_dir():
            yield _open_folder(source, scratch)
        elif not source.is_file():  # reading from a pipe would wait for ever
            raise UnreadableModelError(f"{source} is not a plain file; {_WANTED}.")
        elif source.suffix.lower() in (".yaml", ".yml"):
            rdf, check = read_rdf(source)
            root, names = source.parent.resolve(), (source.name,)
            yield None if rdf is None else Package(source, root, source.name, rdf, names, scratch), [check]
        elif source.stat().st_size == 0:
            raise UnreadableModelError(f"{source} is empty; download or write it again.")
        elif zipfile.is_zipfile(source):
            yield _open_zip(source, scratch)
        else:
            _refuse_cut_off(source)
            raise UnreadableModelError(f"{source} is not a zip, a folder or a yaml; {_WANTED}.")


def _refuse_cut_off(source: Path) -> None:
    with source.open("rb") as file:
        if file.read(4) == _ZIP_START:
            raise UnreadableModelError(f"{source} begins like a zip and has no end; download or write it again.")


def _find_yaml(names: list[str], source: Path) -> str:
    """The name of the description among a package's files."""
    endings = tuple(f".{name}" for name in _YAML_NAMES)
    found = [name for name in _YAML_NAMES if name in names]
    found += sorted(name for name in names if "/" not in name and name.lower().endswith(endings))
    if found:
        return found[0]
    if all(name.endswith("/") for name in names):
        raise UnreadableModelError(f"{source} holds no files; {_WANTED}.")
    told = f"{source} holds no rdf.yaml, bioimageio.yaml or *.model.yaml at its top level"
    inner = next((name for name in names if name.lower().endswith(".zip")), "")
    if inner and not any(name.endswith(_YAML_NAMES) for name in names):
        raise UnreadableModelError(f"{told}; {shown(inner)} in it may be the model: unpack that, and give it.")
    if alike := next((name for name in names if name.lower() in _YAML_NAMES), ""):
        raise UnreadableModelError(f"{told}; case matters: name {shown(alike)} rdf.yaml.")
    raise UnreadableModelError(f"{told}; zip the model's files themselves, not the folder that holds them.")


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _open_folder(folder: Path, scratch: Path) -> Opened:
    rdf_name = _find_yaml(_files_in(folder), folder)
    outside = [path for path in sorted(folder.rglob("*")) if path.is_symlink() and not _inside(path, folder)]
    if outside:
        names = [shown(path.relative_to(folder).as_posix()) for path in outside]
        text = few([f"{name} is a link that leads out of the folder" for name in names])
        return None, [PATHS.violated(text, "Put the files themselves into the folder.")]
    return _opened(folder, folder.resolve(), rdf_name, scratch, [PATHS.passed("all paths stay inside")])


def _open_zip(source: Path, scratch: Path) -> Opened:
    checks: list[Check] = []
    root = scratch / "package"
    try:
        with open_zip(source) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            is_whole = not entries or min(entry.header_offset for entry in entries) == 0
            if not is_whole and {*_YAML_NAMES}.isdisjoint(names):
                _refuse_cut_off(source)  # what was listed is a zip inside of it, such as weights
            rdf_name = _find_yaml(names, source)
            checks += entry_checks(entries)
            if any(check.status == "failed" for check in checks):
                return None, checks
            archive.extractall(root)  # never more of an entry than the directory promises
    except UnreadableModelError:
        raise
    except Exception as error:  # zipfile and the decompressors raise whatever they stumble over
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # not the model's fault
            raise OutputError(f"cannot unpack {source} to {scratch}: no space left; free some space there") from None
        if isinstance(error, UnicodeDecodeError):
            return None, [*checks, INTACT.violated("the name of an entry is not UTF-8, though marked as such")]
        damage = one_sentence(str(error).replace(f"{scratch}{os.sep}", "")) or "the zip is broken"
        return None, [*checks, INTACT.violated(damage)]
    return _opened(source, root, rdf_name, scratch, [*checks, INTACT.passed(f"all {len(entries)} entries unpack")])


def _opened(source: Path, root: Path, rdf_name: str, scratch: Path, checks: list[Check]) -> Opened:
    rdf, check = read_rdf(root / rdf_name)
    checks.append(check)
    if rdf is None:
        return None, checks
    # Programs prefer different names: what one checks need not be what the other runs.
    others = [path for name in _YAML_NAMES if (path := root / name).is_file()]
    if different := [path.name for path in others if not filecmp.cmp(path, root / rdf_name, shallow=False)]:
        text = f"{rdf_name} was read, but {', '.join(different)} says something else, and other programs may prefer it"
        checks.append(_ONE_RDF.violated(text))
    return Package(source, root, rdf_name, rdf, tuple(_files_in(root)), scratch), checks
