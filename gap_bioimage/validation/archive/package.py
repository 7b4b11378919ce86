"""Open anybody's model package without trusting it: nothing is executed, nothing leaves a temp folder."""

from __future__ import annotations

import errno
import os
import tempfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.validation.archive.entries import BOMB, PATHS, entry_checks, open_zip, shown, unsafe_path
from gap_bioimage.validation.archive.rdf import read_rdf
from gap_bioimage.validation.archive.references import FileReference, references
from gap_bioimage.validation.check import Severity, declare, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.check import Check

_CHUNK = 2**20
_YAML_NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml", "rdf.yml", "bioimageio.yml")

_INTACT = declare(
    "archive.intact", "archive", Severity.BLOCKS, order=5, asks="A whole zip.", breaks="it cannot be unpacked",
    fix="Write the zip again; it may have been cut short on its way.",
)  # fmt: skip
_ONE_RDF = declare(
    "archive.one_rdf", "archive", Severity.DEGRADES, order=7, asks="One description.",
    breaks="programs may read another description than the one checked here",
    fix="Keep one description, named rdf.yaml.",
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """An opened model package.

    Parameters
    ----------
    source
        The zip, folder or yaml that the user named.
    root
        Folder that holds the files: a temp folder for a zip, the user's own otherwise (only read).
    rdf_name
        Name of the description inside ``root``, as a posix path.
    rdf
        The description as parsed, never upgraded.
    names
        Posix paths of all files, relative to ``root``.
    scratch
        A temp folder that is removed when the package is closed.
    """

    source: Path
    root: Path
    rdf_name: str
    rdf: dict[str, Any]
    names: tuple[str, ...]
    scratch: Path

    @property
    def is_zip(self) -> bool:
        """Whether the package came as a zip."""
        return self.root.is_relative_to(self.scratch)

    @cached_property
    def references(self) -> list[FileReference]:
        """All places of the description that name a file."""
        return list(references(self.rdf))

    @property
    def remote(self) -> list[FileReference]:
        """References to URLs."""
        return [reference for reference in self.references if reference.is_remote]

    @cached_property
    def named(self) -> list[str]:
        """Names of the files that the description refers to and that are there, each once."""
        paths = (reference.path for reference in self.references)
        return list(dict.fromkeys(path for path in paths if self.file(path) is not None))

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


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


@contextmanager
def open_package(path: str | Path) -> Iterator[tuple[Package | None, list[Check]]]:
    """Open a zip, a folder or a yaml, and say what is wrong with it as an archive.

    Yields
    ------
    The package, or None where it is too broken or too dangerous to be unpacked, and the archive checks.

    Raises
    ------
    UnreadableModelError
        If the path is missing, is not a zip, folder or yaml, or holds no description.
    """
    source = Path(path)
    wanted = "give a model zip, its folder or its rdf.yaml"
    if not source.exists():
        raise UnreadableModelError(f"{source} does not exist; {wanted}.")
    # Symlinked temp folders (macOS) would make every file look as if it lay outside.
    with tempfile.TemporaryDirectory(prefix="gap-validate-", ignore_cleanup_errors=True) as temp:
        scratch = Path(temp).resolve()
        if source.is_dir():
            yield _open_folder(source, scratch)
        elif not source.is_file():  # reading from a pipe would wait for ever
            raise UnreadableModelError(f"{source} is not a plain file; {wanted}.")
        elif source.suffix.lower() in (".yaml", ".yml"):
            rdf, check = read_rdf(source)
            root = source.parent.resolve()
            opened = None if rdf is None else Package(source, root, source.name, rdf, (source.name,), scratch)
            yield opened, [check]
        elif source.stat().st_size == 0:
            raise UnreadableModelError(f"{source} is empty; download or write it again.")
        elif zipfile.is_zipfile(source):
            yield _open_zip(source, scratch)
        elif _begins_like_a_zip(source):
            raise _cut_off(source)
        else:
            raise UnreadableModelError(f"{source} is not a zip, a folder or a yaml; {wanted}.")


def _cut_off(source: Path) -> UnreadableModelError:
    return UnreadableModelError(f"{source} begins like a zip and has no end; download or write it again.")


def _begins_like_a_zip(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _find_yaml(names: list[str], source: Path) -> str:
    """The name of the description among a package's files."""
    endings = tuple(f".{name}" for name in _YAML_NAMES)
    for name in [*(name for name in _YAML_NAMES if name in names), *sorted(names)]:
        if name in _YAML_NAMES or ("/" not in name and name.lower().endswith(endings)):
            return name
    if all(name.endswith("/") for name in names):
        raise UnreadableModelError(f"{source} holds no files; give a model zip, its folder or its rdf.yaml.")
    raise UnreadableModelError(
        f"{source} holds no rdf.yaml, bioimageio.yaml or *.model.yaml at its top level; "
        "zip the model's files themselves, not the folder that holds them."
    )


def _names_in(folder: Path) -> list[str]:
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)  # follows no links
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _open_folder(folder: Path, scratch: Path) -> tuple[Package | None, list[Check]]:
    rdf_name = _find_yaml(_names_in(folder), folder)
    found = (Path(parent, name) for parent, folders, names in os.walk(folder) for name in (*folders, *names))
    outside = sorted(
        path.relative_to(folder).as_posix() for path in found if path.is_symlink() and not _inside(path, folder)
    )
    if outside:
        text = "; ".join(f"{shown(name)} is a link that leads out of the folder" for name in outside[:3])
        return None, [PATHS.violated(text, "Put the files themselves into the folder.")]
    return _opened(folder, folder.resolve(), rdf_name, scratch, [PATHS.passed("all paths stay inside")])


def _open_zip(source: Path, scratch: Path) -> tuple[Package | None, list[Check]]:
    checks: list[Check] = []
    root = scratch / "package"
    try:
        with open_zip(source) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            is_whole = not entries or min(entry.header_offset for entry in entries) == 0
            if not is_whole and {*_YAML_NAMES}.isdisjoint(names) and _begins_like_a_zip(source):
                raise _cut_off(source)  # what was listed is a zip inside of it, such as weights
            rdf_name = _find_yaml(names, source)
            checks += entry_checks(entries)
            if any(check.status == "failed" for check in checks):
                return None, checks
            _unpack(archive, entries, root)
    except UnreadableModelError:
        raise
    except _BudgetError as error:
        return None, [*(check for check in checks if check.id != BOMB.id), BOMB.violated(str(error))]
    except Exception as error:  # zipfile and the decompressors raise whatever they stumble over
        # ours to say, and not the model's fault
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"cannot unpack {source} to {scratch}: no space left; free some space there") from None
        return None, [*checks, _INTACT.violated(_damage(error, scratch))]
    checks.append(_INTACT.passed(f"all {len(entries)} entries unpack"))
    return _opened(source, root, rdf_name, scratch, checks)


