"""The description as bioimageio.spec reads it: without a network, and without a file left behind."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.archive.arrays import shape_of, tested_tensors
from gap_bioimage.validation.archive.rdf import walked
from gap_bioimage.validation.archive.references import is_url
from gap_bioimage.validation.archive.wording import Finding, finding, one_per_field, told
from gap_bioimage.validation.check import Outcome, Severity, archive_check, declare, one_sentence
from gap_bioimage.validation.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.archive.package import Package
    from gap_bioimage.validation.check import Check

_SHOWN = 5
_WARNING_SEVERITY = 30
"""bioimageio.spec's severities: 20 and below is information."""
_OF_TENSORS = re.compile(r"test_tensor\b.*\bsize|Dimension mismatch|batch size mismatch|No functions provided")
"""What spec says of test tensors that have not the declared shape."""

_VALID = declare(
    "format.valid", "archive", Severity.BLOCKS, order=3, asks="A valid description.",
    breaks="bioimageio.core and all that use it refuse the model",
    fix="Correct what is named; the format is described at https://bioimage-io.github.io/spec-bioimage-io.",
)  # fmt: skip
_RECOMMENDED = declare(
    "format.recommended", "archive", Severity.STYLE, order=4, asks="The fields that bioimageio.spec recommends.",
    breaks="the zoo's score sinks", fix="Fill in or correct the named fields.",
)  # fmt: skip


@dataclass(frozen=True)
class Description:
    """A valid description; weights that lie on a server are left out of it.

    Parameters
    ----------
    as_written
        bioimageio.spec's object in the format that the author wrote (0.4 or 0.5).
    upgraded
        The same in format 0.5; None if it cannot be upgraded.
    not_upgraded
        Why it cannot be upgraded; empty if it can.
    """

    as_written: Any
    upgraded: Any | None
    not_upgraded: str = ""

    @property
    def weights(self) -> dict[str, Any]:
        """The weights that can be run, by format."""
        return {name: entry for name, entry in self.as_written.weights if entry is not None}


def format_checks(package: Package, *, with_files: bool = True) -> tuple[Description | None, list[Check]]:
    """Validate a model's description against the format that it states (0.3 to 0.5).

    Parameters
    ----------
    package
        The opened package.
    with_files
        Look at the referenced files too; those inside must all be there and unchanged.

    Returns
    -------
    The description, or None if it is invalid, and the checks ``format.valid`` and ``format.recommended``.
    """
    description, problems, warnings = _read(package, with_files)
    if description is None:
        named = [text for problem in one_per_field(problems) for text in _told(package, problem)]
        return None, [_VALID.violated(_listed(named) or "the description is not a model's")]
    checks = [_VALID.passed(f"a valid model description of format {package.rdf['format_version']}")]
    if description.not_upgraded:
        text = f"programs that read it as format 0.5 refuse it: {description.not_upgraded}"
        warnings = [text, *(warning for warning in warnings if warning not in text)]
    return description, checks + ([_RECOMMENDED.violated(_listed(warnings))] if warnings else [])


def _told(package: Package, problem: Finding) -> list[str]:
    return (_off_grid(package) if "No functions provided" in problem.text else []) or [told(problem)]


def _listed(texts: list[str]) -> str:
    texts = list(dict.fromkeys(texts))
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return one_sentence("; ".join(texts[:_SHOWN]), 850) + more


@archive_check("format.version", Severity.BLOCKS, order=0, breaks="programs cannot read the description",
               fix="State format_version: 0.5.9 and follow it.")  # fmt: skip
def version(package: Package) -> Outcome | str:
    """A format_version that is in use."""
    from bioimageio.spec.model import v0_5

    written = package.rdf.get("format_version")
    if not isinstance(written, str) or not re.match(r"0\.[345]\.\d", written):
        given = "absent" if written is None else "empty" if written == "" else one_sentence(repr(written), 40)
        return f"format_version is {given}, expected is one of 0.4.x or 0.5.x in full, such as 0.5.9"
    newest = v0_5.ModelDescr.implemented_format_version
    numbers = [int(part) for part in re.findall(r"\d{1,9}", written)[:3]]
    if numbers > [int(part) for part in newest.split(".")]:
        text = f"format_version {written} is newer than {newest}, as which it is judged here"
        return Outcome("warning", text, "State the format_version whose rules the description follows.")
    if numbers < [0, 4]:
        text = f"format_version {written} is outdated, 0.5 is expected"
        return Outcome("warning", text, "Rewrite the description in format 0.5.")
    return Outcome("passed", f"format_version {written}")


