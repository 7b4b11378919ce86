"""Apply all mechanical repairs to a copy of a model package, and write it as a new zip."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.files import replacing
from gap_bioimage.validation.archive.package import Package, open_package
from gap_bioimage.validation.check import Check, NotApplicable, one_sentence
from gap_bioimage.validation.repair.editor import Change, PackageEditor, is_leftover, to_yaml, unshared
from gap_bioimage.validation.repair.repairs import REPAIRS
from gap_bioimage.validation.report import Report, validate


@dataclass(frozen=True)
class Repaired:
    """The result of a repair."""

    changes: tuple[Change, ...]  # all changes, in order; empty if nothing needed repair
    before: Report
    after: Report
    notes: tuple[str, ...] = ()  # problems that were left alone, and why; one sentence each

    @property
    def turned(self) -> dict[str, tuple[str, str]]:
        """The status before and after of every check whose status changed, by its id."""
        before = {check.id: check.status for check in self.before.checks}
        pairs = {check.id: (before.get(check.id, "absent"), check.status) for check in self.after.checks}
        return {check: pair for check, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def left(self) -> list[Check]:
        """The checks that still fail or warn, failures first."""
        return [c for status in ("failed", "error", "warning") for c in self.after.checks if c.status == status]

    def to_dict(self) -> dict[str, object]:
        """Return the report as ``repair --json`` prints it."""
        return {
            "status": self.after.status, "changes": [asdict(change) for change in self.changes],
            "turned": {check: list(pair) for check, pair in self.turned.items()}, "notes": list(self.notes),
            "before": self.before.to_dict(), "after": self.after.to_dict(),
        }  # fmt: skip


def repair(
    path: str | Path,
    out: str | Path,
    *,
    run_code: bool = False,
    device: str = "cpu",
    on_check: Callable[[Check], None] | None = None,
) -> Repaired:
    """Write a copy of a model with all repairs that need no judgement, and validate both.

    Weights, test tensors and the given model are never changed. Problems that need the authors stay, and the validation
    names them. The zip is also written if nothing needed repair or if it still fails. `UnreadableModelError` is raised
    unless the model has format 0.4 or 0.5 and can be unpacked safely, `OutputError` if ``out`` cannot be written.
    """
    path, out = Path(path), Path(out)
    with open_package(path) as (package, checks):
        if package is None:
            broken = next(check for check in checks if check.status == "failed")
            raise UnreadableModelError(f"{path} is not repaired: {broken.message}. {broken.fix}")
        names = _files_of(package)
        _refuse_output(package, out)
        folder = package.scratch / "repaired"
        folder.mkdir()
        transfer = os.replace if package.is_zip else shutil.copyfile  # unpacked files are temporary anyway
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            transfer(package.root / name, folder / name)
        editor = PackageEditor(folder, unshared(package.rdf), package.rdf_name)
        apply_repairs(editor)
        # an unchanged description keeps its comments and its layout
        is_unchanged = editor.rdf == unshared(package.rdf)
        description = (package.root / package.rdf_name).read_bytes() if is_unchanged else to_yaml(editor.rdf)
        with replacing(out) as temporary:
            editor.write_zip(temporary, description)
    before, after = (validate(zipped, run_code=run_code, device=device, on_check=on_check) for zipped in (path, out))
    return Repaired(tuple(editor.changes), before, after, tuple(editor.notes))


def apply_repairs(editor: PackageEditor) -> None:
    """Make all repairs that a model needs; one that fails on an unexpected description leaves it unchanged."""
    for function in REPAIRS:
        rdf, changes, notes = unshared(editor.rdf), list(editor.changes), list(editor.notes)
        try:
            function(editor)
        except (NotApplicable, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            # third-party descriptions may hold anything anywhere; the validation names the problem
            name, text = function.__name__.replace("_", " "), one_sentence(error, 120)
            note = f"{name}: not repaired, since the description has an unexpected form: {text}"
            editor.rdf, editor.changes, editor.notes = rdf, changes, [*notes, note]
    editor.notes = list(dict.fromkeys(editor.notes))


def _files_of(package: Package) -> list[str]:
    """Return the files of a model of format 0.4 or 0.5; for a yaml, those that it names."""
    version, kind = package.rdf.get("format_version"), package.rdf.get("type")
    if not re.match(r"0\.[45](\.|$)", str(version)):
        state = "states no format_version" if version is None else f"is written in format {version}"
        raise UnreadableModelError(f"{package.source} {state}, repair takes 0.4 and 0.5; describe it in format 0.5.9.")
    if kind != "model":
        state = "states no type" if kind is None else f"describes something of type {kind!r}"
        raise UnreadableModelError(f"{package.source} {state}; repair takes models.")
    # files of git or the operating system in a folder never belonged to the package, so their removal is not listed
    names = dict.fromkeys(PurePosixPath(name).as_posix() for name in sorted({*package.names, *package.named}))
    return [name for name in names if name != package.rdf_name and (package.is_zip or not is_leftover(name))]


def _refuse_output(package: Package, out: Path) -> None:
    source = package.source
    if out.suffix.lower() != ".zip":
        raise OutputError(f"cannot write {out}: a model is a zip; give a name that ends in .zip")
    if package.holds(out):
        raise OutputError(f"cannot write {out}: it is the model to be repaired; choose another name")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"cannot write {out}: it lies inside the model's folder; choose a place outside")
