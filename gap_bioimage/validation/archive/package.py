"""Open an untrusted model package: a zip is judged by its directory before any byte of it is unpacked.

Nothing is executed, and nothing is written outside a temp folder.
"""

import errno
import filecmp
import io
import os
import stat
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.validation.archive.rdf import FileReference, read_rdf, references
from gap_bioimage.validation.check import BLOCKS, DEGRADES, Check, counted, declare, one_sentence

MAX_ENTRIES = 10_000
MAX_DIRECTORY_BYTES = 8 * 2**20  # each entry of a zip's directory takes ten times its size in memory
MAX_TOTAL_BYTES = 16 * 2**30
MAX_RATIO = 200.0
RATIO_FREE_BYTES = 64 * 2**20  # below this a high compression ratio is harmless: zeros shrink 1000-fold
_MAX_PATH_BYTES, _MAX_PART_BYTES = 1024, 255  # limits of macOS, and of every file system
_LOCAL_HEADER_BYTES = 30
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10)}

_PATHS, _DUPLICATES, _ENCRYPTED, _COMPRESSION, _BOMB, _INTACT = (
    declare(f"archive.{name}", "archive", BLOCKS, order=order, asks=asks, breaks=breaks, fix=fix)
    for order, (name, asks, breaks, fix) in enumerate((
        ("paths", "Paths that stay inside the package.", "unpacking it would write files elsewhere",
         "Zip plain files with relative paths."),
        ("duplicates", "Unique names, even on systems that ignore case.",
         "programs choose different files of the same name", "Write every file once."),
        ("encrypted", "No password.", "nobody can read it", "Zip without a password."),
        ("compression", "Entries that are stored or deflated.", "Java programs such as Fiji cannot unpack it",
         "Zip with deflate, or without compression."),
        ("bomb", "A size that can be unpacked.", "unpacking it would fill the disk",
         "Include only files that the model needs."),
        ("intact", "A complete zip.", "it cannot be unpacked",
         "Write the zip again; it may have been cut off in a transfer."),
    ))
)  # fmt: skip


def shown(name: str) -> str:
    """Format a file name for a message: quoted, control characters escaped, shortened."""
    return one_sentence(repr(name) if name.isprintable() else ascii(name), 100)


def few(items: list[str], n: int = 3) -> str:
    """Join the first ``n`` of several findings, and count the others."""
    more = f" and {len(items) - n} more" if len(items) > n else ""
    return "; ".join(one_sentence(item, 250) for item in items[:n]) + more


