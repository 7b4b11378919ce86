"""The description as bioimageio.spec reads it, without a network and without generated covers left over."""

from __future__ import annotations

import re
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.checks import Check, one_sentence
from gap_bioimage.validation.package.declared import dtype_checks, too_small, wrong_sizes
from gap_bioimage.validation.package.references import is_url
from gap_bioimage.validation.package.wording import explained_by, finding, one_per_field, told
from gap_bioimage.validation.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.package.archive import Package
    from gap_bioimage.validation.package.wording import Finding

_SHOWN = 5
_MAX_TEXT = 900
_WARNING_SEVERITY = 30
"""bioimageio.spec's severities: 20 and below is information."""
_FIX = "Correct what is named; the format is described at https://bioimage-io.github.io/spec-bioimage-io."
_OF_SIZES = re.compile(r"\baxis\b|Dimension mismatch|No functions provided|size \d+ (<|>|is not)")


@dataclass(frozen=True)
class Description:
    """A valid description.

    Parameters
    ----------
    as_written
        bioimageio.spec's object in the format that the author wrote (0.4 or 0.5).
    upgraded
        The same in format 0.5; None if it cannot be upgraded.
    """

    as_written: Any
    upgraded: Any | None

    @property
    def weights(self) -> dict[str, Any]:
        """The weights that are given, by format."""
        return {name: entry for name, entry in self.as_written.weights if entry is not None}


def format_checks(package: Package, *, with_files: bool = True) -> tuple[Description | None, list[Check]]:
    """Validate the description against the format it states.

    Parameters
    ----------
    package
        The opened package.
    with_files
        Look at the referenced files too; they must all be local then, else they would be downloaded.

    Returns
    -------
    The description, or None if it is invalid, and the checks of the consumer ``format``.
    """
    refused = _refused(package.rdf)
    if refused:
        return None, refused
    version = str(package.rdf["format_version"])
    checks = [_version_check(version), *_github_checks(package.rdf), *dtype_checks(package)]
    with quiet(), _known_people(package.rdf):
        written = _load(package, "discover", with_files)
        upgraded = written
        if _is_model(written) and version.startswith("0.4"):
            upgraded = _load(package, "latest", with_files)
    if not _is_model(written):
        return None, [*checks, _invalid(package, written, {check.id for check in checks if check.status == "failed"})]
    checks.append(Check("format.valid", "format", "passed", f"a valid model description of format {version}"))
    warnings = list(dict.fromkeys(told(found) for found in _warnings(package, written)))
    if warnings:
        more = f" and {len(warnings) - _SHOWN} more" if len(warnings) > _SHOWN else ""
        text = one_sentence("; ".join(warnings[:_SHOWN]), _MAX_TEXT) + more
        checks.append(Check("format.recommended", "format", "warning", text, "Fill in or correct the named fields."))
    return Description(written, upgraded if _is_model(upgraded) else None), checks


def _refused(rdf: dict[str, Any]) -> list[Check]:
    """What is wrong with a description that is none of a model, or in no known format: all else would follow."""
    kind, version = rdf.get("type"), rdf.get("format_version")
    if kind != "model":
        given = "the description states no type" if kind is None else f"the type is {one_sentence(repr(kind), 80)}"
        fix = "State type: model; what is no model cannot be validated here."
        return [Check("format.valid", "format", "failed", f"{given}, expected is model", fix)]
    if isinstance(version, str) and re.match(r"0\.[345]\.", version):
        return []
    given = "absent" if version is None else "empty" if version == "" else one_sentence(repr(version), 40)
    text = f"format_version is {given}, expected is a version such as 0.5.9 (0.4.x or 0.5.x)"
    return [
        Check("format.version", "format", "failed", text, "State format_version: 0.5.9 and follow it."),
        Check("format.valid", "format", "skipped", "not judged in an unknown format, see format.version"),
    ]


