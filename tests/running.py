"""Run checks of tiny models in this process, or all the others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gap_bioimage.validation.archive.description import format_checks
from gap_bioimage.validation.archive.examine import examine
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import Check, NotApplicable, Outcome, definitions
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.run.runner import Runner
from gap_bioimage.validation.run.session import Job, Session


def judged(judge: Callable[[Runner], Any], path: Path, weights_format: str = "torchscript") -> Any:
    """What a check says of the weights of a zip."""
    with open_package(path) as (package, _):
        assert package is not None
        description, checks = format_checks(package)
        assert description is not None, checks
        entry = package.rdf["weights"][weights_format]
        descr = description.upgraded or description.as_written
        with Runner(descr, weights_format, "cpu", package.file(entry["source"]), package.rdf) as runner:
            try:
                return judge(runner)
            except NotApplicable as reason:
                return Outcome("skipped", str(reason))


def ran(path: Path, **options: Any) -> dict[str, Check]:
    """What running a model finds, by check id, whatever is wrong with its files."""
    found: list[Check] = []
    with open_package(path) as (package, _):
        assert package is not None
        description, checks = format_checks(package)
        assert description is not None, checks
        job = Job(package, description, **{"run_code": True, **options})
        Session(job, lambda **told: found.append(Check(**told["check"])) if "check" in told else None).run()
    assert len({check.id for check in found}) == len(found)
    return {check.id: check for check in found}


def static_validate(path: Path, **_: object) -> Report:
    """Everything but running the model."""
    with open_package(path) as (package, checks):
        assert package is not None
        examined = examine(package)
        partners = [made.judge(Model(package, examined.description)) for made in definitions("rule")]
        softened = [replace(check, status="warning") if check.status == "failed" else check for check in partners]
        ran = Check("core.test", "core", "passed", "not really")
        return Report(str(path), (*checks, *examined.checks, ran, *softened))
