"""Run models in a process of their own, within limits of time and memory.

A worker imports the libraries once and forks for each model (where the system can fork), so that nothing of one is left
for the next. Jobs go there as pickles; only lines of JSON come back, one before and one after each check: so the
parent knows which check hangs, takes too much memory or kills the process. That check has failed; the rest is made in
a new fork.
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

from gap_bioimage.validation.check import Severity, declare, definition
from gap_bioimage.validation.outcome import Check, one_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gap_bioimage.validation.run.session import Job

_POLL_S = 0.05
_START_S = 300.0
"""Importing torch from a slow disk takes minutes."""
_END_S = 10.0
_MAX_DEATHS = 3
_DEFAULT_SHARE = 0.8
_FORKS = hasattr(os, "fork")

PROCESS = declare(
    "run.process", "run", Severity.BLOCKS, asks="A model that does not bring its process down.",
    breaks="the program that runs it would end", fix="Correct the failed checks first.", order=9,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """How long each check may take, in seconds, and how much memory its process, in GiB (80 % of the machine's)."""

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
    """A process that runs models within limits, one after the other; a context manager, which ends it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self) -> None:
        """Let the worker import its libraries meanwhile."""
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(  # noqa: S603
            # -P: a file of the current folder must not stand in for a library
            [sys.executable, "-P", "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C ends us, and we end it
        )  # fmt: skip
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()

    def run(self, job: Job) -> Iterator[Check | tuple[str, str, Path]]:
        """Make all checks of a job: yield checks, and pictures as check id, title and path.

        Raises
        ------
        RuntimeError
            If the process does not start.
        """
        done = list(job.done)
        for _ in range(_MAX_DEATHS):
            begun, failed = "run.loads", None
            for message in self._talk(replace(job, done=tuple(done), seconds=self.limits.seconds)):
                if "begin" in message:
                    begun = str(message["begin"])
                elif "check" in message:
                    yield from ((message["check"]["id"], title, Path(path)) for title, path in message["drawn"])
                    done.append(message["check"]["id"])
                    yield Check(**message["check"])
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
            with contextlib.suppress(OSError):  # its end will be told
                self._send(job)
            reason: dict[str, Any] = {}
            while not is_over:
                message = self._next(Limits(_END_S) if reason else self.limits)
                if "error" in message or ("limit" in message and not reason):
                    reason = message  # of the end that follows
                    if "limit" in message:
                        self._kill_models()
                    continue
                is_over = not message.keys().isdisjoint({"end", "died", "limit", "gone"})
                if is_over and "died" not in message and "end" not in message:
                    self._end()
                if is_over or not reason:
                    yield reason if is_over and reason else message
        finally:
            if not is_over:  # the caller went away, or it did not start
                self._end()

    def _send(self, job: Job) -> None:
        if self._process is not None and self._process.stdin is not None:
            pickle.dump((os.path.abspath(job.package.root), pickle.dumps(job)), self._process.stdin)
            self._process.stdin.flush()

    def _next(self, limits: Limits) -> dict[str, Any]:
        """The next message; ``limit`` where time or memory ran out, ``gone`` where the worker is no more."""
        start, memory = time.monotonic(), limits.memory_bytes
        while True:
            with contextlib.suppress(queue.Empty):
                return self._answers.get(timeout=_POLL_S)
            if time.monotonic() - start > limits.seconds:
                return {"limit": f"did not finish within {limits.seconds:g} s"}
            if sum(_memory_of(process) for process in self._models()) > memory:
                return {"limit": f"took more than {memory / 2**30:.3g} GiB of memory"}

    def _models(self) -> list[Any]:
        """The processes in which the model runs: the worker's children, or itself where nothing forks."""
        import psutil

        with contextlib.suppress(psutil.Error):
            if self._process is not None:
                worker = psutil.Process(self._process.pid)
                return list(worker.children(recursive=True)) if _FORKS else [worker]
        return []

    def _kill_models(self) -> None:
        for process in self._models():
            with contextlib.suppress(Exception):  # ended in between
                process.kill()

    def _end(self) -> None:
        if self._process is None:
            return
        self._kill_models()
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError, ValueError):  # a job may be stuck in it
                stream.close()


def _memory_of(process: Any) -> int:
    try:
        return int(process.memory_info().rss)
    except Exception:  # ended in between
        return 0


def _read(process: subprocess.Popen[bytes], answers: queue.Queue[dict[str, Any]]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed
        for line in process.stdout or ():
            with contextlib.suppress(ValueError):  # cut off in the middle of a line
                answers.put(json.loads(line))
    answers.put({"gone": f"with exit code {process.poll()}"})


def _failed(check_id: str, message: dict[str, Any]) -> Check:
    """The check during which the process ended: it has failed, however mild it is."""
    consumer, status = definition(check_id).consumer, message.get("status", "failed")
    if "limit" in message:
        fix = "See that it ends for what this check gives it, and in that memory; --timeout and --memory set both."
        return Check(check_id, consumer, "failed", f"it {message['limit']} and was ended", fix)
    ended = message.get("died") or message.get("gone")
    text = str(message.get("error") or f"the process that ran the model ended {ended}")
    return Check(check_id, consumer, status, text, "See that the model runs in Python by itself.")


def _work(job: Job, tell: Callable[..., None]) -> None:
    """Make all checks of one model, telling which is begun and what it found."""
    from gap_bioimage.validation.run.session import Session

    scratch = str(job.package.scratch)
    os.chdir(scratch)  # stray files of a model end where they are removed,
    tempfile.tempdir = scratch  # and so do those that bioimageio.core leaves

    def found(check: Check, drawn: list[tuple[str, Path]]) -> None:
        tell(check=check.to_dict(), drawn=[(title, str(path)) for title, path in drawn])

    try:
        Session(job, lambda check_id: tell(begin=check_id), found).run()
    except BaseException as error:
        is_ours = isinstance(error, Exception)  # what a model raises ends at its check, but for exit()
        text = f"raised {type(error).__name__}: {one_sentence(error, 200)}"
        tell(error=f"the validation itself {text}" if is_ours else text, status="error" if is_ours else "failed")
        raise


def _unpickled(root: str, pickled: bytes) -> Job:
    os.chdir(root)  # bioimageio.spec's paths of files are checked again as they are unpickled, against this folder
    job: Job = pickle.loads(pickled)  # noqa: S301  (from the process that started this one)
    return job


def _in_a_fork(root: str, pickled: bytes, tell: Callable[..., None]) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text("1000")  # rather the model than what else runs here
            gc.freeze()  # bioimageio.core collects garbage often, and the libraries are none
            _work(_unpickled(root, pickled), tell)
            code = 0
        finally:
            # no exit handlers: they belong to the parent, and a model may have added some
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # what the model started itself
    code = os.waitstatus_to_exitcode(status)
    tell(**({"died": f"by signal {-code}" if code < 0 else f"with exit code {code}"} if code else {"end": True}))


def main() -> None:
    """Serve jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    import bioimageio.core
    import torch._inductor.config  # for bioimageio.core's test

    from gap_bioimage.validation.check import import_checks

    del bioimageio.core, torch
    import_checks()
    with contextlib.suppress(EOFError):
        while True:
            tell(ready=True)
            root, pickled = pickle.load(sys.stdin.buffer)  # noqa: S301  (from the process that started this one)
            if _FORKS:
                _in_a_fork(root, pickled, tell)
            else:
                _work(_unpickled(root, pickled), tell)
                tell(end=True)
                return
