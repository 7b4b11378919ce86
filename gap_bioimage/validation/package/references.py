"""The files that a description refers to: inside the package, present, with the hashes that it states."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.checks import Check, one_sentence
from gap_bioimage.validation.package.entries import none_of, shown, unsafe_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gap_bioimage.validation.package.archive import Package

_FILE_LISTS = ("covers", "test_inputs", "test_outputs", "sample_inputs", "sample_outputs")
_FILE_FIELDS = ("documentation", "icon", "dependencies")
_FREE_FIELDS = ("config", "cite", "badges", "training_data", "parent")
"""Fields whose content is not ours to interpret, or that name other resources."""
_MAX_NODES = 50_000
_MAX_DOCUMENTATION_BYTES = 16 * 2**20
"""The documentation is read as a whole, by bioimageio.spec too."""
_SHA256_CHUNK = 2**20
_FIX_HASH = "Download it again; if you changed the file on purpose, write its own sha256 into the description."


@dataclass(frozen=True, slots=True)
class Reference:
    """A file named in a description: where, by which path or URL, with which hash (if any)."""

    where: str
    source: str
    sha256: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL."""
        return is_url(self.source)


def is_url(text: str) -> bool:
    """Whether some reader may take a text for a URL: case, blanks and missing slashes do not matter to all of them."""
    return "://" in text or re.match(r"https?:", re.sub(r"\s", "", text), re.IGNORECASE) is not None


class TooManyNodesError(ValueError):
    """A description expands to absurdly many nodes (yaml aliases multiply)."""


def references(rdf: dict[str, Any]) -> list[Reference]:
    """All files that a description of format 0.3 to 0.5 names, without duplicates.

    Raises
    ------
    TooManyNodesError
        If its aliases expand to more than `_MAX_NODES` nodes.
    """
    _refuse_bombs(rdf)
    found: dict[tuple[str, str | None], Reference] = {}
    for field, value in rdf.items():
        if field in _FREE_FIELDS:
            continue
        for reference in _walk(value, field):
            found.setdefault((reference.source, reference.sha256), reference)
    return list(found.values())


def _refuse_bombs(rdf: dict[str, Any]) -> None:
    pending: list[Any] = [rdf]
    seen = 0
    while pending:
        value = pending.pop()
        seen += 1
        if seen > _MAX_NODES:
            raise TooManyNodesError(f"the description expands to more than {_MAX_NODES} entries")
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _walk(value: Any, where: str) -> Iterator[Reference]:
    field = where.rsplit(".", 1)[-1]
    if isinstance(value, str):
        if where in _FILE_FIELDS and _looks_like_file(value):
            yield Reference(where, value)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str) and (where in _FILE_LISTS or where == "attachments.files"):
                yield Reference(f"{where}[{index}]", item)
            else:
                yield from _walk(item, f"{where}[{index}]")
    elif isinstance(value, dict) and field != "kwargs":
        yield from _walk_mapping(value, where)


def _walk_mapping(value: dict[Any, Any], where: str) -> Iterator[Reference]:
    source = value.get("source")
    if isinstance(source, str):
        yield Reference(f"{where}.source", source, _text(value.get("sha256")))
    architecture = value.get("architecture")
    if isinstance(architecture, str) and ".py:" in architecture:  # format 0.4: "unet.py:UNet2d"
        name = architecture.rsplit(":", 1)[0].rstrip(":")
        yield Reference(f"{where}.architecture", name, _text(value.get("architecture_sha256")))
    for key, item in value.items():
        if key != "source":
            yield from _walk(item, f"{where}.{key}")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _looks_like_file(value: str) -> bool:
    # An icon may be an emoji; documentation may have been written in full by mistake.
    return "." in value and "\n" not in value and len(value) < 1000