def _invalid(package: Package, loaded: Any, failed: set[str]) -> Check:
    """The failed check ``format.valid``; skipped where other checks explain all that is wrong."""
    problems: dict[str, None] = {}
    explained: dict[str, None] = {}
    for found in one_per_field(_errors(package, loaded)):
        by = explained_by(package, found)
        if re.search(r"^\w+ data type '.*' does not match", found.text) and "format.dtypes" in failed:
            by = "format.dtypes"
        if by is not None:
            explained[by] = None
        else:
            problems.update(dict.fromkeys(_of_tensors(package, found) or [told(found)]))
    if explained and not problems:
        return Check("format.valid", "format", "skipped", f"nothing else is wrong, see {' and '.join(explained)}")
    shown = list(problems)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    text = one_sentence("; ".join(shown[:_SHOWN]) or "the description is no model's", _MAX_TEXT - len(more)) + more
    return Check("format.valid", "format", "failed", text, _FIX)


def _of_tensors(package: Package, found: Finding) -> list[str]:
    """Errors of the test tensors as a whole, of which spec tells the first, and not always of which tensor."""
    if found.where:
        return []
    if "too small for reliable" in found.text:
        return too_small(package)
    try:
        return wrong_sizes(package) if _OF_SIZES.search(found.text) else []
    except (TypeError, ValueError):  # numbers that are none
        return []


def _load(package: Package, version: str, with_files: bool) -> Any:
    from bioimageio.spec import ValidationContext, build_description

    content = deepcopy(package.rdf)
    if not content.get("covers") and str(content.get("format_version", "")) >= "0.4":
        # Spec would draw absent covers into a temp folder that nobody removes; only the suffix is looked at.
        cover = package.scratch / "cover.png"
        cover.touch()
        content["covers"] = [str(cover)]
    context = ValidationContext(
        root=package.root,
        file_name=package.rdf_name,
        perform_io_checks=with_files,
        # A URL that is "known" is not requested: validation works without a network, and tells nobody.
        known_files=dict.fromkeys(_urls(package.rdf)) if with_files else {},
        log_warnings=False,
        progressbar=False,
    )
    try:
        return build_description(content, context=context, format_version=version)
    except Exception as error:  # spec raises whatever its validators stumble over
        return error


def _urls(value: Any) -> Iterator[str]:
    from pydantic import HttpUrl, TypeAdapter, ValidationError

    if isinstance(value, str) and is_url(value):
        yield value
        try:
            yield str(TypeAdapter(HttpUrl).validate_python(value))  # spec looks up the normalised form
        except ValidationError:
            return
    elif isinstance(value, dict):
        for item in value.values():
            yield from _urls(item)
    elif isinstance(value, list):
        for item in value:
            yield from _urls(item)


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


def _warnings(package: Package, loaded: Any) -> list[Finding]:
    # Spec asks for sample_tensor, which the zoo's deepImageJ check then takes for the test tensor.
    return [
        finding(package, entry.loc, str(entry.type), entry.msg)
        for detail in loaded.validation_summary.details
        for entry in detail.warnings
        if entry.severity >= _WARNING_SEVERITY and "sample_tensor" not in entry.loc
    ]


def _version_check(version: str) -> Check:
    if re.match(r"0\.[45]\.", version):
        return Check("format.version", "format", "passed", f"format_version {version}")
    text = f"format_version {version} is outdated, 0.5 is expected"
    return Check("format.version", "format", "warning", text, "Rewrite the description in format 0.5.")


def _people(rdf: dict[str, Any]) -> list[str]:
    listed = [rdf.get(key) for key in ("authors", "maintainers", "packaged_by")]
    people = [person for group in listed if isinstance(group, list) for person in group if isinstance(person, dict)]
    names = [person.get("github_user") for person in people]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _github_checks(rdf: dict[str, Any]) -> list[Check]:
    from bioimageio.spec._internal.constants import KNOWN_GITHUB_USERS

    unlisted = [name for name in _people(rdf) if name.lower() not in KNOWN_GITHUB_USERS]
    if not unlisted:
        return []
    text = f"github_user {one_sentence(', '.join(unlisted), 200)} was not looked up, since validation uses no network"
    fix = "See that https://github.com/NAME exists; the zoo will look it up."
    return [Check("format.github_user", "format", "warning", text, fix)]


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
