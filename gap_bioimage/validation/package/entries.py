"""Judge the entries of a zip by its directory alone, before a byte is unpacked."""

from __future__ import annotations

import io
import stat
import unicodedata
import zipfile
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from gap_bioimage.validation.checks import Check, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_ENTRIES = 10_000
MAX_TOTAL_BYTES = 16 * 2**30
MAX_RATIO = 200.0
RATIO_FREE_BYTES = 64 * 2**20
"""Below this size a high compression ratio is harmless (an all-zero test tensor shrinks 1000-fold)."""

MAX_DIRECTORY_BYTES = 8 * 2**20
"""A zip's directory; each of its entries takes ten times its size in memory."""

_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
_MAX_FOLDERS = 32
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in "123456789"
}
_LOCAL_HEADER_BYTES = 30


class _ShortReads(io.FileIO):
    """A file of which no large piece can be asked for while ``limit`` is set; zipfile asks for a whole directory."""

    limit: int | None = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise zipfile.BadZipFile(f"its directory has {size} bytes, at most {self.limit} are read")
        return super().read(-1 if size is None else size) or b""


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip, unless its directory is so large that listing it would take long.

    Raises
    ------
    zipfile.BadZipFile
        If it is no zip, or its directory has more than `MAX_DIRECTORY_BYTES`.
    """
    with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        file.limit = None
        yield archive


def none_of(check_id: str, problems: list[str], good: str, fix: str) -> Check:
    """A check of the consumer ``archive`` that passes where there are no problems, and names the first ones."""
    if not problems:
        return Check(check_id, "archive", "passed", good)
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    text = "; ".join(one_sentence(problem, 250) for problem in problems[:3])
    return Check(check_id, "archive", "failed", text + more, fix)


def shown(name: str) -> str:
    """A name of the package for a message: quoted, control characters escaped, not too long."""
    return one_sentence(ascii(name) if not name.isprintable() else repr(name), 100)


def unsafe_path(name: str) -> str | None:
    """Say why a path inside a package may lead out of it on some system, or None if it cannot.

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
    return _unportable(name)


def _unportable(name: str) -> str | None:
    """Names that one system takes for something else than another does."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        return "holds control characters"
    if "\\" in name:
        return "holds a backslash, which Windows takes for a folder"
    if len(name.encode()) > _MAX_PATH_BYTES or any(len(p.encode()) > _MAX_NAME_BYTES for p in name.split("/")):
        return f"is longer than {_MAX_NAME_BYTES} bytes"
    if name.count("/") > _MAX_FOLDERS:
        return f"lies more than {_MAX_FOLDERS} folders deep"
    for part in PurePosixPath(name).parts:
        if part.split(".")[0].rstrip(" ").casefold() in _DEVICES:
            return f"names the device {part.split('.')[0]!r} of Windows"
        if part.endswith((".", " ")):
            return "ends in a dot or a space, which Windows drops"
        if ":" in part:
            return "holds a colon, which names a hidden stream on Windows"
    return None


def entry_checks(entries: list[zipfile.ZipInfo]) -> Iterator[Check]:
    """Judge a zip by its directory alone, before a byte is unpacked."""
    fewer = "Keep the package to the files that the model needs."
    if len(entries) > MAX_ENTRIES:  # too many to be looked at one by one
        text = f"{len(entries)} entries, at most {MAX_ENTRIES} are unpacked"
        yield Check("archive.bomb", "archive", "failed", text, fewer)
        return
    unsafe = [f"{shown(entry.filename)} {why}" for entry in entries if (why := unsafe_path(entry.filename))]
    special = [f"{shown(entry.filename)} is {kind}" for entry in entries if (kind := _special(entry))]
    yield none_of("archive.paths", unsafe + special, "all paths stay inside", "Zip plain files, by relative paths.")
    yield none_of("archive.duplicates", _collisions(entries), "every name is there once", "Write every file once.")

    locked = [shown(entry.filename) for entry in entries if entry.flag_bits & 0x1]
    yield none_of("archive.encrypted", locked, "nothing is encrypted", "Zip without a password.")

    plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    odd = [f"{shown(e.filename)} has method {e.compress_type}" for e in entries if e.compress_type not in plain]
    fix = "Zip with deflate, or without compression; Java reads nothing else."
    yield none_of("archive.compression", odd, "every entry is stored or deflated", fix)

    total = sum(entry.file_size for entry in entries)
    text = f"{len(entries)} files, {total / 2**20:.1f} MiB"
    yield none_of("archive.bomb", _bombs(entries, total), text, fewer)


def _special(entry: zipfile.ZipInfo) -> str | None:
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "a link"
    kind = stat.S_IFMT(mode)
    return None if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "no plain file"


def _collisions(entries: list[zipfile.ZipInfo]) -> list[str]:
    """Entries of which one would overwrite the other: on Windows and macOS, README.md and readme.md are one."""
    files = Counter(_folded(entry.filename) for entry in entries if not entry.filename.endswith("/"))
    twice = [f"{shown(str(path))} is there {count} times" for path, count in files.items() if count > 1]
    folders = {parent for path in files for parent in path.parents}
    folders |= {_folded(entry.filename) for entry in entries if entry.filename.endswith("/")}
    both = [f"{shown(str(path))} is a file and a folder" for path in sorted(files.keys() & folders)]
    return sorted(twice) + both


def _folded(name: str) -> PurePosixPath:
    return PurePosixPath(unicodedata.normalize("NFC", name).casefold())  # also drops '.' and doubled slashes


def _bombs(entries: list[zipfile.ZipInfo], total: int) -> list[str]:
    packed = max(1, sum(entry.compress_size for entry in entries))
    found = []
    if total > MAX_TOTAL_BYTES:
        found.append(f"{total / 2**30:.1f} GiB unpacked, at most {MAX_TOTAL_BYTES / 2**30:.0f} are")
    if total > RATIO_FREE_BYTES and total / packed > MAX_RATIO:
        found.append(f"it grows {total / packed:.0f}-fold when unpacked, at most {MAX_RATIO:.0f}-fold is accepted")
    by_place = sorted(entries, key=lambda entry: entry.header_offset)
    for entry, following in pairwise(by_place):
        if entry.header_offset + _LOCAL_HEADER_BYTES + entry.compress_size > following.header_offset:
            found.append(f"{shown(entry.filename)} and {shown(following.filename)} share bytes of the zip")
    return found
