"""Run models in a process of their own, within limits of time and memory.

A model that hangs, takes all memory or kills its process is a failed check; the checks after it are made in a
new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gap_bioimage.validation.checks import Check, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from gap_bioimage.validation.running.worker import Job

_POLL_S = 0.05
_START_S = 300.0
"""Importing torch from a slow disk takes minutes."""
_MAX_DEATHS = 3
_DEFAULT_SHARE = 0.8


@dataclass(frozen=True)
class Limits:
    """How much a model may take.

    Parameters
    ----------
    seconds
        For each check.
    memory_gib
        Memory of its process, GiB; None for 80 % of the machine's.
    """

    seconds: float = 600.0
    memory_gib: float | None = None

    @property
    def memory_bytes(self) -> int:
        """The memory in bytes."""
        import psutil

        if self.memory_gib is None:
            return int(_DEFAULT_SHARE * psutil.virtual_memory().total)
        return int(self.memory_gib * 2**30)


class ModelProcess:
    """A process that runs models, started when the first job comes and again after it had to be ended.

    Use it as a context manager; one serves any number of models, one after the other.

    Parameters
    ----------
    limits
        What each model may take.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._worker: _Worker | None = None

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, job: Job) -> Iterator[Check | tuple[str, str, Path]]:
        """Make all checks of a job.

        Yields
        ------
        Checks, and pictures as check id, title and path. A check during which the process had to be ended, or
        died, has failed.
        """
        done = list(job.done)
        for _ in range(_MAX_DEATHS):
            begun, failed = "run.loads", None
            for message in self._talk(replace(job, done=tuple(done))):
                if "begin" in message:
                    begun = message["begin"]
                elif "picture" in message:
                    check_id, title, path = message["picture"]
                    yield check_id, title, Path(path)
                elif "check" in message:
                    check = Check(**message["check"])
                    done.append(check.id)
                    yield check
                elif "end" not in message:
                    failed = _failed(begun, message)
            if failed is None:
                return
            if begun in done:  # it dies where it had passed before
                break
            done.append(begun)
            yield failed
        text = "the remaining checks were not made, since the model's process did not last"
        yield Check("run.process", "run", "failed", text, "Correct the failed checks first.")

    def _talk(self, job: Job) -> Iterator[dict[str, Any]]:
        """Send a job; yield its messages, the last of which is ``end``, ``died``, ``limit`` or ``error``."""
        if self._worker is None or self._worker.process.poll() is not None:
            self._end()
            self._worker = _Worker.started()
        worker = self._worker
        worker.send(job)
        finished, error = False, None
        try:
            while True:
                message = worker.next(self.limits)
                if "error" in message:  # the death that follows has it as its reason
                    error = message
                    continue
                finished = message.keys() & {"end", "died"} != set()
                yield error if error is not None and "died" in message else message
                if finished or "limit" in message:
                    return
        finally:
            if not finished or worker.process.poll() is not None:  # also where the caller went away
                self._end()

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()


class _Worker:
    """A running `worker`, and what it says."""

    def __init__(self, process: subprocess.Popen[str], stdin: IO[str], stdout: IO[str]) -> None:
        self.process, self._stdin, self._stdout = process, stdin, stdout
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=_read, args=(stdout, self._answers), daemon=True)
        self._reader.start()

    @classmethod
    def started(cls) -> _Worker:
        """Start one and wait until its libraries are imported.

        Raises
        ------
        RuntimeError
            If it does not start.
        """
        package = Path(__file__).parents[3]
        paths = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            # -P: a file of the current folder must not stand in for a library
            [sys.executable, "-P", "-m", "gap_bioimage.validation.running.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C ends us, and we end it
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes to the process for running models")
        worker = cls(process, process.stdin, process.stdout)
        ready = worker.next(Limits(_START_S))
        if "ready" not in ready:
            worker.kill()
            raise RuntimeError("the process for running models does not start; is the installation complete?")
        return worker

    def send(self, job: Job) -> None:
        """Hand over a job."""
        self._stdin.write(job.to_line())
        self._stdin.flush()

    def next(self, limits: Limits) -> dict[str, Any]:
        """The next message; ``limit`` where time or memory ran out, ``died`` where the process is gone."""
        start, memory = time.monotonic(), limits.memory_bytes
        while True:
            try:
                message = self._answers.get(timeout=_POLL_S)
                return message or {"died": f"with exit code {self.process.wait()}"}
            except queue.Empty:
                pass
            if time.monotonic() - start > limits.seconds:
                return {"limit": f"did not finish within {limits.seconds:g} s"}
            if self._memory() > memory:
                return {"limit": f"took more than {memory / 2**30:.3g} GiB of memory"}

    def _memory(self) -> int:
        """Resident memory of the model's own process, bytes."""
        import psutil

        try:
            process = psutil.Process(self.process.pid)
            running = process.children(recursive=True) if hasattr(os, "fork") else [process]
            return sum(int(child.memory_info().rss) for child in running)
        except psutil.Error:  # ended in between
            return 0

    def kill(self) -> None:
        """End it and all that it started."""
        import psutil

        try:
            family = [psutil.Process(self.process.pid)]
            family += family[0].children(recursive=True)
        except psutil.Error:
            family = []
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        self.process.wait()
        self._reader.join()
        self._stdout.close()
        with contextlib.suppress(OSError):  # a job may be stuck in it
            self._stdin.close()


def _read(stream: IO[str], answers: queue.Queue[dict[str, Any] | None]) -> None:
    for line in stream:
        with contextlib.suppress(ValueError):  # cut off in the middle of a line
            answers.put(json.loads(line))
    answers.put(None)


def _failed(check_id: str, message: dict[str, Any]) -> Check:
    """The check during which the process ended."""
    consumer = check_id.split(".", 1)[0]
    if "limit" in message:
        fix = "See that it ends for what this check gives it, and in that memory; --timeout and --memory set both."
        return Check(check_id, consumer, "failed", f"it {message['limit']} and was ended", fix)
    if "died" in message:
        text = f"the process that ran the model ended {message['died']}"
        return Check(check_id, consumer, "failed", text, "See that the model runs in Python by itself.")
    return Check(check_id, consumer, "failed", f"raised {one_sentence(message['error'])}", "See that the model loads.")
