"""The description as bioimageio.spec reads it, without a network and without generated covers left over."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.checks import Check, one_sentence
from gap_bioimage.validation.package.references import is_url
from gap_bioimage.validation.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.package.archive import Package

_SHOWN = 5
_MAX_TEXT = 900
_WARNING_SEVERITY = 30
"""bioimageio.spec's severities: 20 and below is information."""


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
    version = one_sentence(package.rdf.get("format_version", "absent"), 40) or "empty"
    checks = [_version_check(version), *_github_checks(package.rdf)]
    with quiet(), _known_people(package.rdf):
        written = _load(package, "discover", with_files)
        upgraded = written
        if _is_model(written) and version.startswith("0.4"):
            upgraded = _load(package, "latest", with_files)
    errors, warnings = _findings(written)
    if not _is_model(written):
        kind = one_sentence(repr(package.rdf.get("type")), 80)
        text = "; ".join(errors[:_SHOWN]) or f"the description is of type {kind}, not a model"
        text = one_sentence(text.replace(f"{package.root}{os.sep}", ""), _MAX_TEXT)
        fix = "Correct the named fields; the format is described at https://bioimage-io.github.io/spec-bioimage-io."
        return None, [*checks, Check("format.valid", "format", "failed", text, fix)]
    checks.append(Check("format.valid", "format", "passed", f"a valid model description of format {version}"))
    if warnings:
        more = f" and {len(warnings) - _SHOWN} more" if len(warnings) > _SHOWN else ""
        text = one_sentence("; ".join(warnings[:_SHOWN]), _MAX_TEXT) + more
        checks.append(Check("format.recommended", "format", "warning", text, "Fill in the named fields."))
    return Description(written, upgraded if _is_model(upgraded) else None), checks


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


def _findings(loaded: Any) -> tuple[list[str], list[str]]:
    """Errors and warnings of a validation, each as ``where: what``."""
    if isinstance(loaded, Exception):
        return [one_sentence(loaded)], []
    details = loaded.validation_summary.details
    # Spec asks for sample_tensor, which the zoo's deepImageJ check then takes for the test tensor.
    # One error per field: spec lists every alternative of a union that did not match.
    first = {tuple(entry.loc[:3]): entry for detail in reversed(details) for entry in reversed(detail.errors)}
    errors = [_line(entry) for entry in reversed(first.values())]
    warnings = [
        _line(entry)
        for detail in details
        for entry in detail.warnings
        if entry.severity >= _WARNING_SEVERITY and "sample_tensor" not in entry.loc
    ]
    return list(dict.fromkeys(errors)), list(dict.fromkeys(warnings))


def _line(entry: Any) -> str:
    # Locations also name the validators tried, e.g. 'function-after[CallableFromFile(), str]': no use here.
    where = ".".join(str(part) for part in entry.loc if re.fullmatch(r"\w+", str(part)))
    return f"{one_sentence(where, 80) or 'description'}: {one_sentence(entry.msg, 160)}"


def _version_check(version: str) -> Check:
    if re.match(r"0\.[45]\.", version):
        return Check("format.version", "format", "passed", f"format_version {version}")
    if re.match(r"0\.3\.", version):
        text = f"format_version {version} is outdated, 0.5 is expected"
        return Check("format.version", "format", "warning", text, "Rewrite the description in format 0.5.")
    text = f"format_version is {version}, expected 0.4.x or 0.5.x"
    return Check("format.version", "format", "failed", text, "State format_version: 0.5.9 and follow it.")


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