def _damage(error: Exception, scratch: Path) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the name of an entry is not UTF-8, though it is marked as such"
    return one_sentence(str(error).replace(f"{scratch}{os.sep}", "")) or "the zip is broken"


def _opened(
    source: Path, root: Path, rdf_name: str, scratch: Path, checks: list[Check]
) -> tuple[Package | None, list[Check]]:
    rdf, check = read_rdf(root / rdf_name)
    if rdf is None:
        return None, [*checks, check]
    # Programs prefer different names: what one checks need not be what the other runs.
    read = (root / rdf_name).read_bytes()
    others = [path for name in _YAML_NAMES if name != rdf_name and (path := root / name).is_file()]
    different = [path.name for path in others if path.stat().st_size != len(read) or path.read_bytes() != read]
    if different:
        text = f"{rdf_name} was read, but {', '.join(different)} says something else, and other programs may prefer it"
        checks = [*checks, check, _ONE_RDF.violated(text)]
    else:
        checks = [*checks, check]
    return Package(source, root, rdf_name, rdf, tuple(_names_in(root)), scratch), checks


class _BudgetError(Exception):
    """A zip grew beyond what its directory promised while it was unpacked."""


def _unpack(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], root: Path) -> None:
    """Unpack entries that `entry_checks` let through, never writing more than the directory promised."""
    root.mkdir()
    for entry in entries:
        target = root / entry.filename
        if entry.filename.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        budget = entry.file_size
        with archive.open(entry) as packed, target.open("xb") as out:
            while chunk := packed.read(_CHUNK):
                budget -= len(chunk)
                if budget < 0:
                    raise _BudgetError(f"{entry.filename!r} is longer than the zip's directory says")
                out.write(chunk)
