"""Repair what can be repaired mechanically in anybody's model package, into a new zip."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.files import replacing
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import one_sentence
from gap_bioimage.validation.repair import axes, description, files
from gap_bioimage.validation.repair.editor import PackageEditor, to_yaml, unshared
from gap_bioimage.validation.report import validate

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.validation.archive.package import Package
    from gap_bioimage.validation.check import Check
    from gap_bioimage.validation.repair.editor import Change
    from gap_bioimage.validation.report import Report

REPAIRS: tuple[Callable[[PackageEditor], None], ...] = (
    description.rename_description,
    # The format comes first, since the other repairs write what it wants.
    description.convert_04,
    description.lower_format,
    description.plain_strings,
    description.fill_id,
    files.plain_paths,
    # Hashes come before any file is changed: a wrong one is then the authors' and not ours.
    files.hashes,
    files.remove_leftovers,
    files.flatten,
    description.identifiers,
    axes.axis_ids,
    axes.channel_names,
    axes.axis_scale,
    axes.min_of_step,
    axes.min_halo,
    axes.grid,
    description.deepimagej_config,
    description.sample_tensors,
    files.readme,
    files.covers,
)
"""All repairs, in the order in which they are made; rules name them. Each changes nothing the second time."""

_SEVERITY = {"skipped": 0, "passed": 1, "warning": 2, "error": 3, "failed": 4}


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Parameters
    ----------
    changes
        All that was changed, in order; empty where nothing was to be repaired.
    before, after
        The validation of the given model and of the written zip.
    notes
        What looked repairable and was left alone, and why; one sentence each.
    """

    changes: tuple[Change, ...]
    before: Report
    after: Report
    notes: tuple[str, ...] = ()

    @property
    def turned(self) -> dict[str, tuple[str, str]]:
        """Status before and after of every check whose status changed, by its id."""
        before, after = _statuses(self.before), _statuses(self.after)
        pairs = {check: (before.get(check, "absent"), status) for check, status in after.items()}
        return {check: pair for check, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def left(self) -> tuple[Check, ...]:
        """What still fails or warns, failures first."""
        found = [check for check in self.after.checks if _SEVERITY[check.status] > 1]
        return tuple(sorted(found, key=lambda check: -_SEVERITY[check.status]))

    def to_dict(self) -> dict[str, object]:
        """The report as ``repair --json`` prints it."""
        return {
            "status": self.after.status,
            "changes": [asdict(change) for change in self.changes],
            "turned": {check: list(pair) for check, pair in self.turned.items()},
            "notes": list(self.notes),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }


def _statuses(report: Report) -> dict[str, str]:
    found: dict[str, str] = {}
    for check in report.checks:
        found[check.id] = max(found.get(check.id, "skipped"), check.status, key=lambda status: _SEVERITY[status])
    return found


def repair(
    path: str | Path,
    out: str | Path,
    *,
    run_code: bool = False,
    device: str = "cpu",
    on_check: Callable[[Check], None] | None = None,
) -> Repaired:
    """Write a copy of a model with everything mended that needs no judgement, and validate both.

    Weights and test tensors are never changed, and the given model is never written to. What needs its authors is
    left as it is; the validation names it.

    Parameters
    ----------
    path
        A model zip, a folder that holds a description, or the description's yaml itself.
    out
        The zip to write, also where nothing was to be repaired or the result still fails.
    run_code
        Allow Python code of the package to run when validating.
    device
        Torch device to validate on.
    on_check
        Called with every check of both validations as soon as it is made.

    Raises
    ------
    UnreadableModelError
        If the path is not a model that can be unpacked safely, or is written in a format older than 0.4.
    OutputError
        If ``out`` is the model itself, lies inside its folder, is not named ``.zip``, or cannot be written.
    """
    path, out = Path(path), Path(out)
    with open_package(path) as (package, checks):
        if package is None:
            broken = next(check for check in checks if check.status == "failed")
            raise UnreadableModelError(f"{path} is not repaired: {broken.message}. {broken.fix}")
        names = _files_of(package)
        _refuse_output(package, names, out)
        editor = _working_copy(package, names)
        apply_repairs(editor)
        # an unchanged description keeps its comments and its layout
        same = editor.rdf == unshared(package.rdf)
        written = (package.root / package.rdf_name).read_bytes() if same else to_yaml(editor.rdf)
        with replacing(out) as temporary:
            editor.write_zip(temporary, written)
    validated = [validate(which, run_code=run_code, device=device, on_check=on_check) for which in (path, out)]
    return Repaired(tuple(editor.changes), validated[0], validated[1], tuple(editor.notes))


def apply_repairs(editor: PackageEditor) -> None:
    """Make all repairs that a model needs; one that does not understand the description leaves it as it was."""
    for function in REPAIRS:
        rdf, changes, notes = unshared(editor.rdf), list(editor.changes), list(editor.notes)
        try:
            function(editor)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            # anybody's description may hold anything anywhere; the validation says what is wrong with it
            editor.rdf, editor.changes, editor.notes = rdf, changes, notes
            name, text = function.__name__.replace("_", " "), one_sentence(error, 120)
            editor.notes.append(f"{name}: the description could not be understood here: {text}")


def _files_of(package: Package) -> list[str]:
    """The files that belong to a package; of a yaml's folder those that it names.

    Raises
    ------
    UnreadableModelError
        If the description is not one of a model of format 0.4 or 0.5.
    """
    rdf, source = package.rdf, package.source
    version = str(rdf.get("format_version"))
    if not re.match(r"0\.4\.|0\.5(\.|$)", version):
        raise UnreadableModelError(
            f"{source} is written in format {version}, repair takes 0.4 and 0.5; describe it in format 0.5.9."
        )
    if rdf.get("type") != "model":
        raise UnreadableModelError(f"{source} describes something of type {rdf.get('type')!r}; repair takes models.")
    # what lies in a folder for git or the operating system never belonged to the package, and is not listed
    names = dict.fromkeys(PurePosixPath(name).as_posix() for name in package.files)
    return [name for name in names if name != package.rdf_name and (package.is_zip or not files.is_leftover(name))]


def _refuse_output(package: Package, names: list[str], out: Path) -> None:
    if out.suffix.lower() != ".zip":
        raise OutputError(f"cannot write {out}: a model is a zip; give a name that ends in .zip")
    source = package.source
    given = [source] if package.is_zip else [package.root / name for name in [package.rdf_name, *names]]
    if out.exists() and any(out.samefile(file) for file in given):
        raise OutputError(f"cannot write {out}: it is the model that is repaired; choose another name")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"cannot write {out}: it lies inside the model's folder; choose a place outside")


def _working_copy(package: Package, names: list[str]) -> PackageEditor:
    folder = package.scratch / "repaired"
    folder.mkdir()
    # what was unpacked for us alone need not be there twice
    bring = os.replace if package.is_zip else shutil.copyfile
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        bring(package.root / name, folder / name)
    return PackageEditor(folder, unshared(package.rdf), package.rdf_name)
