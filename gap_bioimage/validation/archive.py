"""Open anybody's model package without trusting it: nothing is executed, nothing leaves a temp folder."""

from __future__ import annotations

import errno
import stat
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.validation.checks import Check, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ENTRIES = 10_000
MAX_TOTAL_BYTES = 16 * 2**30
MAX_RATIO = 200.0
RATIO_FREE_BYTES = 64 * 2**20
"""Below this size a high compression ratio is harmless (an all-zero test tensor shrinks 1000-fold)."""
MAX_RDF_BYTES = 2 * 2**20
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
        inside = path.resolve().is_relative_to(self.root.resolve())
        return path if inside and path.is_file() else None


def unsafe_path(name: str) -> str | None:
    """Say why a path inside a package may lead out of it, or None if it cannot.

    Parameters
    ----------
    name
        A zip entry's name or a path written in the description.
    """
    windows = PureWindowsPath(name)
    if not name or "\0" in name:
        return "is empty or holds a null character"
    if windows.drive or (len(name) > 1 and name[1] == ":"):
        return "names a drive"
    if name.startswith(("/", "\\")):
        return "is absolute"
    if ".." in windows.parts or ".." in PurePosixPath(name).parts:
        return "leads out of the package with '..'"
    return None


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
            yield _package_of_folder(source, find_yaml(_names_in(source), source), scratch)
        elif source.suffix.lower() in (".yaml", ".yml"):
            yield _package_of_folder(source.parent, source.name, scratch, source)
        elif zipfile.is_zipfile(source):
            yield _package_of_zip(source, scratch)
        else:
            raise UnreadableModelError(
                f"{source} is not a zip, a folder or a yaml; give a model zip, its folder or its rdf.yaml."
            )


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
    raise UnreadableModelError(
        f"{source} holds no rdf.yaml, bioimageio.yaml or *.model.yaml at its top level; "
        "zip the model's files themselves, not the folder that holds them."
    )


def _names_in(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _package_of_folder(
    folder: Path, rdf_name: str, scratch: Path, source: Path | None = None
) -> tuple[Package | None, list[Check]]:
    rdf, check = read_rdf(folder / rdf_name)
    if rdf is None:
        return None, [check]
    names = tuple(_names_in(folder)) if source is None else (rdf_name,)
    return Package(source or folder, folder.resolve(), rdf_name, rdf, names, scratch), [check]


def _package_of_zip(source: Path, scratch: Path) -> tuple[Package | None, list[Check]]:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            rdf_name = find_yaml([entry.filename for entry in entries], source)
            checks = list(entry_checks(entries))
            if any(check.status == "failed" for check in checks):
                return None, checks
            root = scratch / "package"
            unpack(archive, entries, root)
    except UnreadableModelError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # ours to say, and not the model's fault
            raise OutputError(f"cannot unpack {source} to {scratch}: no space left; free some space there") from None
        return None, [_not_intact(error)]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return None, [_not_intact(error)]
    except BudgetError as error:
        fix = "Keep the package to the files that the model needs."
        return None, [*checks, Check("archive.bomb", "archive", "failed", str(error), fix)]
    checks.append(Check("archive.intact", "archive", "passed", f"all {len(entries)} entries unpack"))
    rdf, check = read_rdf(root / rdf_name)
    checks.append(check)
    if rdf is None:
        return None, checks
    return Package(source, root, rdf_name, rdf, tuple(_names_in(root)), scratch), checks


def _not_intact(error: Exception) -> Check:
    fix = "Write the zip again; it may have been cut short on its way."
    return Check("archive.intact", "archive", "failed", one_sentence(error) or "broken zip", fix)


class BudgetError(Exception):
    """A zip grew beyond what its directory promised while it was unpacked."""


def entry_checks(entries: list[zipfile.ZipInfo]) -> Iterator[Check]:
    """Judge a zip by its directory alone, before a byte is unpacked."""
    unsafe = [f"{entry.filename!r} {why}" for entry in entries if (why := unsafe_path(entry.filename))]
    links = [f"{entry.filename!r} is a link" for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)]
    yield _none_of("archive.paths", unsafe + links, "all paths stay inside", "Zip plain files, by relative paths.")

    # Case matters: Windows and macOS would let the second of README.md and readme.md overwrite the first.
    names = [entry.filename.casefold() for entry in entries]
    twice = sorted({repr(name) for name in names if names.count(name) > 1}) if len(names) <= MAX_ENTRIES else []
    yield _none_of("archive.duplicates", twice, "every name is there once", "Write every file once.")

    locked = [repr(entry.filename) for entry in entries if entry.flag_bits & 0x1]
    yield _none_of("archive.encrypted", locked, "nothing is encrypted", "Zip without a password.")

    total = sum(entry.file_size for entry in entries)
    packed = max(1, sum(entry.compress_size for entry in entries))
    bombs = []
    if len(entries) > MAX_ENTRIES:
        bombs.append(f"{len(entries)} entries, at most {MAX_ENTRIES} are unpacked")
    if total > MAX_TOTAL_BYTES:
        bombs.append(f"{total / 2**30:.1f} GiB unpacked, at most {MAX_TOTAL_BYTES / 2**30:.0f} are")
    if total > RATIO_FREE_BYTES and total / packed > MAX_RATIO:
        bombs.append(f"it grows {total / packed:.0f}-fold when unpacked, at most {MAX_RATIO:.0f}-fold is accepted")
    text = f"{len(entries)} files, {total / 2**20:.1f} MiB"
    yield _none_of("archive.bomb", bombs, text, "Keep the package to the files that the model needs.")


def _none_of(check_id: str, problems: list[str], good: str, fix: str) -> Check:
    if not problems:
        return Check(check_id, "archive", "passed", good)
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return Check(check_id, "archive", "failed", "; ".join(problems[:3]) + more, fix)


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
        if entry.is_dir():
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
    from bioimageio.spec.utils import read_yaml

    fix = "Write the description again; a yaml checker shows the line."
    if path.stat().st_size > MAX_RDF_BYTES:
        text = f"{path.name} has {path.stat().st_size} bytes, a description has at most {MAX_RDF_BYTES}"
        return None, Check("archive.rdf", "archive", "failed", text, fix)
    try:
        content: Any = read_yaml(path)
    except Exception as error:  # the parser's errors have no common base
        text = f"{path.name} is not valid yaml: {one_sentence(error)}"
        return None, Check("archive.rdf", "archive", "failed", text, fix)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        text = f"{path.name} holds {type(content).__name__}, a description is a mapping of names to values"
        return None, Check("archive.rdf", "archive", "failed", text, fix)
    return content, Check("archive.rdf", "archive", "passed", f"{path.name} is read")
