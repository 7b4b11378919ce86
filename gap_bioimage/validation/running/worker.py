"""The process in which models run: it reads jobs from standard input and answers in lines of JSON.

``python -m gap_bioimage.validation.running.worker``, started by `process.ModelProcess`. The libraries are imported
once; each job then runs in a fork of its own (where the system can fork), so that nothing of one model is
left for the next. What a model prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gap_bioimage.validation.archive.package import Package
from gap_bioimage.validation.archive.rdf import read_rdf

if TYPE_CHECKING:
    from gap_bioimage.validation.checks import Check


@dataclass(frozen=True)
class Job:
    """One model to run.

    Parameters
    ----------
    source, root, rdf_name, names, scratch
        Of the opened `Package`.
    run_code
        Allow Python code of the package to run.
    device
        Torch device name.
    engines
        Other Python interpreters to run the TorchScript in.
    done
        Ids of checks that are not made again.
    keep
        Folder for arrays and pictures; None keeps nothing.
    pictures
        Folder for pictures of the rest; None draws none.
    """

    source: str
    root: str
    rdf_name: str
    names: tuple[str, ...]
    scratch: str
    run_code: bool
    device: str
    engines: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    keep: str | None = None
    pictures: str | None = None

    @classmethod
    def of(cls, package: Package, **options: Any) -> Job:
        """The job for an opened package."""
        return cls(
            str(package.source),
            str(package.root),
            package.rdf_name,
            package.names,
            str(package.scratch),
            **options,
        )

    def to_line(self) -> str:
        """The job as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"


class Answers:
    """Lines of JSON that tell the parent what happens."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def tell(self, **message: Any) -> None:
        """Send one message."""
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()


def run_job(job: Job, answers: Answers) -> None:
    """Make all checks of one model, telling which is begun and what it found."""
    from gap_bioimage.validation.archive.description import format_checks
    from gap_bioimage.validation.running.execution import Plan, run_checks

    os.chdir(job.scratch)  # stray files of a model end where they are removed,
    tempfile.tempdir = job.scratch  # and so do those that bioimageio.core leaves
    root = Path(job.root)
    rdf, _ = read_rdf(root / job.rdf_name)
    if rdf is None:
        raise ValueError(f"{job.rdf_name} is not readable any more")
    package = Package(Path(job.source), root, job.rdf_name, rdf, tuple(job.names), Path(job.scratch))
    description, _ = format_checks(package)
    if description is None:
        raise ValueError(f"{job.rdf_name} is not valid any more")

    def found(check: Check, drawn: list[tuple[str, Path]]) -> None:
        for title, path in drawn:
            answers.tell(picture=[check.id, title, str(path)])
        answers.tell(check=check.to_dict())

    plan = Plan(
        run_code=job.run_code,
        device=job.device,
        engines=tuple(job.engines),
        done=frozenset(job.done),
        keep=None if job.keep is None else Path(job.keep),
        pictures=None if job.pictures is None else Path(job.pictures),
        begin=lambda check_id: answers.tell(begin=check_id),
        found=found,
    )
    run_checks(package, description, plan)


def _in_a_fork(job: Job, answers: Answers) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run_job(job, answers)
            code = 0
        except BaseException as error:
            answers.tell(error=f"{type(error).__name__}: {error}")
        finally:
            # no exit handlers: they belong to the parent, and a model may have added some
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        answers.tell(died=f"by signal {os.WTERMSIG(status)}")
    elif os.WEXITSTATUS(status) == 0:
        answers.tell(end=True)
    else:
        answers.tell(died=f"with exit code {os.WEXITSTATUS(status)}")


def main() -> None:
    """Serve jobs until standard input ends."""
    answers = Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    import bioimageio.core
    import torch

    import gap_bioimage.validation.running.execution  # noqa: F401  (imported before forking)

    del bioimageio.core, torch
    answers.tell(ready=True)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        if hasattr(os, "fork"):
            _in_a_fork(job, answers)
        else:
            run_job(job, answers)
            answers.tell(end=True)


if __name__ == "__main__":
    main()
