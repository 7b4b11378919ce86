"""A zip's entries, judged by its directory before a byte is unpacked."""

import io
import stat
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath

from gap_bioimage.validation.check import BLOCKS, Check, declare, one_sentence

MAX_ENTRIES = 10_000
MAX_TOTAL_BYTES = 16 * 2**30
MAX_RATIO = 200.0
RATIO_FREE_BYTES = 64 * 2**20  # below this a high compression ratio is harmless: zeros shrink 1000-fold
MAX_DIRECTORY_BYTES = 8 * 2**20  # each entry of a zip's directory takes ten times its size in memory
_MAX_NAME_BYTES, _MAX_PATH_BYTES, _MAX_FOLDERS = 255, 1024, 32
_LOCAL_HEADER_BYTES = 30
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10)}

PATHS, _DUPLICATES, _ENCRYPTED, _COMPRESSION, _BOMB = (
    declare(f"archive.{name}", "archive", BLOCKS, order=order, asks=asks, breaks=breaks, fix=fix)
    for order, (name, asks, breaks, fix) in enumerate((
        ("paths", "Paths that stay inside the package.", "unpacking it would write elsewhere",
         "Zip plain files, by relative paths."),
        ("duplicates", "Every name once, also where upper and lower case count as one.",
         "programs take different files of one name", "Write every file once."),
        ("encrypted", "No password.", "nobody can read it", "Zip without a password."),
        ("compression", "Entries that are stored or deflated.", "Java programs such as Fiji cannot unpack it",
         "Zip with deflate, or without compression."),
        ("bomb", "A size that can be unpacked.", "it would fill a user's disk",
         "Keep the package to the files that the model needs."),
    ))
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
    """Open a zip; `zipfile.BadZipFile` where it is none, or has so large a directory that listing it takes long."""
    with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        file.limit = None
        yield archive


def shown(name: str) -> str:
    """A name of the package for a message: quoted, control characters escaped, not too long."""
    return one_sentence(repr(name) if name.isprintable() else ascii(name), 100)


def few(items: list[str], n: int = 3) -> str:
    """The first of several findings, and how many more there are."""
    more = f" and {len(items) - n} more" if len(items) > n else ""
    return "; ".join(one_sentence(item, 250) for item in items[:n]) + more


def unsafe_path(name: str) -> str | None:
    """Why a path inside a package may lead out of it, or mean another file, on some system; None if it is safe."""
    windows, parts = PureWindowsPath(name), PurePosixPath(name).parts
    n_bytes = [len(part.encode(errors="surrogatepass")) for part in (name, *name.split("/"))]
    devices = [stem for part in parts if (stem := part.split(".")[0].rstrip(" ")).casefold() in _DEVICES]
    problems = (
        (not name or "\0" in name, "is empty or holds a null character"),
        (windows.drive or name[1:2] == ":", "names a drive"),
        (name.startswith(("/", "\\")), "is absolute"),
        (".." in (*windows.parts, *parts), "leads out of the package with '..'"),
        (any(unicodedata.category(char) in ("Cc", "Cs") for char in name), "holds control characters"),
        ("\\" in name, "holds a backslash, which Windows takes for a folder"),
        (n_bytes[0] > _MAX_PATH_BYTES or max(n_bytes[1:]) > _MAX_NAME_BYTES, f"is longer than {_MAX_NAME_BYTES} bytes"),
        (name.count("/") > _MAX_FOLDERS, f"lies more than {_MAX_FOLDERS} folders deep"),
        (devices, f"names the device {devices[0] if devices else ''!r} of Windows"),
        (any(part.endswith((".", " ")) for part in parts), "ends in a dot or a space, which Windows drops"),
        (":" in name, "holds a colon, which names a hidden stream on Windows"),
    )
    return next((why for is_so, why in problems if is_so), None)


def entry_checks(entries: list[zipfile.ZipInfo]) -> Iterator[Check]:
    """Judge a zip by its directory alone."""
    if len(entries) > MAX_ENTRIES:  # too many to be looked at one by one
        yield _BOMB.violated(f"{len(entries)} entries, at most {MAX_ENTRIES} are unpacked")
        return
    names = [(shown(entry.filename), entry) for entry in entries]
    unsafe = [f"{name} {why}" for name, entry in names if (why := unsafe_path(entry.filename))]
    kinds = [(name, stat.S_IFMT(entry.external_attr >> 16)) for name, entry in names]
    unsafe += [f"{name} is a link" for name, kind in kinds if kind == stat.S_IFLNK]
    plain = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
    unsafe += [f"{name} is not a plain file" for name, kind in kinds if kind not in plain]
    locked = [f"{name} is encrypted" for name, entry in names if entry.flag_bits & 0x1]
    methods = [(name, entry.compress_type) for name, entry in names]
    odd = [f"{name} has method {n}" for name, n in methods if n not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    total = sum(entry.file_size for entry in entries)
    for definition, problems, good in (
        (PATHS, unsafe, "all paths stay inside"),
        (_DUPLICATES, _collisions(entries), "every name is there once"),
        (_ENCRYPTED, locked, "nothing is encrypted"),
        (_COMPRESSION, odd, "every entry is stored or deflated"),
        (_BOMB, list(_bombs(entries, total)), f"{len(entries)} files, {total / 2**20:.1f} MiB"),
    ):
        yield definition.violated(few(problems)) if problems else definition.passed(good)


def _collisions(entries: list[zipfile.ZipInfo]) -> list[str]:
    """Entries of which one would overwrite the other: on Windows and macOS, README.md and readme.md are one."""
    # a path also drops '.' and doubled slashes
    folded = [(PurePosixPath(unicodedata.normalize("NFC", e.filename).casefold()), e.is_dir()) for e in entries]
    files = Counter(path for path, is_folder in folded if not is_folder)
    folders = {path for path, is_folder in folded if is_folder} | {parent for path in files for parent in path.parents}
    twice = [f"{shown(str(path))} is there {count} times" for path, count in files.items() if count > 1]
    return sorted(twice) + [f"{shown(str(path))} is a file and a folder" for path in sorted(files.keys() & folders)]


def _bombs(entries: list[zipfile.ZipInfo], total: int) -> Iterator[str]:
    ratio = total / max(1, sum(entry.compress_size for entry in entries))
    if total > MAX_TOTAL_BYTES:
        yield f"{total / 2**30:.1f} GiB unpacked, at most {MAX_TOTAL_BYTES / 2**30:.0f} are"
    if total > RATIO_FREE_BYTES and ratio > MAX_RATIO:
        yield f"it grows {ratio:.0f}-fold when unpacked, at most {MAX_RATIO:.0f}-fold is accepted"
    for entry, following in pairwise(sorted(entries, key=lambda entry: entry.header_offset)):
        if entry.header_offset + _LOCAL_HEADER_BYTES + entry.compress_size > following.header_offset:
            yield f"{shown(entry.filename)} and {shown(following.filename)} share bytes of the zip"