class _ShortReads(io.FileIO):
    """A file that refuses large reads while ``limit`` is set: zipfile reads the whole directory at once."""

    limit: int | None = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise zipfile.BadZipFile(f"its directory has {size} bytes, at most {self.limit} are read")
        return super().read(-1 if size is None else size) or b""


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip; `zipfile.BadZipFile` if it is not a zip, or its directory is so large that listing it takes long."""
    with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        file.limit = None
        yield archive


def unsafe_path(name: str) -> str | None:
    """Return why a path may lead out of its package, or to another file, on some system; None if it is safe."""
    parts, encoded = PurePosixPath(name).parts, name.encode(errors="surrogatepass")
    devices = [stem for part in parts if (stem := part.split(".")[0].rstrip(" ")).casefold() in _DEVICES]
    problems = (
        (not name, "is empty"),
        (name.startswith(("/", "\\")), "is absolute"),
        (".." in (*PureWindowsPath(name).parts, *parts), "leads out of the package with '..'"),
        (any(unicodedata.category(char) in ("Cc", "Cs") for char in name), "contains control characters"),
        ("\\" in name, "contains a backslash, which separates folders on Windows"),
        (len(encoded) > _MAX_PATH_BYTES, f"is longer than {_MAX_PATH_BYTES} bytes"),
        (max(map(len, encoded.split(b"/"))) > _MAX_PART_BYTES, f"contains a name longer than {_MAX_PART_BYTES} bytes"),
        (devices, f"names the device {''.join(devices[:1])!r} of Windows"),
        (any(part.endswith((".", " ")) for part in parts), "ends in a dot or a space, which Windows drops"),
        (":" in name, "contains a colon, which names a drive or a hidden stream on Windows"),
    )
    return next((why for applies, why in problems if applies), None)


def entry_checks(entries: list[zipfile.ZipInfo]) -> Iterator[Check]:
    """Judge a zip by its directory alone."""
    if len(entries) > MAX_ENTRIES:  # too many to examine one by one
        yield _BOMB.violated(f"{len(entries)} entries, at most {MAX_ENTRIES} are unpacked")
        return
    total, named = sum(entry.file_size for entry in entries), [(shown(entry.filename), entry) for entry in entries]
    methods = [(name, entry.compress_type) for name, entry in named]
    supported = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    unsupported = [f"{name} has compression method {n}" for name, n in methods if n not in supported]
    for definition, problems, good in (
        (_PATHS, [f"{name} {why}" for name, e in named if (why := unsafe_path(e.filename) or _special(e))], _STAY),
        (_DUPLICATES, _collisions(entries), "every name is unique"),
        (_ENCRYPTED, [f"{name} is encrypted" for name, e in named if e.flag_bits & 0x1], "nothing is encrypted"),
        (_COMPRESSION, unsupported, "every entry is stored or deflated"),
        (_BOMB, list(_bombs(entries, total)), f"{counted(len(entries), 'file')}, {total / 2**20:.1f} MiB"),
    ):
        yield definition.violated(few(problems)) if problems else definition.passed(good)


def _special(entry: zipfile.ZipInfo) -> str:
    is_plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
    return "" if is_plain else "is a link or a device, not a plain file"


def _collisions(entries: list[zipfile.ZipInfo]) -> list[str]:
    """Return entries that would overwrite each other: on Windows and macOS, README.md and readme.md are one file."""
    # PurePosixPath also drops '.' and doubled slashes
    files = [PurePosixPath(fold(entry.filename)) for entry in entries if not entry.is_dir()]
    folders = {PurePosixPath(fold(entry.filename)) for entry in entries if entry.is_dir()}
    counts = Counter([*files, *folders.union(*(path.parents for path in files))])
    return [f"{shown(str(path))} occurs {counts[path]} times" for path in sorted({*files}) if counts[path] > 1]


def fold(name: str) -> str:
    """Normalise a name as systems do that distinguish neither upper and lower case nor the encodings of an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def _bombs(entries: list[zipfile.ZipInfo], total: int) -> Iterator[str]:
    ratio = total / max(1, sum(entry.compress_size for entry in entries))
    if total > MAX_TOTAL_BYTES:
        yield f"{total / 2**30:.1f} GiB unpacked, at most {MAX_TOTAL_BYTES / 2**30:.0f} GiB are accepted"
    if total > RATIO_FREE_BYTES and ratio > MAX_RATIO:
        yield f"it grows {ratio:.0f}-fold when unpacked, at most {MAX_RATIO:.0f}-fold is accepted"
    for entry, following in pairwise(sorted(entries, key=lambda entry: entry.header_offset)):
        if entry.header_offset + _LOCAL_HEADER_BYTES + entry.compress_size > following.header_offset:
            yield f"{shown(entry.filename)} and {shown(following.filename)} share bytes of the zip"


_YAML_NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml", "rdf.yml", "bioimageio.yml")
_WANTED = "give a model zip, its folder or its rdf.yaml"
_CUT_OFF = "was cut off and has no end"
_STAY = "all paths stay inside"

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

    @property
    def remote_weights(self) -> list[str]:
        """Formats of weights that need files from a server."""
        return list(dict.fromkeys(r.where.split(".")[1] for r in self.remote if r.where.startswith("weights.")))

    @cached_property
    def named(self) -> dict[str, Path]:
        """The packaged files that the description refers to, by their paths as written there."""
        found = ((reference.path, self.file(reference.path)) for reference in self.references)
        return {name: path for name, path in found if path is not None}

    def file(self, name: object) -> Path | None:
        """Return the file of that name inside the package; None if it is absent or outside."""
        if not isinstance(name, str) or unsafe_path(name):
            return None
        path = self.root / name
        return path if path.is_file() and _inside(path, self.root) else None

    def holds(self, path: Path) -> bool:
        """Return whether a file is the zip itself, the description, or one that the description names."""
        own = [self.source] if self.is_zip else [self.root / self.rdf_name, *self.named.values()]
        return path.exists() and any(path.samefile(file) for file in own)

    def names_outside(self, name: str) -> bool:
        """Return whether a text is the path of a file outside the package, or of a link to one."""
        if os.name == "nt" and name.startswith(("\\\\", "//")):
            return True  # even testing whether it exists would contact another computer
        try:
            path = self.root / name
            return path.is_file() and not _inside(path, self.root)
        except (OSError, ValueError):  # not a path at all, like most texts
            return False


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # circular links
        return False


