"""Open anybody's model package without trusting it: nothing is executed, nothing leaves a temp folder."""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.validation.checks import Check, one_sentence
from gap_bioimage.validation.package.entries import entry_checks, none_of, open_zip, shown, unsafe_path
from gap_bioimage.validation.package.rdf_guard import TrapError, refuse_expensive_yaml, refuse_strange_values

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RDF_BYTES = 2**20
"""The parser needs some seconds for as much."""
_CHUNK = 2**20

_YAML_NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml", "rdf.yml", "bioimageio.yml")
_YAML_ENDINGS = tuple(f".{name}" for name in _YAML_NAMES)


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
        except (OSError, ValueError):  # no path at all, as most texts
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
        If the path is missing, is no zip, folder or yaml, or holds no description.
    """
    source = Path(path)
    if not source.exists():
        raise UnreadableModelError(f"{source} does not exist; give a model zip, its folder or its rdf.yaml.")
    # Symlinked temp folders (macOS) would make every file look as if it lay outside.
    with tempfile.TemporaryDirectory(prefix="gap-validate-", ignore_cleanup_errors=True) as temp:
        scratch = Path(temp).resolve()
        if source.is_dir():
            yield _package_of_folder(source, scratch)
        elif not source.is_file():  # reading from a pipe would wait for ever
            raise UnreadableModelError(f"{source} is no plain file; give a model zip, its folder or its rdf.yaml.")
        elif source.suffix.lower() in (".yaml", ".yml"):
            yield _package_of_yaml(source, scratch)
        elif source.stat().st_size == 0:
            raise UnreadableModelError(f"{source} is empty; download or write it again.")
        elif zipfile.is_zipfile(source):
            yield _package_of_zip(source, scratch)
        elif _begins_like_a_zip(source):
            raise UnreadableModelError(f"{source} begins like a zip and has no end; download or write it again.")
        else:
            raise UnreadableModelError(
                f"{source} is not a zip, a folder or a yaml; give a model zip, its folder or its rdf.yaml."
            )


def _begins_like_a_zip(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def find_yaml(names: list[str], source: Path) -> str:
    """The name of the description among a package's files.

    Raises
    ------
    UnreadableModelError
        If there is none.
    """
    for name in _YAML_NAMES:
        if name in names:
            return name
    flat = sorted(name for name in names if "/" not in name)
    for name in flat:
        if name.lower().endswith(_YAML_ENDINGS):
            return name
    if all(name.endswith("/") for name in names):
        raise UnreadableModelError(f"{source} holds no files; give a model zip, its folder or its rdf.yaml.")
    raise UnreadableModelError(
        f"{source} holds no rdf.yaml, bioimageio.yaml or *.model.yaml at its top level; "
        "zip the model's files themselves, not the folder that holds them."
    )


def _names_in(folder: Path) -> list[str]:
    found = []
    for parent, _, names in os.walk(folder):  # does not follow links to folders
        found += [path for name in names if (path := Path(parent, name)).is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _links_outside(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        links = [path for name in (*folders, *names) if (path := Path(parent, name)).is_symlink()]
        found += [path.relative_to(folder).as_posix() for path in links if not _inside(path, folder)]
    return sorted(found)


def _package_of_folder(folder: Path, scratch: Path) -> tuple[Package | None, list[Check]]:
    rdf_name = find_yaml(_names_in(folder), folder)
    links = [f"{shown(name)} is a link that leads out of the folder" for name in _links_outside(folder)]
    checks = [none_of("archive.paths", links, "all paths stay inside", "Put the files themselves into the folder.")]
    if links:
        return None, checks
    rdf, check = read_rdf(folder / rdf_name)
    checks.append(check)
    if rdf is None:
        return None, checks
    names = tuple(_names_in(folder))
    return Package(folder, folder.resolve(), rdf_name, rdf, names, scratch), [*checks, *_other_rdfs(folder, rdf_name)]


def _package_of_yaml(source: Path, scratch: Path) -> tuple[Package | None, list[Check]]:
    rdf, check = read_rdf(source)
    if rdf is None:
        return None, [check]
    return Package(source, source.parent.resolve(), source.name, rdf, (source.name,), scratch), [check]


def _package_of_zip(source: Path, scratch: Path) -> tuple[Package | None, list[Check]]:
    checks: list[Check] = []
    root = scratch / "package"
    try:
        with open_zip(source) as archive:
            entries = archive.infolist()
            rdf_name = find_yaml([entry.filename for entry in entries], source)
            checks += entry_checks(entries)
            if any(check.status == "failed" for check in checks):
                return None, checks
            unpack(archive, entries, root)
    except UnreadableModelError:
        raise
    except BudgetError as error:
        fix = "Keep the package to the files that the model needs."
        rest = [check for check in checks if check.id != "archive.bomb"]
        return None, [*rest, Check("archive.bomb", "archive", "failed", str(error), fix)]
    except Exception as error:  # zipfile and the decompressors raise whatever they stumble over
        # ours to say, and not the model's fault
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"cannot unpack {source} to {scratch}: no space left; free some space there") from None
        return None, [*checks, _not_intact(error, scratch)]
    checks.append(Check("archive.intact", "archive", "passed", f"all {len(entries)} entries unpack"))
    rdf, check = read_rdf(root / rdf_name)
    checks.append(check)
    if rdf is None:
        return None, checks
    package = Package(source, root, rdf_name, rdf, tuple(_names_in(root)), scratch)
    return package, [*checks, *_other_rdfs(root, rdf_name)]


def _not_intact(error: Exception, scratch: Path) -> Check:
    if isinstance(error, UnicodeDecodeError):
        text = "the name of an entry is not UTF-8, though it is marked as such"
    else:
        text = one_sentence(str(error).replace(f"{scratch}{os.sep}", "")) or "broken zip"
    fix = "Write the zip again; it may have been cut short on its way."
    return Check("archive.intact", "archive", "failed", text, fix)


def _other_rdfs(root: Path, rdf_name: str) -> list[Check]:
    """Programs prefer different names: what one checks need not be what the other runs."""
    read = (root / rdf_name).read_bytes()
    others = [path for name in _YAML_NAMES if name != rdf_name and (path := root / name).is_file()]
    different = [path.name for path in others if path.stat().st_size != len(read) or path.read_bytes() != read]
    if not different:
        return []
    text = f"{rdf_name} was read, but {', '.join(different)} says something else, and other programs may prefer it"
    return [Check("archive.one_rdf", "archive", "warning", text, "Keep one description, named rdf.yaml.")]


class BudgetError(Exception):
    """A zip grew beyond what its directory promised while it was unpacked."""


def unpack(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], root: Path) -> None:
    """Unpack entries that `entry_checks` let through, never writing more than the directory promised.

    Raises
    ------
    BudgetError
        If an entry is longer than its directory entry says.
    zipfile.BadZipFile
        If an entry is damaged.
    """
    root.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        target = root / entry.filename
        if entry.filename.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as packed, target.open("xb") as out:
            _copy(packed, out, entry.file_size, entry.filename)


def _copy(packed: IO[bytes], out: IO[bytes], budget: int, name: str) -> None:
    while chunk := packed.read(_CHUNK):
        budget -= len(chunk)
        if budget < 0:
            raise BudgetError(f"{name!r} is longer than the zip's directory says")
        out.write(chunk)


def read_rdf(path: Path) -> tuple[dict[str, Any] | None, Check]:
    """Parse a description as bioimageio.spec does (YAML 1.2), or say why that fails."""
    fix = "Write the description again, as plain yaml."
    try:
        content = _parse_rdf(path)
    except UnicodeDecodeError as error:
        text = f"is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
        fix = "Save the description as UTF-8 text."
    except TrapError as error:
        text, fix = f"is refused: {error}", error.fix
    except Exception as error:  # the parser's errors have no common base
        text, fix = f"is not valid yaml: {_yaml_error(error)}", "Correct that line; a yaml checker shows it."
    else:
        if isinstance(content, dict) and all(isinstance(key, str) for key in content):
            return content, Check("archive.rdf", "archive", "passed", f"{path.name} is read")
        text = f"{_held(content)}, a description is a mapping of names to values"
        fix = "Write the description as lines such as 'name: My model'."
    return None, Check("archive.rdf", "archive", "failed", f"{one_sentence(path.name, 80)} {text}", fix)


def _held(content: Any) -> str:
    if content is None:
        return "is empty"
    if isinstance(content, dict):
        return "has names that are no texts"
    return "is a list" if isinstance(content, list) else "is a single value"


def _yaml_error(error: Exception) -> str:
    """What the parser stumbled over, and in which line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    text = one_sentence(problem or error).replace("'<stream end>'", "the end of the file")
    return text if mark is None else f"line {mark.line + 1}: {text}"


def _parse_rdf(path: Path) -> Any:
    from bioimageio.spec.utils import read_yaml

    size = path.stat().st_size
    if size > MAX_RDF_BYTES:
        raise TrapError(f"it has {size} bytes, a description has at most {MAX_RDF_BYTES}")
    # The parser takes a byte order mark for a character of the first key where it is given text.
    text = path.read_text(encoding="utf-8-sig")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one per anchor that is used twice
        refuse_expensive_yaml(text)
        content: Any = read_yaml(StringIO(text))
    refuse_strange_values(content)
    return content