def _read(package: Package, with_files: bool) -> tuple[Description | None, list[Finding], list[str]]:
    """The description, what is wrong with it, and what bioimageio.spec warns of."""
    rdf, problems = package.rdf, _own_statistics(package.rdf)
    with quiet(), _known_people(rdf):
        if with_files and package.remote:  # first all that is said without looking at files
            problems += _errors(package, _load(package, rdf, "discover", with_files=False))
            with_files = not problems
            rdf = rdf if problems else _local_part(package)
        written = upgraded = _load(package, rdf, "discover", with_files)
        problems = problems or _errors(package, written)
        if not str(rdf["format_version"]).startswith("0.5") and not problems:
            upgraded = _load(package, rdf, "latest", with_files)
            problems = _of_tensors(package, upgraded)  # what older formats themselves do not ask
            if not problems and not _is_model(upgraded):  # a halo of a fixed size hides what else is wrong
                problems = _of_tensors(package, _load(package, _without_halos(rdf), "latest", with_files))
    if problems or not _is_model(written):
        return None, problems, []
    errors = [] if _is_model(upgraded) else one_per_field(_errors(package, upgraded))
    why_not = "; ".join(dict.fromkeys(map(told, errors)))
    return Description(written, None if errors else upgraded, why_not), [], _warnings(package, written)


def _of_tensors(package: Package, loaded: Any) -> list[Finding]:
    return [found for found in _errors(package, loaded) if _OF_TENSORS.search(found.text)]


def _off_grid(package: Package) -> list[str]:
    """Test tensors of sizes that are not ``min`` plus a multiple of ``step``, which spec finds and cannot tell of."""
    from bioimageio.spec.model.v0_5 import ParameterizedSize, get_halos

    with quiet(), _known_people(package.rdf):
        descr = _load(package, package.rdf, "latest", with_files=False)
    tensors = [*descr.inputs, *descr.outputs] if _is_model(descr) else []
    halos = get_halos({tensor.id: tensor for tensor in tensors})
    found = []
    for tensor, (_, _, name) in zip(tensors, tested_tensors(package.rdf), strict=False):
        for axis, n in zip(tensor.axes, shape_of(package.file(name)), strict=False):
            padded = n + sum(halos.get(tensor.id, {}).get(axis.id, ()))
            size = axis.size if isinstance(axis.size, ParameterizedSize) else None
            if size and not any(k >= size.min and (k - size.min) % size.step == 0 for k in (n, padded)):
                where = f"the test tensor of {tensor.id} ({name}) is {n} long along axis {axis.id}"
                found.append(f"{where}, expected is {size.min} plus a multiple of {size.step}")
    return found


def _own_statistics(rdf: dict[str, Any]) -> list[Finding]:
    """Steps that need statistics of an output: bioimageio.core computes those of inputs only, which spec ignores."""
    found = []
    for i, output in enumerate(_list(rdf.get("outputs"))):
        for j, step in enumerate(_list(output.get("postprocessing")) if isinstance(output, dict) else []):
            kwargs = step.get("kwargs") or {} if isinstance(step, dict) else None
            if not isinstance(kwargs, dict):
                continue
            where, name = f"outputs[{i}].postprocessing[{j}]", step.get("id") or step.get("name")
            if name == "scale_range" and not kwargs.get("reference_tensor"):
                where += ".kwargs.reference_tensor"
                text = "is missing; scale_range takes its percentiles from an input, so name one"
                found.append(Finding(where, where, "", "", text, None))
            of_output = name in ("zero_mean_unit_variance", "scale_mean_variance") and kwargs.get("mode") != "fixed"
            if of_output or (name == "clip" and {"min_percentile", "max_percentile"} & kwargs.keys()):
                text = f"{name} needs statistics of the output, which bioimageio.core does not compute"
                found.append(Finding(where, where, "", "", text, None))
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _local_part(package: Package) -> dict[str, Any]:
    """The (valid) description without what lies on a server and is not needed to run the model."""
    rest = deepcopy(package.rdf)
    for reference in package.remote:
        parts = reference.where.split(".")
        field = parts[0].split("[")[0]
        if field == "weights":
            rest["weights"].pop(parts[1], None)
        elif field == "documentation":  # without which a description is invalid
            readme = package.scratch / "README.md"
            readme.touch()
            rest[field] = {"source": str(readme)} if isinstance(rest[field], dict) else str(readme)
        elif field in ("covers", "icon", "attachments", "dependencies"):
            rest.pop(field, None)
    for entry in rest["weights"].values():
        if entry.get("parent") not in rest["weights"]:
            entry.pop("parent", None)
    return rest


