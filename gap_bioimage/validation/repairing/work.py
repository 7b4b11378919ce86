"""The working copy that repairs change: a folder of files and a description, and what was changed in them."""

from __future__ import annotations

import datetime
import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.archive.facts import Facts
from gap_bioimage.validation.archive.package import Package
from gap_bioimage.validation.archive.references import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from gap_bioimage.validation.archive.facts import TensorFacts

RDF_NAME = "rdf.yaml"
PLAIN_UP_TO = (0, 5, 10)
"""The last format that names documentation, covers and icon as plain strings."""

_FILE_LISTS = ("covers", "test_inputs", "test_outputs", "sample_inputs", "sample_outputs", "attachments.files")
_FILE_FIELDS = ("documentation", "icon", "dependencies")
_FREE_FIELDS = ("config", "cite", "badges", "training_data", "parent")


@dataclass(frozen=True, slots=True)
class Change:
    """One repair.

    Parameters
    ----------
    id
        Stable name of the repair; scripts may rely on it.
    what
        What was changed.
    before, after
        Its value or state before and after, as short texts.
    """

    id: str
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Site:
    """A place in a description that names a file: ``holder[key]``, whose hash is ``holder[hash_key]`` (if any)."""

    where: str
    holder: Any
    key: Any
    path: str
    hash_key: str | None = None

    @property
    def name(self) -> str:
        """The file's name inside the package, without ``./`` and with Unix' slashes."""
        return PurePosixPath(self.path.replace("\\", "/")).as_posix()

    def point_to(self, name: str) -> None:
        """Name another file; a class behind the file's name (format 0.4) stays."""
        self.holder[self.key] = name + str(self.holder[self.key])[len(self.path) :]


def sites(rdf: dict[str, Any]) -> Iterator[Site]:
    """All places that name a file, as `references` finds the files, but each of them."""
    for key, value in rdf.items():
        if key not in _FREE_FIELDS:
            yield from _sites(rdf, key, value, key)


def _sites(holder: Any, key: Any, value: Any, where: str) -> Iterator[Site]:
    if isinstance(value, str):
        in_list = where.rsplit("[", 1)[0] in _FILE_LISTS and isinstance(holder, list)
        in_field = where in _FILE_FIELDS and "." in value and "\n" not in value and len(value) < 1000
        if in_list or in_field:
            yield Site(where, holder, key, value)
        elif key == "source":
            yield Site(where, holder, key, value, "sha256")
        elif key == "architecture" and ".py:" in value:  # format 0.4: "unet.py:UNet2d"
            yield Site(where, holder, key, value.rsplit(":", 1)[0].rstrip(":"), "architecture_sha256")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _sites(value, index, item, f"{where}[{index}]")
    elif isinstance(value, dict) and key != "kwargs":
        for name, item in value.items():
            yield from _sites(value, name, item, f"{where}.{name}")


def unshared(value: Any) -> Any:
    """Copy a description so that no two places share a list or mapping, as yaml aliases make them."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [unshared(item) for item in value]
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    return value


@dataclass
class Work:
    """What the repairs change: files in ``folder`` (without the description) and the description ``rdf``.

    Parameters
    ----------
    notes
        What a repair saw and left alone, and why; one sentence each.
    """

    folder: Path
    rdf: dict[str, Any]
    rdf_name: str
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Posix paths of all files."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)

    @property
    def facts(self) -> Facts:
        """The description's facts as they are now; axes and tensors in them are the description's own mappings."""
        return Facts(Package(self.folder, self.folder, self.rdf_name, self.rdf, tuple(self.names), self.folder))

    @property
    def is_plain(self) -> bool:
        """Whether the format names documentation, covers and icon as plain strings."""
        return self.facts.version <= PLAIN_UP_TO

    def file(self, value: object) -> Path | None:
        """The file behind a path or a ``{source, sha256}`` entry, or None if it is absent or outside."""
        return self.facts.file_of(value)

    def reference(self, name: str) -> Any:
        """Return what names a file in ``documentation`` or ``covers``, in the description's format."""
        return name if self.is_plain else {"source": name, "sha256": sha256_of(self.folder / name)}

    def test_array(self, tensor: TensorFacts) -> NDArray[np.generic] | None:
        """The test tensor of an input or output, memory-mapped; None unless it is an npy file with its axes."""
        array = self.load(tensor.written.get("test_tensor"))
        return array if array is not None and array.ndim == len(tensor.axes) else None

    def load(self, value: object) -> NDArray[np.generic] | None:
        """The array behind a path or entry, memory-mapped, or None if it is no npy file."""
        import numpy as np

        path = self.file(value)
        if path is None or path.suffix != ".npy":
            return None
        try:
            array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError):  # left to the validation, which names it
            return None
        return array

    def free_name(self, wanted: str, besides: str = "") -> str:
        """A name that no other file has, also not where upper and lower case are one."""
        taken = {name.casefold() for name in self.names if name != besides} | {RDF_NAME}
        stem, suffix = posixpath.splitext(wanted)
        candidate, number = wanted, 2
        while candidate.casefold() in taken:
            candidate, number = f"{stem}_{number}{suffix}", number + 1
        return candidate

    def rehash(self, name: str) -> None:
        """Write the hash of a file that a repair changed wherever the description states one."""
        for site in list(sites(self.rdf)):
            if site.name == name and site.hash_key is not None and site.holder.get(site.hash_key):
                site.holder[site.hash_key] = sha256_of(self.folder / name)

    def move(self, plan: dict[str, str]) -> None:
        """Rename files, and follow them in the description and in the links of markdown files."""
        names = self.names
        for name in [name for name in names if name.lower().endswith(".md")]:
            self._relink(name, names, plan)
        for old, new in plan.items():
            os.replace(self.folder / old, self.folder / new)
        for site in list(sites(self.rdf)):
            if site.name in plan:
                site.point_to(plan[site.name])
        for folder in sorted((p for p in self.folder.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()

    def _relink(self, document: str, names: list[str], plan: dict[str, str]) -> None:
        path = self.folder / document
        text = written = path.read_bytes().decode("utf-8", errors="surrogateescape")
        here, there = (posixpath.dirname(name) or "." for name in (document, plan.get(document, document)))
        for name in names:
            before, after = posixpath.relpath(name, here), posixpath.relpath(plan.get(name, name), there)
            if before != after:
                # Only links: words of the text may happen to be a file's name.
                link = re.compile(rf"(\]\(|src=[\"']|href=[\"'])(?:\./)?{re.escape(before)}(?=[)\s\"'#])")
                text = link.sub(lambda match, after=after: match[1] + after, text)  # type: ignore[misc]
        if text != written:
            path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
            self.rehash(document)
