"""The working copy that repairs edit: a folder of files, a description, and a record of all changes."""

import datetime
import itertools
import os
import posixpath
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from gap_bioimage.validation.archive.files import sha256_of
from gap_bioimage.validation.archive.package import Package
from gap_bioimage.validation.archive.rdf import FileReference, references
from gap_bioimage.validation.check import one_sentence
from gap_bioimage.validation.model import Model, Tensor

RDF_NAME = "rdf.yaml"
_LEFTOVER_FOLDERS = {"__MACOSX", "__pycache__", ".git", ".ipynb_checkpoints"}
_LEFTOVER_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True, slots=True)
class Change:
    """One repair."""

    id: str  # stable name of the repair; scripts may rely on it
    what: str  # what was changed
    before: str  # its value or state before, as a short text
    after: str


def shown(value: object) -> str:
    """Format a value as a short text."""
    if value in (None, "", [], {}):
        return "none"
    text = ", ".join(shown(item) for item in value) if isinstance(value, list) else str(value)
    return one_sentence(text, 120)


def unshared(value: Any) -> Any:
    """Copy a description so that no two places share a list or mapping, as yaml aliases do."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [unshared(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.datetime) else value


def is_leftover(name: str) -> bool:
    """Return whether a file belongs to an operating system, an editor or Python, not to the model."""
    parts = PurePosixPath(name).parts
    return bool(_LEFTOVER_FOLDERS & set(parts[:-1])) or parts[-1] in _LEFTOVER_FILES or parts[-1].startswith("._")


def numbered(stem: str, suffix: str, taken: set[str]) -> str:
    """Return a name that is not ``taken`` (casefolded): ``stem``, ``stem_2``, ``stem_3``, ... with the suffix."""
    names = (f"{stem}_{n}{suffix}" if n > 1 else stem + suffix for n in itertools.count(1))
    return next(name for name in names if name.casefold() not in taken)


@dataclass
class PackageEditor:
    """The subject of repairs: the files in ``folder`` (without the description) and the description ``rdf``."""

    folder: Path
    rdf: dict[str, Any]
    rdf_name: str
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # problems that were left alone, and why; one sentence each

    def changed(self, repair: str, what: str, before: object, after: object) -> None:
        """Record a change."""
        self.changes.append(Change(repair, what, shown(before), shown(after)))

    @property
    def names(self) -> list[str]:
        """Posix paths of all files."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    @property
    def model(self) -> Model:
        """The model as rules see it; its axes and tensors are the description's own mappings (format 0.5)."""
        return Model(Package(self.folder, self.folder, self.rdf_name, self.rdf, (), self.folder.parent))

    @property
    def tensors(self) -> list[Tensor]:
        """Inputs, then outputs, of a description in format 0.5; empty for other formats."""
        return self.model.tensors if self.is_05 else []

    @property
    def is_05(self) -> bool:
        """Whether the description is written in format 0.5."""
        return self.model.version_numbers[:2] == (0, 5)

    @property
    def is_plain(self) -> bool:
        """Whether the format names documentation, covers and icon as plain strings."""
        return self.model.version_numbers <= (0, 5, 10)

    @property
    def references(self) -> list[FileReference]:
        """All places of the description that name a file."""
        return references(self.rdf)

    def rewrite(self, name: str, content: bytes) -> None:
        """Write a file, and update its hash wherever the description states one."""
        (self.folder / name).write_bytes(content)
        for reference in self.references:
            if reference.name == name and reference.sha256:
                reference.holder[reference.hash_key] = sha256_of(self.folder / name)

    def move(self, old: str, wanted: str) -> str:
        """Rename a file, also in the description, and return its name, which is unique regardless of case."""
        taken = {name.casefold() for name in self.names if name != old} | {RDF_NAME}
        new = numbered(*posixpath.splitext(wanted), taken)
        os.replace(self.folder / old, self.folder / new)
        for reference in self.references:
            if reference.name == old:
                reference.point_to(new)
        return new

    def write_zip(self, target: Path, description: bytes) -> None:
        """Zip the description and the files; the same model gives the same bytes."""
        names = self.names
        (self.folder / RDF_NAME).write_bytes(description)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for name in (RDF_NAME, *names):
                (self.folder / name).chmod(0o644)
                os.utime(self.folder / name, (0, 0))  # stored as the earliest time that a zip can hold
                archive.write(self.folder / name, name)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 reads as texts and YAML 1.2 as numbers, such as 1e5."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+.]?\d[\w.+-]*$"), list("-+.0123456789"))


def to_yaml(rdf: dict[str, Any]) -> bytes:
    """Return a description as yaml that means the same in versions 1.1 and 1.2."""
    text: str = yaml.dump(rdf, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text.encode("utf-8")
