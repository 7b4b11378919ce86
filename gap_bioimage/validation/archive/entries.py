"""A zip's entries, judged by its directory before a byte is unpacked."""

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

from gap_bioimage.validation.check import Severity, declare, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from gap_bioimage.validation.check import Check, Definition

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
_LOCAL_HEADER_BYTES = 30
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10)}

PATHS = declare(
    "archive.paths", "archive", Severity.BLOCKS, order=0, asks="Paths that stay inside the package.",
    breaks="unpacking it would write elsewhere", fix="Zip plain files, by relative paths.",
)  # fmt: skip
_DUPLICATES = declare(
    "archive.duplicates", "archive", Severity.BLOCKS, order=1,
    asks="Every name once, also where upper and lower case count as one.",
    breaks="programs take different files of one name", fix="Write every file once.",
)  # fmt: skip
_ENCRYPTED = declare(
    "archive.encrypted", "archive", Severity.BLOCKS, order=2, asks="No password.", breaks="nobody can read it",
    fix="Zip without a password.",
)  # fmt: skip
_COMPRESSION = declare(
    "archive.compression", "archive", Severity.BLOCKS, order=3, asks="Entries that are stored or deflated.",
    breaks="Java programs such as Fiji cannot unpack it", fix="Zip with deflate, or without compression.",
)  # fmt: skip
BOMB = declare(
    "archive.bomb", "archive", Severity.BLOCKS, order=4, asks="A size that can be unpacked.",
    breaks="it would fill a user's disk", fix="Keep the package to the files that the model needs.",
)  # fmt: skip


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
        If it is not a zip, or its directory has more than `MAX_DIRECTORY_BYTES`.
    """
    with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        file.limit = None
        yield archive


def shown(name: str) -> str:
    """A name of the package for a message: quoted, control characters escaped, not too long."""
    return one_sentence(ascii(name) if not name.isprintable() else repr(name), 100)


def few(items: list[str]) -> str:
    """The first three of several findings, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return "; ".join(one_sentence(item, 250) for item in items[:3]) + more


def none_of(definition: Definition, problems: list[str], good: str) -> Check:
    """A check that passes where there are no problems, and names the first ones."""
    return definition.violated(few(problems)) if problems else definition.passed(good)


def unsafe_path(name: str) -> str | None:
    """Say why a path inside a package (of an entry, or in the description) may lead out of it on some system.

    None if it cannot, and every system understands it alike.
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
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        return "holds control characters"
    if "\\" in name:
        return "holds a backslash, which Windows takes for a folder"
    if len(name.encode()) > _MAX_PATH_BYTES or any(len(part.encode()) > _MAX_NAME_BYTES for part in name.split("/")):
        return f"is longer than {_MAX_NAME_BYTES} bytes"
    if name.count("/") > _MAX_FOLDERS:
        return f"lies more than {_MAX_FOLDERS} folders deep"
    return next((why for part in PurePosixPath(name).parts if (why := _unportable(part))), None)


def _unportable(part: str) -> str | None:
    stem = part.split(".")[0]
    if stem.rstrip(" ").casefold() in _DEVICES:
        return f"names the device {stem!r} of Windows"
    if part.endswith((".", " ")):
        return "ends in a dot or a space, which Windows drops"
    return "holds a colon, which names a hidden stream on Windows" if ":" in part else None


def entry_checks(entries: list[zipfile.ZipInfo]) -> Iterator[Check]:
    """Judge a zip by its directory alone."""
    if len(entries) > MAX_ENTRIES:  # too many to be looked at one by one
        yield BOMB.violated(f"{len(entries)} entries, at most {MAX_ENTRIES} are unpacked")
        return
    unsafe = [f"{shown(entry.filename)} {why}" for entry in entries if (why := unsafe_path(entry.filename))]
    special = [f"{shown(entry.filename)} is {kind}" for entry in entries if (kind := _special(entry))]
    yield none_of(PATHS, unsafe + special, "all paths stay inside")
    yield none_of(_DUPLICATES, _collisions(entries), "every name is there once")
    locked = [f"{shown(entry.filename)} is encrypted" for entry in entries if entry.flag_bits & 0x1]
    yield none_of(_ENCRYPTED, locked, "nothing is encrypted")
    plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    odd = [f"{shown(e.filename)} has method {e.compress_type}" for e in entries if e.compress_type not in plain]
    yield none_of(_COMPRESSION, odd, "every entry is stored or deflated")
    total = sum(entry.file_size for entry in entries)
    yield none_of(BOMB, list(_bombs(entries, total)), f"{len(entries)} files, {total / 2**20:.1f} MiB")


def _special(entry: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link"
    return None if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "not a plain file"


def _collisions(entries: list[zipfile.ZipInfo]) -> list[str]:
    """Entries of which one would overwrite the other: on Windows and macOS, README.md and readme.md are one."""
    files = Counter(_folded(entry.filename) for entry in entries if not entry.filename.endswith("/"))
    twice = [f"{shown(str(path))} is there {count} times" for path, count in files.items() if count > 1]
    folders = {parent for path in files for parent in path.parents}
    folders |= {_folded(entry.filename) for entry in entries if entry.filename.endswith("/")}
    return sorted(twice) + [f"{shown(str(path))} is a file and a folder" for path in sorted(files.keys() & folders)]


def _folded(name: str) -> PurePosixPath:
    return PurePosixPath(unicodedata.normalize("NFC", name).casefold())  # also drops '.' and doubled slashes


def _bombs(entries: list[zipfile.ZipInfo], total: int) -> Iterable[str]:
    packed = max(1, sum(entry.compress_size for entry in entries))
    if total > MAX_TOTAL_BYTES:
        yield f"{total / 2**30:.1f} GiB unpacked, at most {MAX_TOTAL_BYTES / 2**30:.0f} are"
    if total > RATIO_FREE_BYTES and total / packed > MAX_RATIO:
        yield f"it grows {total / packed:.0f}-fold when unpacked, at most {MAX_RATIO:.0f}-fold is accepted"
    for entry, following in pairwise(sorted(entries, key=lambda entry: entry.header_offset)):
        if entry.header_offset + _LOCAL_HEADER_BYTES + entry.compress_size > following.header_offset:
            yield f"{shown(entry.filename)} and {shown(following.filename)} share bytes of the zip"
