"""All that is said of a package without running its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gap_bioimage.validation.archive.description import Description, format_checks, is_model
from gap_bioimage.validation.archive.entries import few
from gap_bioimage.validation.check import Check, definition, one_sentence

if TYPE_CHECKING:
    from gap_bioimage.validation.archive.package import Package
    from gap_bioimage.validation.archive.references import FileReference

_OF_FILES = ("archive.files", "archive.hashes", "archive.remote", "archive.pickles", "archive.tensors")


@dataclass(frozen=True)
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

    checks: list[Check]
    description: Description | None
    is_model: bool
    why_not_run: str


def examine(package: Package, *, description_only: bool = False) -> Examined:
    """Judge the description and the files that it names.

    Parameters
    ----------
    package
        The opened package.
    description_only
        Look at the description alone, as if no file lay beside it.
    """
    made = [definition(name) for name in ("archive.references", *(() if description_only else _OF_FILES))]
    checks = [entry.check(entry.outcome_of(package)) for entry in made]
    broken = [check.id for check in checks if check.status == "failed"]
    description = None
    if "archive.references" not in broken:  # else bioimageio.spec would read files outside the package
        # with files that are missing on this side of the network it would ask for them there, and with
        # broken tensors take endless memory
        with_files = not (description_only or _needed(package) or "archive.tensors" in broken)
        description, found = format_checks(package, with_files=with_files)
        checks += found
        broken = [check.id for check in checks if check.status == "failed"]
    why_not = ""
    if description_only:
        why_not = "only the description was looked at"
    elif broken or description is None:
        why_not = f"not run, see {' and '.join(broken) or 'format.valid'}"
    elif needed := _needed(package):
        told = [f"{r.where.removesuffix('.source')} ({one_sentence(r.path, 120)})" for r in needed]
        why_not = f"not run, since it needs what lies on a server, and nothing is downloaded: {few(told)}"
    else:
        checks += _remote_weights(package)
    return Examined(checks, description, is_model(package.rdf), why_not)


def _needed(package: Package) -> list[FileReference]:
    """Remote files without which nothing can be run: tensors, processing, or all of the weights."""
    weights = [reference for reference in package.remote if reference.where.startswith("weights.")]
    given = package.rdf.get("weights")
    is_all = not isinstance(given, dict) or {r.where.split(".")[1] for r in weights} >= set(given)
    tensors = ("inputs", "outputs", "test_inputs", "test_outputs", "sample_inputs", "sample_outputs")
    return [r for r in package.remote if r.where.startswith(tensors)] + (weights if is_all else [])


def _remote_weights(package: Package) -> list[Check]:
    found = {r.where.split(".")[1]: r for r in package.remote if r.where.startswith("weights.")}
    return [
        Check(f"run.{name}", "run", "skipped", f"{reference.where} is on a server, and nothing is downloaded",
              "Put the file into the package.")
        for name, reference in found.items()
    ]  # fmt: skip