def _without_halos(rdf: dict[str, Any]) -> dict[str, Any]:
    outputs = [{key: value for key, value in output.items() if key != "halo"} for output in rdf["outputs"]]
    return {**rdf, "outputs": outputs}


def _load(package: Package, rdf: dict[str, Any], version: str, with_files: bool) -> Any:
    from bioimageio.spec import ValidationContext, build_description

    content = deepcopy(rdf)
    if not content.get("covers") and str(content.get("format_version", "")) >= "0.4":
        # Spec would draw absent covers into a temp folder that nobody removes; only the suffix is looked at.
        cover = package.scratch / "cover.png"
        cover.touch()
        content["covers"] = [str(cover)]
    if with_files and any(_urls(content.get("training_data"))):
        del content["training_data"]  # spec would ask for its files there
    context = ValidationContext(
        root=package.root,
        file_name=package.rdf_name,
        perform_io_checks=with_files,
        # A URL that is "known" is not requested: validation works without a network, and tells nobody.
        known_files=dict.fromkeys(_urls(rdf)) if with_files else {},
        log_warnings=False,
        progressbar=False,
    )
    try:
        return build_description(content, context=context, format_version=version)
    except Exception as error:  # spec raises whatever its validators stumble over
        return error


def _urls(content: Any) -> Iterator[str]:
    from pydantic import HttpUrl, TypeAdapter, ValidationError

    for value in walked(content):
        if isinstance(value, str) and is_url(value):
            yield value
            with suppress(ValidationError):
                yield str(TypeAdapter(HttpUrl).validate_python(value))  # spec looks up the normalised form


def _is_model(loaded: Any) -> bool:
    from bioimageio.spec.model import v0_4, v0_5

    return isinstance(loaded, v0_4.ModelDescr | v0_5.ModelDescr)


def _errors(package: Package, loaded: Any) -> list[Finding]:
    from pydantic import ValidationError

    if isinstance(loaded, ValidationError):
        return [finding(package, entry["loc"], entry["type"], entry["msg"]) for entry in loaded.errors()]
    if isinstance(loaded, Exception):
        return [finding(package, (), type(loaded).__name__, one_sentence(loaded))]
    details = loaded.validation_summary.details
    return [finding(package, entry.loc, str(entry.type), entry.msg) for detail in details for entry in detail.errors]


def _warnings(package: Package, loaded: Any) -> list[str]:
    # Spec asks for sample_tensor, which the zoo's deepImageJ check then takes for the test tensor.
    return [
        told(finding(package, entry.loc, str(entry.type), entry.msg))
        for detail in loaded.validation_summary.details
        for entry in detail.warnings
        if entry.severity >= _WARNING_SEVERITY and "sample_tensor" not in entry.loc
    ]


def _people(rdf: dict[str, Any]) -> list[str]:
    people = [person for key in ("authors", "maintainers", "packaged_by") for person in _list(rdf.get(key))]
    names = [person.get("github_user") for person in people if isinstance(person, dict)]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


@archive_check("format.github_user", Severity.DEGRADES, order=1, breaks="the zoo refuses unknown ones",
               fix="See that https://github.com/NAME exists; nothing is looked up here.")  # fmt: skip
def github_users(package: Package) -> str | None:
    """GitHub names that exist."""
    from bioimageio.spec._internal.constants import KNOWN_GITHUB_USERS

    unlisted = ", ".join(name for name in _people(package.rdf) if name.lower() not in KNOWN_GITHUB_USERS)
    return (
        f"github_user {one_sentence(unlisted, 200)} was not looked up, since no network is used" if unlisted else None
    )


@contextmanager
def _known_people(rdf: dict[str, Any]) -> Iterator[None]:
    """Let spec take the description's github names as known: offline it would call the model invalid."""
    from bioimageio.spec._internal.constants import KNOWN_GITHUB_USERS

    added = {name.lower() for name in _people(rdf)} - KNOWN_GITHUB_USERS
    KNOWN_GITHUB_USERS.update(added)
    try:
        yield
    finally:
        KNOWN_GITHUB_USERS.difference_update(added)