def reference_checks(package: Package) -> tuple[list[Check], bool]:
    """Check that what the description refers to is safe, present and unchanged.

    Returns
    -------
    The checks, and whether the model may be loaded (every reference is local, inside and intact).
    """
    try:
        found = references(package.rdf)
    except (TooManyNodesError, RecursionError) as error:
        return [Check("archive.references", "archive", "failed", str(error), "Write it without aliases.")], False
    dangers = [
        f"{r.where} {shown(r.source)} {why}" for r in found if not r.is_remote and (why := unsafe_path(r.source))
    ]
    # Other formats' fields may name files too: whatever names one outside is not to be read.
    named = {reference.source for reference in found if not reference.is_remote and unsafe_path(reference.source)}
    dangers += [
        f"{shown(text)} is a file outside the package"
        for text in _texts(package.rdf)
        if text not in named and any(package.names_outside(part) for part in _paths_in(text))
    ]
    dangers += _endless_documentation(package)
    local = [r for r in found if not r.is_remote and not unsafe_path(r.source)]
    absent = [f"{r.where} {shown(r.source)} is not there" for r in local if package.file(r.source) is None]
    wrong, unhashed = _hash_problems(package, local)
    remote = [f"{r.where} {one_sentence(r.source, 150)}" for r in found if r.is_remote]
    hashed = f"{len(local) - len(unhashed)} sha256 sums agree, {len(unhashed)} are not stated"
    inside = f"{len(local)} referenced files lie inside the package"
    checks = [
        none_of("archive.references", dangers, inside, "Refer to files by their names inside the package."),
        none_of("archive.files", absent, "every referenced file is there", "Add the file, or correct its path."),
        none_of("archive.hashes", wrong, hashed, _FIX_HASH),
    ]
    if remote:
        text = f"read from the network when used: {_few(remote)}"
        checks.append(Check("archive.remote", "archive", "warning", text, "Put the files into the package."))
    return checks, not (dangers or absent or wrong or remote)


def files_of(package: Package) -> list[str]:
    """Names of all files in the package: those of the zip or folder, and those that a yaml refers to."""
    try:
        named = {reference.source for reference in references(package.rdf)}
    except (TooManyNodesError, RecursionError):
        named = set()
    return sorted({*package.names, *(name for name in named if package.file(name) is not None)})


def _texts(rdf: dict[str, Any]) -> list[str]:
    """All different strings of a description that `_refuse_bombs` let through, on one line and of a path's length."""
    pending: list[Any] = list(rdf.values())
    found: dict[str, None] = {}
    while pending:
        value = pending.pop()
        if isinstance(value, str) and 0 < len(value) < 4096 and "\n" not in value:
            found[value] = None
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return list(found)


def _paths_in(text: str) -> list[str]:
    """A text as a path, and as the formats 0.3 and 0.4 write them: ``file.py:Callable``, ``conda:file.yaml``."""
    return [text, *(text.rsplit(":", 1)[:1] + text.split(":", 1)[1:] if ":" in text else [])]


def _endless_documentation(package: Package) -> list[str]:
    written = package.rdf.get("documentation")
    path = package.file(written.get("source") if isinstance(written, dict) else written)
    if path is None or path.stat().st_size <= _MAX_DOCUMENTATION_BYTES:
        return []
    size = f"{path.stat().st_size / 2**20:.0f} MiB"
    return [f"the documentation has {size}, at most {_MAX_DOCUMENTATION_BYTES >> 20} are read"]


def _hash_problems(package: Package, local: list[Reference]) -> tuple[list[str], list[str]]:
    wrong, unhashed = [], []
    for reference in local:
        path = package.file(reference.source)
        if path is None:
            continue
        if reference.sha256 is None:
            unhashed.append(reference.source)
        elif (problem := _hash_problem(path, reference.sha256)) is not None:
            wrong.append(f"{reference.where}: {shown(reference.source)} {problem}")
    return wrong, unhashed


def _hash_problem(path: Path, stated: str) -> str | None:
    try:
        return None if sha256_of(path) == stated.lower() else "does not have the stated sha256"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def sha256_of(path: Path) -> str:
    """The sha256 sum of a file, as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_SHA256_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _few(items: list[str]) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return "; ".join(items[:3]) + more