@contextmanager
def open_package(path: str | Path) -> Iterator[tuple[Package | None, list[Check]]]:
    """Open a zip, a folder or a yaml; yield the package and the checks of it as an archive.

    The package is None if it is too damaged or too dangerous to be unpacked. `UnreadableModelError` is raised if the
    path is missing, is none of the three, or holds no description.
    """
    source = Path(path)
    if not source.exists():
        raise UnreadableModelError(f"{source} does not exist; {_WANTED} (nothing is downloaded).")
    is_folder, is_yaml = source.is_dir(), source.suffix.lower() in (".yaml", ".yml")
    if not (is_folder or source.is_file()):  # reading from a pipe would wait for ever
        raise UnreadableModelError(f"{source} is not a plain file; {_WANTED}.")
    if not (is_folder or is_yaml or zipfile.is_zipfile(source)):
        raise UnreadableModelError(f"{source} is not a zip, or {_CUT_OFF}; {_WANTED}.")
    # If the temp folder is a symlink (macOS), unresolved paths would all appear to be outside of it.
    with tempfile.TemporaryDirectory(prefix="gap-validate-", ignore_cleanup_errors=True) as temp:
        scratch = Path(temp).resolve()
        root = source.resolve() if is_folder else source.parent.resolve() if is_yaml else scratch / "package"
        if is_folder:
            rdf_name, checks = _find_yaml(_files_in(root), source), [_links(root)]
        else:
            rdf_name, checks = (source.name, []) if is_yaml else _unpack(source, root)
        if any(check.status == "failed" for check in checks):
            yield None, checks
            return
        rdf, check = read_rdf(root / rdf_name)
        checks.append(check)
        names = (source.name,) if is_yaml else tuple(_files_in(root))
        # Programs prefer different names, so one may run another description than the one checked here.
        others = [name for name in _YAML_NAMES if name in names and rdf is not None]
        if different := [n for n in others if not filecmp.cmp(root / n, root / rdf_name, shallow=False)]:
            text = f"{rdf_name} was read, but other programs may prefer {', '.join(different)}, with other content"
            checks.append(_ONE_RDF.violated(text))
        yield None if rdf is None else Package(source, root, rdf_name, rdf, names, scratch), checks


def _find_yaml(names: list[str], source: Path) -> str:
    endings = tuple(f".{name}" for name in _YAML_NAMES)
    found = [name for name in _YAML_NAMES if name in names]
    found += sorted(name for name in names if "/" not in name and name.lower().endswith(endings))
    if found:
        return found[0]
    # in a zip that was cut off, zipfile finds the directory of an inner zip, such as weights
    inside = [shown(name) for name in names if name.lower().endswith((*_YAML_NAMES, ".zip"))]
    problem = f"{source} holds no rdf.yaml, bioimageio.yaml or *.model.yaml at its top level"
    problem += f", but {few(inside)}" if inside else ""
    hint = f", or {_CUT_OFF}; zip the model's files themselves, not their folder or zip."
    if source.is_dir():
        hint = f"; {_WANTED} (`gap-bioimage export` makes a zip of a training run)."
    raise UnreadableModelError(problem + hint)


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _links(folder: Path) -> Check:
    outside = [path for path in sorted(folder.rglob("*")) if path.is_symlink() and not _inside(path, folder)]
    names = [shown(path.relative_to(folder).as_posix()) for path in outside]
    text = few([f"{name} is a link that leads out of the folder" for name in names])
    return _PATHS.violated(text, "Put the files themselves into the folder.") if text else _PATHS.passed(_STAY)


def _unpack(source: Path, root: Path) -> tuple[str, list[Check]]:
    """Return the name of the description in a zip, and the checks; unpack the zip if all of them pass."""
    rdf_name, checks = "", list[Check]()
    try:
        with open_zip(source) as archive:
            rdf_name = _find_yaml(archive.namelist(), source)
            checks += entry_checks(archive.infolist())
            if all(check.status == "passed" for check in checks):
                archive.extractall(root)  # never more of an entry than the directory states
                checks.append(_INTACT.passed("every entry can be unpacked"))
    except UnreadableModelError:
        raise
    except Exception as error:  # zipfile and the decompressors may raise anything
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # not the model's fault
            raise OutputError(f"cannot unpack {source} to {root}: no space left; free some space there") from None
        damage = one_sentence(str(error).replace(f"{root.parent}{os.sep}", "")) or "the zip is broken"
        checks.append(_INTACT.violated(damage))
    return rdf_name, checks
