"""Repair what can be repaired mechanically in anybody's model package, into a new zip."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.files import replacing
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.repairing.files import is_leftover
from gap_bioimage.validation.repairing.steps import apply_all
from gap_bioimage.validation.repairing.work import RDF_NAME, Change, Work, unshared
from gap_bioimage.validation.report import validate

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.validation.archive.package import Package
    from gap_bioimage.validation.checks import Check
    from gap_bioimage.validation.report import Report

__all__ = ["Change", "Repaired", "repair"]

_SEVERITY = {"skipped": 0, "passed": 1, "warning": 2, "failed": 3}
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can hold: the same model then makes the same zip."""
_LIKE_A_NUMBER = re.compile(r"[-+.]?\d[\w.+-]*")


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
        return {
            check: (before.get(check, "absent"), status)
            for check, status in after.items()
            if before.get(check, "absent") != status
        }

    @property
    def left(self) -> tuple[Check, ...]:
        """What still fails or warns, failures first."""
        found = [check for check in self.after.checks if check.status in ("failed", "warning")]
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
        If the path is no model that can be unpacked safely, or is written in a format older than 0.4.
    OutputError
        If ``out`` is the model itself, lies inside its folder, is not named ``.zip``, or cannot be written.
    """
    path, out = Path(path), Path(out)
    with open_package(path) as (package, checks):
        if package is None:
            broken = next(check for check in checks if check.status == "failed")
            raise UnreadableModelError(f"{path} is not repaired: {broken.message}. {broken.fix}")
        files = _files_of(package)
        _refuse_output(package, files, out)
        work = _working_copy(package, files)
        changes = apply_all(work)
        # an unchanged description keeps its comments and its layout
        same = work.rdf == unshared(package.rdf)
        description = (package.root / package.rdf_name).read_bytes() if same else _to_yaml(work.rdf)
        with replacing(out) as temporary:
            _write_zip(work, temporary, description)
    validated = [validate(which, run_code=run_code, device=device, on_check=on_check) for which in (path, out)]
    return Repaired(tuple(changes), validated[0], validated[1], tuple(work.notes))


def _files_of(package: Package) -> list[str]:
    """The files that belong to a package; of a yaml's folder those that it names.

    Raises
    ------
    UnreadableModelError
        If the description is none of a model of format 0.4 or 0.5, or cannot be searched for files.
    """
    rdf, source = package.rdf, package.source
    version = str(rdf.get("format_version"))
    if not re.match(r"0\.[45]\.", version):
        raise UnreadableModelError(
            f"{source} is written in format {version}, repair takes 0.4 and 0.5; describe the model in format 0.5.9."
        )
    if rdf.get("type") != "model":
        raise UnreadableModelError(f"{source} describes something of type {rdf.get('type')!r}; repair takes models.")
    # what lies in a folder for git or the operating system never belonged to the package, and is not listed
    names = dict.fromkeys(PurePosixPath(name).as_posix() for name in package.files)
    return [name for name in names if name != package.rdf_name and (package.is_zip or not is_leftover(name))]


def _refuse_output(package: Package, files: list[str], out: Path) -> None:
    if out.suffix.lower() != ".zip":
        raise OutputError(f"cannot write {out}: a model is a zip; give a name that ends in .zip")
    source = package.source
    given = [source] if package.is_zip else [package.root / name for name in [package.rdf_name, *files]]
    if out.exists() and any(out.samefile(file) for file in given):
        raise OutputError(f"cannot write {out}: it is the model that is repaired; choose another name")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"cannot write {out}: it lies inside the model's folder; choose a place outside")


def _working_copy(package: Package, files: list[str]) -> Work:
    folder = package.scratch / "repaired"
    folder.mkdir()
    # what was unpacked for us alone need not be there twice
    bring = os.replace if package.is_zip else shutil.copyfile
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        bring(package.root / name, folder / name)
    return Work(folder, unshared(package.rdf), package.rdf_name)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 takes for texts and YAML 1.2 for numbers, such as 1e5."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> Any:
    style = "'" if _LIKE_A_NUMBER.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _to_yaml(rdf: dict[str, Any]) -> bytes:
    text: str = yaml.dump(rdf, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text.encode("utf-8")


def _write_zip(work: Work, target: Path, description: bytes) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        first = zipfile.ZipInfo(RDF_NAME, _ZIP_DATE)
        first.compress_type, first.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
        archive.writestr(first, description)
        for name in work.names:
            entry = zipfile.ZipInfo(name, _ZIP_DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            entry.file_size = (work.folder / name).stat().st_size  # lets the zip choose its large format
            with (work.folder / name).open("rb") as file, archive.open(entry, "w") as packed:
                shutil.copyfileobj(file, packed, 2**20)
