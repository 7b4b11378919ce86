"""All that is said of a package without running its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gap_bioimage.validation.archive.description import Description, format_checks
from gap_bioimage.validation.archive.entries import few
from gap_bioimage.validation.check import Check, definition, definitions, one_sentence

if TYPE_CHECKING:
    from gap_bioimage.validation.archive.package import Package
    from gap_bioimage.validation.archive.references import FileReference

_UNREADABLE = {"archive.references", "archive.files", "archive.hashes", "archive.tensors", "format.dtypes"}
"""Checks after which bioimageio.spec is kept from the files: it would say so again, or read what it should not."""
_TENSORS = ("inputs", "outputs", "test_inputs", "test_outputs", "sample_inputs", "sample_outputs")


@dataclass
class Examined:
    """What was found.

    Parameters
    ----------
    checks
        The checks of the consumers ``archive`` and ``format``, and those of weights that lie on a server.
    description
        The valid description; None if it is invalid.
    is_model
        Whether it says that it is a model's; if not, programs have nothing to say about it.
    why_not_run
        Why the model cannot be run, in a sentence; empty if it can.
    """

    checks: list[Check] = field(default_factory=list)
    description: Description | None = None
    is_model: bool = True
    why_not_run: str = ""

    @property
    def failed(self) -> list[str]:
        """Ids of the checks that failed."""
        return [check.id for check in self.checks if check.status == "failed"]

    def make(self, package: Package, *ids: str) -> None:
        """Make checks of the package; those with nothing to say about the description are left out."""
        made = [definition(name).check(definition(name).outcome_of(package)) for name in ids]
        self.checks += [check for check in made if check.consumer != "format" or check.message != "kept"]


def examine(package: Package, *, description_only: bool = False) -> Examined:
    """Judge the description and the files that it names, or the description as if no file lay beside it."""
    found = Examined()
    others = [made.id for made in definitions("archive") if made.consumer != "format"]
    found.make(package, *(["archive.references"] if description_only else others))
    kind = package.rdf.get("type")
    if kind != "model":
        given = "it states no type" if kind is None else f"it is of type {one_sentence(repr(kind), 80)}"
        fix = "State type: model if it is one; a collection's other resources are not validated here."
        text = f"the description is not a model's: {given}, expected is model"
        found.checks.append(definition("format.valid").violated(text, fix))
        found.is_model = False
    elif "archive.references" not in found.failed:
        found.make(package, "format.version", "format.github_user", *(() if description_only else ("format.dtypes",)))
        if "format.version" not in found.failed:
            with_files = not (description_only or _needed(package) or _UNREADABLE & {*found.failed})
            found.description, checks = format_checks(package, with_files=with_files)
            found.checks += checks
        else:
            found.checks.append(definition("format.valid").skipped("not judged in an unknown format"))
    if found.failed:
        found.why_not_run = f"not run, see {' and '.join(found.failed)}"
    elif description_only:
        found.why_not_run = "only the description was looked at"
    elif needed := _needed(package):
        told = [f"{r.where.removesuffix('.source')} ({one_sentence(r.path, 120)})" for r in needed]
        found.why_not_run = f"not run, since it needs what is on a server, and nothing is downloaded: {few(told)}"
    else:
        text, fix = "they are on a server, and nothing is downloaded", "Put the file into the package."
        remote = dict.fromkeys(r.where.split(".")[1] for r in package.remote if r.where.startswith("weights."))
        found.checks += [Check(f"run.{name}", "run", "skipped", text, fix) for name in remote]
    return found


def _needed(package: Package) -> list[FileReference]:
    """Remote files without which nothing can be run: tensors, processing, or all of the weights."""
    weights = [reference for reference in package.remote if reference.where.startswith("weights.")]
    given = package.rdf.get("weights")
    is_all = not isinstance(given, dict) or {r.where.split(".")[1] for r in weights} >= set(given)
    return [r for r in package.remote if r.where.startswith(_TENSORS)] + (weights if is_all else [])
