"""Validate a package without running its model."""

import re
from dataclasses import dataclass, field, replace

from gap_bioimage.validation import check as registry
from gap_bioimage.validation.archive.description import Description, format_checks, people
from gap_bioimage.validation.archive.package import Package, few
from gap_bioimage.validation.check import BLOCKS, DEGRADES, Check, Outcome, archive_check, one_sentence

# if one of these fails, bioimageio.spec does not see the files: it would repeat the error, or read unsafe files
_UNREADABLE = {"archive.references", "archive.files", "archive.hashes", "archive.tensors"}


@dataclass
class Examined:
    """The result of `examine`."""

    checks: list[Check] = field(default_factory=list)  # of archive and format, and of weights on a server
    description: Description | None = None  # None if it is invalid
    is_model: bool = True  # whether its type is model; if not, the rules of programs do not apply
    why_not_run: str = ""  # why the model cannot be run, in a sentence; empty if it can

    @property
    def failed(self) -> list[str]:
        """Ids of the checks that failed."""
        return [check.id for check in self.checks if check.status == "failed"]


@archive_check("format.version", BLOCKS, order=0, breaks="programs cannot read the description",
               fix="State format_version: 0.5.9 and follow it.")  # fmt: skip
def version(package: Package) -> Outcome | str:
    """A format_version that is in use."""
    from bioimageio.spec.model import v0_5

    written, newest = package.rdf.get("format_version"), v0_5.ModelDescr.implemented_format_version
    if not isinstance(written, str) or not re.fullmatch(r"0\.[345]\.\d{1,9}", written):
        state = "absent" if written is None else one_sentence(repr(written), 40)
        return f"format_version is {state}, expected 0.4.x or 0.5.x in full, such as 0.5.9"
    numbers = [int(part) for part in re.findall(r"\d{1,9}", written)[:3]]
    if numbers > [int(part) for part in newest.split(".")]:
        text = f"format_version {written} is newer than {newest}, whose rules were applied"
        return Outcome("warning", text, "State the format_version whose rules the description follows.")
    if numbers < [0, 4]:
        text = f"format_version {written} is outdated, expected 0.5"
        return Outcome("warning", text, "Rewrite the description in format 0.5.")
    return Outcome("passed", f"format_version {written}")


@archive_check("format.github_user", DEGRADES, order=1, breaks="the zoo refuses unknown names",
               fix="Check that https://github.com/NAME exists; this was not looked up.")  # fmt: skip
def github_users(package: Package) -> str | None:
    """GitHub names that exist."""
    from bioimageio.spec._internal.constants import KNOWN_GITHUB_USERS

    unlisted = ", ".join(name for name in people(package.rdf) if name.lower() not in KNOWN_GITHUB_USERS)
    text = f"github_user {one_sentence(unlisted, 200)} was not looked up, since no network is used"
    return text if unlisted else None


def examine(package: Package, *, description_only: bool = False) -> Examined:
    """Validate the description and the files that it names, or the description alone."""
    definitions = [entry for entry in registry.definitions("archive") if entry.consumer != "format"]
    if description_only:
        definitions = [registry.definition("archive.references")]
    found = Examined([entry.judge(package) for entry in definitions])
    needed, kind = _needed(package), package.rdf.get("type")
    if kind != "model":
        state = "it has no type" if kind is None else f"it is of type {one_sentence(repr(kind), 80)}"
        fix = "State type: model if it is one; a collection's other resources are not validated here."
        text = f"the description is not a model's: {state}, expected model"
        found.checks.append(registry.definition("format.valid").violated(text, fix))
        found.is_model = False
    elif "archive.references" not in found.failed:
        checks = [registry.definition(name).judge(package) for name in ("format.version", "format.github_user")]
        found.checks += [check for check in checks if check.id == "format.version" or check.status != "passed"]
        if "format.version" in found.failed:
            found.checks.append(registry.definition("format.valid").skipped("not checked in an unknown format"))
        else:
            with_files = not (description_only or needed or _UNREADABLE & {*found.failed})
            found.description, checks = format_checks(package, with_files=with_files)
            found.checks += [*checks, *_untestable(found.description)]
    broken = {name: check.id for check in found.checks if check.status == "failed" for name in check.concerns}
    if found.description is not None:
        intact = tuple(name for name in found.description.weights if name not in broken)
        found.description = replace(found.description, weights=intact)
        broken = broken if intact else {}  # then the others can be run
    if blocking := [name for name in found.failed if name not in broken.values()]:
        found.why_not_run = f"not run, see {' and '.join(blocking)}"
    elif needed:
        found.why_not_run = f"not run, since it needs files on a server, and nothing is downloaded: {needed}"
    if found.is_model and not description_only and "core.test" not in found.failed:
        if found.why_not_run:
            found.checks.append(registry.definition("core.test").skipped(found.why_not_run))
        remote = "the weights are on a server, and nothing is downloaded", "Put the file into the package."
        unrun = {name: (f"not run, see {check_id}", "Replace the damaged file.") for name, check_id in broken.items()}
        unrun |= dict.fromkeys(package.remote_weights, remote)
        for name, (text, fix) in () if found.why_not_run else unrun.items():
            found.checks.append(Check(f"run.{name}", "run", "skipped", text, fix))
    return found


def _untestable(valid: Description | None) -> list[Check]:
    """Return a failed core.test if the format allows something that bioimageio.core refuses before it runs a model."""
    found = list[tuple[str, str]]()
    for tensor in (*valid.as_written.inputs, *valid.as_written.outputs) if valid else ():
        name = repr(str(getattr(tensor, "id", "") or tensor.name))
        if getattr(tensor, "test_tensor", tensor) is None:
            text = f"{name} has no test_tensor: bioimageio.core's test needs one for each input and output"
            found.append((text, "Save it with numpy.save, and name it."))
        sizes = {str(axis.id): axis.size for axis in tensor.axes if hasattr(axis, "size")}
        for step in getattr(tensor, "preprocessing", None) or getattr(tensor, "postprocessing", None) or ():
            kwargs, operation = dict(getattr(step, "kwargs", ())), getattr(step, "id", "") or step.name
            low, high = kwargs.get("min"), kwargs.get("max")
            if operation == "clip" and low is not None and high is not None and low >= high:
                found.append((f"{name}: clip has the min {low:g} and the max {high:g}", "Give it a min below its max."))
            size = sizes.get(str(kwargs.get("axis")))
            for key, value in kwargs.items():
                if isinstance(value, list | tuple) and isinstance(size, int) and len(value) != size:
                    text = f"the {key} of {operation} has {len(value)} values for {size} along {kwargs['axis']}"
                    found.append((f"{name}: {text}", "Give one value for each."))
    return [registry.definition("core.test").violated(*found[0])] if found else []


def _needed(package: Package) -> str:
    """Name the remote files without which nothing can be run: tensors, processing, or all of the weights."""
    weights = package.rdf.get("weights")
    none_local = not isinstance(weights, dict) or {*package.remote_weights} >= {*weights}
    needed = ("inputs", "outputs", "test_", *["weights."] * none_local)
    return few([reference.label for reference in package.remote if reference.where.startswith(needed)])
