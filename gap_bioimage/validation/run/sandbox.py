"""Run models in a process of their own, within limits of time and memory.

`Sandbox` starts one worker, which imports the libraries once and forks for each model (where the system can fork), so
that nothing of one model is left for the next. Jobs go there as pickles; only lines of JSON come back, one before and
one after each check: the parent knows which check hangs, takes too much memory or kills the process. That check has failed, and
those after it are made in a new fork.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import Check, Severity, declare, definition, one_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from gap_bioimage.validation.run.session import Job

_POLL_S = 0.05
_START_S = 300.0
"""Importing torch from a slow disk takes minutes."""
_MAX_DEATHS = 3
_DEFAULT_SHARE = 0.8
_FORKS = hasattr(os, "fork")

PROCESS = declare(
    "run.process",
    "run",
    Severity.BLOCKS,
    asks="A model that does not bring its process down.",
    breaks="the program that runs it would end",
    fix="Correct the failed checks first.",
    order=9,
)


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


class Sandbox:
    """A process that runs models, started by `start` or when the first job comes.

    Use it as a context manager; one serves any number of models, one after the other.

    Parameters
    ----------
    limits
        What each model may take.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> None:
        """Let the worker import its libraries meanwhile."""
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        package = Path(__file__).parents[3]
        paths = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            # -P: a file of the current folder must not stand in for a library
            [sys.executable, "-P", "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C ends us, and we end it
        )
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()

    def run(self, job: Job) -> Iterator[Check | tuple[str, str, Path]]:
        """Make all checks of a job.

        Yields
        ------
        Checks, and pictures as check id, title and path. A check during which the process had to be ended, or
        died, has failed.

        Raises
        ------
        RuntimeError
            If the process does not start.
        """
        job = replace(job, seconds=self.limits.seconds)
        done = list(job.done)
        for _ in range(_MAX_DEATHS):
            begun, failed = "run.loads", None
            for message in self._talk(replace(job, done=tuple(done))):
                if "begin" in message:
                    begun = str(message["begin"])
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
        yield PROCESS.violated("the remaining checks were not made, since the model's process did not last")

    def _talk(self, job: Job) -> Iterator[dict[str, Any]]:
        """Send a job; yield its messages, the last of which is ``end``, ``died``, ``limit`` or ``error``."""
        self.start()
        is_over = False
        try:
            if "ready" not in self._next(Limits(_START_S)):
                raise RuntimeError("the process for running models does not start; is the installation complete?")
            self._send(job)
            error: dict[str, Any] = {}
            while not is_over:
                message = self._next(self.limits)
                if "error" in message:  # the death that follows has it as its reason
                    error = message
                    continue
                if "limit" in message:
                    error = message
                    self._kill_models()
                    message = self._next(Limits(_POLL_S * 200))
                    while message.keys().isdisjoint({"end", "died", "limit", "gone"}):
                        message = self._next(Limits(_POLL_S * 200))
                is_over = not message.keys().isdisjoint({"end", "died", "limit", "gone"})
                yield error if is_over and error else message
                if not message.keys().isdisjoint({"limit", "gone"}):
                    self._end()
        finally:
            if not is_over:  # the caller went away, or it did not start
                self._end()

    def _send(self, job: Job) -> None:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("the process for running models has not been started")
        with contextlib.suppress(OSError):  # its end will be told
            pickle.dump(job, self._process.stdin)
            self._process.stdin.flush()

    def _next(self, limits: Limits) -> dict[str, Any]:
        """The next message; ``limit`` where time or memory ran out, ``gone`` where the worker is no more."""
        start, memory = time.monotonic(), limits.memory_bytes
        while True:
            with contextlib.suppress(queue.Empty):
                return self._answers.get(timeout=_POLL_S)
            if time.monotonic() - start > limits.seconds:
                return {"limit": f"did not finish within {limits.seconds:g} s"}
            if sum(_memory_of(child) for child in self._models()) > memory:
                return {"limit": f"took more than {memory / 2**30:.3g} GiB of memory"}

    def _models(self) -> list[Any]:
        """The processes in which the model runs: the worker's children, or itself where nothing forks."""
        import psutil

        if self._process is None:
            return []
        with contextlib.suppress(psutil.Error):
            worker = psutil.Process(self._process.pid)
            return list(worker.children(recursive=True)) if _FORKS else [worker]
        return []

    def _kill_models(self) -> None:
        for process in self._models():
            with contextlib.suppress(Exception):  # ended in between
                process.kill()

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        self._kill_models()
        self._process = None
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, AttributeError, ValueError):  # a job may be stuck in it
                stream.close()  # type: ignore[union-attr]


