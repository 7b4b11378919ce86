"""The files that a description names: one walk over it, and whether they lie inside, are there, and are unchanged."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.archive.entries import few, shown, unsafe_path
from gap_bioimage.validation.archive.rdf import walked
from gap_bioimage.validation.check import Outcome, Severity, archive_check, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gap_bioimage.validation.archive.package import Package

_LISTS = ("covers", "test_inputs", "test_outputs", "sample_inputs", "sample_outputs", "files")
"""Lists of file names; ``attachments.files`` is the last one."""
_FIELDS = ("documentation", "icon")
_FREE_FIELDS = ("config", "cite", "badges", "training_data", "parent")
"""Fields whose content is not ours to interpret, or that name other resources."""
_MAX_DOCUMENTATION_BYTES = 16 * 2**20
"""The documentation is read as a whole, by bioimageio.spec too."""
_MANAGED = re.compile(r"(?:\w{2,}:)?(?P<path>.*)", re.DOTALL)
"""Dependencies in format 0.4: ``conda:environment.yaml``, ``pip:requirements.txt``."""
_CALLABLE = re.compile(r"(?P<path>.*\.py)::?[^:/\\]*", re.DOTALL)
"""An architecture in formats 0.3 and 0.4: ``unet.py:UNet2d``."""


@dataclass(frozen=True, slots=True)
class FileReference:
    """A place in a description that names a file or a URL.

    Parameters
    ----------
    where
        The field as one reads it, e.g. ``weights.onnx.source``.
    holder, key
        The mapping or list that holds it, and its key there.
    path
        The path or URL, without what formats 0.3 and 0.4 write around it.
    hash_key
        The key in ``holder`` of the file's sha256; empty where none can be stated.
    """

    where: str
    holder: Any
    key: Any
    path: str
    hash_key: str = ""

    @property
    def name(self) -> str:
        """The file's name inside the package, without ``./`` and with slashes as on Unix."""
        return PurePosixPath(self.path.replace("\\", "/")).as_posix()

    @property
    def sha256(self) -> str | None:
        """The stated sha256, if any."""
        stated = self.holder.get(self.hash_key) if self.hash_key else None
        return stated if isinstance(stated, str) else None

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL."""
        return is_url(self.path)

    def point_to(self, name: str) -> None:
        """Name another file; a manager before the name and a class behind it stay."""
        before, _, after = str(self.holder[self.key]).rpartition(self.path)
        self.holder[self.key] = before + name + after


def is_url(text: str) -> bool:
    """Whether some reader may take a text for a URL: case, blanks and missing slashes do not matter to all of them."""
    return "://" in text or re.match(r"https?:", re.sub(r"\s", "", text), re.IGNORECASE) is not None


def references(rdf: dict[str, Any]) -> Iterator[FileReference]:
    """All places of a description of format 0.3 to 0.5 that name a file."""
    for key, value in rdf.items():
        if key not in _FREE_FIELDS:
            yield from _references(rdf, key, value, key)


def _references(holder: Any, key: Any, value: Any, where: str) -> Iterator[FileReference]:
    if isinstance(value, str):
        yield from _reference(holder, key, value, where)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _references(value, index, item, f"{where}[{index}]")
    elif isinstance(value, dict) and key != "kwargs":
        for name, item in value.items():
            yield from _references(value, name, item, f"{where}.{name}")


def _reference(holder: Any, key: Any, value: str, where: str) -> Iterator[FileReference]:
    field = where.rsplit(".", 1)[-1].split("[")[0]
    called = _CALLABLE.fullmatch(value)
    if isinstance(key, int):
        if field in _LISTS and (field != "files" or "attachments.files" in where):
            yield FileReference(where, holder, key, value)
    elif key == "source" and (where != "source" or called):  # format 0.3 may name a module there
        yield FileReference(where, holder, key, called["path"] if called else value, "sha256")
    elif key == "architecture" and called:
        yield FileReference(where, holder, key, called["path"], "architecture_sha256")
    elif key == "dependencies":
        managed = _MANAGED.fullmatch(value)
        path = value if is_url(value) or managed is None else managed["path"]
        yield FileReference(where, holder, key, path)
    # An icon may be an emoji; documentation may have been written in full by mistake.
    elif where in _FIELDS and "." in value and "\n" not in value and len(value) < 1000:
        yield FileReference(where, holder, key, value)


def _local(package: Package) -> list[FileReference]:
    """References to files that may lie in the package, each file and hash once."""
    local = [r for r in package.references if not r.is_remote and not unsafe_path(r.path)]
    return list({(r.path, r.sha256): r for r in reversed(local)}.values())[::-1]


@archive_check("archive.references", Severity.BLOCKS, order=8, breaks="programs would read other files",
               fix="Refer to files by their names inside the package.")  # fmt: skip
def inside(package: Package) -> Outcome | str:
    """References to files inside the package."""
    refused = [r for r in package.references if not r.is_remote and unsafe_path(r.path)]
    dangers = [f"{r.where} {shown(r.path)} {unsafe_path(r.path)}" for r in refused]
    # Other formats' fields may name files too: whatever names one outside is not to be read.
    texts = dict.fromkeys(value for value in walked(package.rdf) if isinstance(value, str) and 0 < len(value) < 4096)
    dangers += [
        f"{shown(text)} is a file outside the package"
        for text in texts
        if text not in {r.path for r in refused} and any(map(package.names_outside, _paths_in(text)))
    ]
    written = package.rdf.get("documentation")
    path = package.file(written.get("source") if isinstance(written, dict) else written)
    if path is not None and (size := path.stat().st_size) > _MAX_DOCUMENTATION_BYTES:
        limit = f"at most {_MAX_DOCUMENTATION_BYTES >> 20} MiB are read"
        dangers.append(f"the documentation has {size / 2**20:.0f} MiB, {limit}")
    return few(dangers) or Outcome("passed", f"{len(_local(package))} referenced files lie inside the package")


def _paths_in(text: str) -> list[str]:
    """A text as a path, and as formats 0.3 and 0.4 write them: ``file.py:Callable``, ``conda:file.yaml``."""
    return [text, *(text.rsplit(":", 1)[:1] + text.split(":", 1)[1:] if ":" in text else [])]


@archive_check("archive.files", Severity.BLOCKS, order=9, breaks="the model cannot be loaded",
               fix="Add the file, or correct its path.")  # fmt: skip
def present(package: Package) -> Outcome | str:
    """Every file that the description names."""
    absent = [f"{r.where} {shown(r.path)} is not there" for r in _local(package) if package.file(r.path) is None]
    if absent:
        return few(absent)
    unnamed = sorted({*package.names} - {r.name for r in package.references} - {package.rdf_name})
    text = "every referenced file is there"
    return Outcome("passed", f"{text}; the description does not name {', '.join(map(shown, unnamed[:5]))}"
                   + (f" and {len(unnamed) - 5} more" if len(unnamed) > 5 else "") if unnamed else text)  # fmt: skip


@archive_check(
    "archive.hashes", Severity.BLOCKS, order=10, breaks="programs refuse changed files",
    fix="Download it again; if you changed the file on purpose, write its own sha256 into the description.",
)  # fmt: skip
def unchanged(package: Package) -> Outcome | str:
    """Files with the sha256 that the description states."""
    wrong, n_stated, n_silent = [], 0, 0
    for reference in _local(package):
        path, stated = package.file(reference.path), reference.sha256
        if path is None or stated is None:
            n_silent += path is not None
            continue
        try:
            n_stated += 1
            if sha256_of(path) != stated.lower():
                wrong.append(f"{reference.where}: {shown(reference.path)} does not have the stated sha256")
        except OSError as error:
            wrong.append(f"{reference.where}: {shown(reference.path)} cannot be read: {error.strerror or error}")
    return few(wrong) or Outcome("passed", f"{n_stated} sha256 sums agree, {n_silent} are not stated")


@archive_check("archive.remote", Severity.DEGRADES, order=11, breaks="it works with a network only",
               fix="Put the files into the package.")  # fmt: skip
def local(package: Package) -> str | None:
    """Files in the package rather than on a server."""
    remote = [f"{r.where.removesuffix('.source')} ({one_sentence(r.path, 120)})" for r in package.remote]
    return f"on a server, from which nothing is downloaded here: {few(remote)}" if remote else None


def sha256_of(path: Path) -> str:
    """The sha256 sum of a file, as 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