def _memory_of(process: Any) -> int:
    try:
        return int(process.memory_info().rss)
    except Exception:  # ended in between
        return 0


def _read(process: subprocess.Popen[bytes], answers: queue.Queue[dict[str, Any]]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed
        for line in process.stdout or ():
            with contextlib.suppress(ValueError):  # cut off in the middle of a line
                message = json.loads(line)
                if isinstance(message, dict):
                    answers.put(message)
    answers.put({"gone": f"with exit code {process.poll()}"})


def _failed(check_id: str, message: dict[str, Any]) -> Check:
    """The check during which the process ended, which has failed, however mild it is."""
    consumer = definition(check_id).consumer
    if "limit" in message:
        fix = "See that it ends for what this check gives it, and in that memory; --timeout and --memory set both."
        return Check(check_id, consumer, "failed", f"it {message['limit']} and was ended", fix)
    if "error" in message:
        return Check(check_id, consumer, message["status"], str(message["error"]), "See that the model loads.")
    text = f"the process that ran the model ended {message.get('died') or message.get('gone')}"
    return Check(check_id, consumer, "failed", text, "See that the model runs in Python by itself.")


def _work(job: Job, tell: Callable[..., None]) -> None:
    """Make all checks of one model, telling which is begun and what it found."""
    from gap_bioimage.validation.run.session import Session

    scratch = str(job.package.scratch)
    os.chdir(scratch)  # stray files of a model end where they are removed,
    tempfile.tempdir = scratch  # and so do those that bioimageio.core leaves

    def found(check: Check, drawn: list[tuple[str, Path]]) -> None:
        for title, path in drawn:
            tell(picture=[check.id, title, str(path)])
        tell(check=check.to_dict())

    try:
        Session(job, lambda check_id: tell(begin=check_id), found).run()
    except Exception as error:  # ours: what a model raises does not come here
        tell(error=f"this check itself raised {type(error).__name__}: {one_sentence(error, 200)}", status="error")
        raise
    except BaseException as error:
        tell(error=f"raised {type(error).__name__}: {one_sentence(error, 200)}", status="failed")
        raise


def _in_a_fork(job: Job, tell: Callable[..., None]) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text("1000")  # rather the model than what else runs here
            gc.freeze()  # bioimageio.core collects garbage often, and the libraries are none
            _work(job, tell)
            code = 0
        finally:
            # no exit handlers: they belong to the parent, and a model may have added some
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # what the model started itself
    if os.WIFSIGNALED(status):
        tell(died=f"by signal {os.WTERMSIG(status)}")
    elif os.WEXITSTATUS(status) == 0:
        tell(end=True)
    else:
        tell(died=f"with exit code {os.WEXITSTATUS(status)}")


def main() -> None:
    """Serve jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    import bioimageio.core
    import torch

    from gap_bioimage.validation.check import import_checks

    del bioimageio.core, torch
    import_checks()
    while True:
        tell(ready=True)
        try:
            job = pickle.load(sys.stdin.buffer)  # noqa: S301  (from the process that started this one)
        except EOFError:
            return
        if not _FORKS:
            _work(job, tell)
            tell(end=True)
            return
        _in_a_fork(job, tell)
