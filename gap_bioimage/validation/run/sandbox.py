"""Run models in a subprocess, within limits of time and memory.

A worker imports the libraries once and forks for each model (where the system can fork), so that no model leaves
anything behind. Jobs are sent as pickles, but pickles are never read from the child: it answers in lines of JSON, one
before and one after each check. From these the parent knows which check hangs, takes too much memory or kills the
process. That check fails, and the others continue in a new fork. Python's own forkserver is not used: it imports the
caller's script again, even if the script has no ``__main__`` guard.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gap_bioimage.validation.check import RUNS, Check, Picture, Severity, declare, definition, one_sentence
from gap_bioimage.validation.run.reference import CORE_TEST
from gap_bioimage.validation.run.session import Job, Session

_POLL_S = 0.05
_START_S = 300.0  # importing torch from a slow disk takes minutes
_MAX_DEATHS = 3
_MAX_PROCESSES = 200
_MAX_DEPTH = 3_000
_DEFAULT_SHARE = 0.8
_FORKS = hasattr(os, "fork")

PROCESS = declare(
    "run.process", "run", Severity.BLOCKS, asks="A model that does not crash its process.",
    breaks="the program that runs it would crash", fix="Correct the failed checks first.", order=9,
)  # fmt: skip
Message = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Limits of each check: seconds, and GiB of memory of its process (by default 80 % of the machine's)."""

    seconds: float = 600.0
    memory_gib: float | None = None

    @property
    def memory_bytes(self) -> int:
        """The memory in bytes."""
        total = psutil.virtual_memory().total
        return int(_DEFAULT_SHARE * total if self.memory_gib is None else self.memory_gib * 2**30)


class Sandbox(contextlib.AbstractContextManager["Sandbox"]):
    """A subprocess that runs models one after the other, within limits; a context manager, which ends it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[Message] = queue.Queue()
        self._model: int | None = None  # id of the process that runs the model, reported by itself
        self._checked_at = 0.0

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the worker, if it is not running; it imports its libraries in the background."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(  # noqa: S603
            # -P: a file in the current folder must not shadow a library
            [sys.executable, "-P", "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C ends this process, which ends the worker
        )  # fmt: skip
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        return self._process

    def run(self, job: Job) -> Iterator[Check | Picture]:
        """Run all checks of a job; yield checks and, on request, pictures."""
        done = list(job.done)
        for _ in range(_MAX_DEATHS):
            state = Message()
            for message in self._messages(replace(job, done=tuple(done), seconds=self.limits.seconds)):
                if "check" not in message:
                    state |= message
                elif (name := message["check"]["id"]) not in done:  # a model that forks may report it twice
                    files = [(title, Path(path)) for title, path in message["drawn"] if job.pictures]
                    yield from (Picture(name, title, png.read_bytes()) for title, png in files if png.is_file())
                    done.append(name)
                    yield Check(**message["check"])
            if "end" in state and "gone" not in state:
                return
            failed = _failed(state)
            if failed.id in done:  # it ended in a check that had passed before
                break
            done.append(failed.id)
            yield failed
            if failed.id == CORE_TEST.id:  # no other check would finish
                break
        if failed.status != "error":
            yield PROCESS.violated("the remaining checks were not run, since the model's process kept ending")

    def _messages(self, job: Job) -> Iterator[Message]:
        """Send a job and yield its messages; the last one is ``ended``, ``limit`` or ``gone``."""
        process, message, self._model = self.start(), Message(), None
        try:
            if "ready" not in self._next(Limits(_START_S)):
                raise RuntimeError("the process for running models does not start; reinstall gap-bioimage")
            with contextlib.suppress(OSError):  # the next message reports that the worker has ended
                # unpickling checks bioimageio.spec's file paths again, relative to this folder
                pickle.dump((os.path.abspath(job.package.root), pickle.dumps(job)), process.stdin)  # type: ignore[arg-type]
                process.stdin.flush()  # type: ignore[union-attr]
            while message.keys().isdisjoint({"ended", "limit", "gone"}):
                message = self._next(self.limits)
                self._model = message.get("model", self._model)
                yield message
        finally:
            if "ended" not in message:  # the worker is of no further use, or the caller stopped reading
                self._end()

    def _next(self, limits: Limits) -> Message:
        """Return the next message; ``limit`` if time or memory ran out, ``gone`` if the worker has ended."""
        start = time.monotonic()
        while True:
            # before reading messages: endlessly forking processes would always have some
            if time.monotonic() - self._checked_at > _POLL_S and (excess := self._excess(limits.memory_bytes)):
                return {"limit": excess}
            with contextlib.suppress(queue.Empty):
                return self._answers.get(timeout=_POLL_S)
            if self._process is not None and self._process.poll() is not None:  # the model may continue alone
                return {"gone": f"with exit code {self._process.returncode}"}
            if time.monotonic() - start > limits.seconds:
                return {"limit": f"did not finish within {limits.seconds:g} s"}

    def _excess(self, memory: int) -> str:
        self._checked_at, models = time.monotonic(), self._models()
        if len(models) > _MAX_PROCESSES:
            return f"started more than {_MAX_PROCESSES} processes"
        # rss counts pages shared by forks once for each of them; pss divides them, but takes longer to read
        if all(sum(_memory(model, kind) for model in models) > memory for kind in ("rss", "pss")):
            return f"took more than {memory / 2**30:.3g} GiB of memory"
        return ""

    def _models(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            if self._model is not None:
                model = psutil.Process(self._model)
                return [model, *model.children(recursive=True)]
        return []

    def _end(self) -> None:
        if self._process is None:
            return
        for model in self._models():
            with contextlib.suppress(OSError):
                if _FORKS:
                    os.killpg(model.pid, signal.SIGKILL)  # all at once: the remaining ones would start others
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                model.kill()
        process, self._process, self._model = self._process, None, None
        process.kill()
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError, ValueError):  # a job may be stuck in the pipe
                stream.close()


def _memory(process: psutil.Process, kind: str) -> int:
    """Return resident memory (``rss``), or its proportional share (``pss``) where the system reports it, in bytes."""
    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        info = process.memory_info() if kind == "rss" else process.memory_full_info()
        return int(getattr(info, kind, info.rss))
    return 0


def _read(process: subprocess.Popen[bytes], answers: queue.Queue[Message]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed, or cut off in the middle of a line
        for line in process.stdout or ():
            answers.put(json.loads(line))
    answers.put({"gone": f"with exit code {process.poll()}"})


def _failed(message: Message) -> Check:
    """Fail the check during which the process ended, whatever its severity; an error if our own code ended it."""
    check_id = message.get("begin", "run.loads")
    # only a check that has begun can blame the model for the end of the worker
    ours = message.get("ours", "gone" in message and "begin" not in message)
    if limit := message.get("limit"):
        text = f"it {limit} and was ended"
        fix = "Make sure that the model finishes this check within the limits, set by --timeout and --memory."
    else:
        process = "the process that starts models" if ours else "the process that ran the model"
        text = message.get("error") or f"{process} ended {message.get('ended') or message['gone']}"
        fix = "Report it with your model." if ours else RUNS
    return Check(check_id, definition(check_id).consumer, "error" if ours else "failed", text, fix)


def _work(root: str, pickled: bytes, send: Callable[..., None]) -> None:
    set_limit = sys.setrecursionlimit  # if a model raised it, endless recursion would fill stack or memory
    vars(sys)["setrecursionlimit"] = lambda limit: set_limit(min(limit, _MAX_DEPTH))
    try:
        send(model=os.getpid())
        os.chdir(root)
        job: Job = pickle.loads(pickled)  # noqa: S301  (from the process that started this one)
        scratch = str(job.package.scratch)
        os.chdir(scratch)  # stray files of a model are removed with this folder,
        tempfile.tempdir = scratch  # and so are those of bioimageio.core
        Session(job, send).run()
    except BaseException as error:
        text = f"raised {type(error).__name__}: {one_sentence(error, 200)}".rstrip(": ")
        ours = isinstance(error, Exception)  # exceptions of a model are caught by its check, except exit()
        send(error=f"the validation itself {text}" if ours else text, ours=ours)
    else:
        send(end=True)


def _work_in_fork(root: str, pickled: bytes, send: Callable[..., None]) -> None:
    parent, pid = os.getppid(), os.fork()
    if pid == 0:
        try:
            os.setsid()
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text("1000")  # out of memory, the system kills the model first
            gc.freeze()  # bioimageio.core collects garbage often: skip the libraries' objects
            _work(root, pickled, send)
        finally:
            os._exit(0)  # no exit handlers: they belong to the parent, and a model may have added some
    ended, status = 0, 0
    while not ended and os.getppid() == parent:  # if the parent is killed, a hanging model must end, too
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0 if ended else 0.02)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # processes that the model started
    if not ended:
        sys.exit()
    code = os.waitstatus_to_exitcode(status)
    send(ended=f"by signal {-code}" if code < 0 else f"with exit code {code}")


def main() -> None:
    """Serve jobs until standard input ends."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a model that asks its user a question must not wait, or read jobs
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    import bioimageio.core
    import torch._inductor.config  # for bioimageio.core's test

    from gap_bioimage.validation.check import import_checks

    del torch
    bioimageio.core.Tensor(np.zeros(1), dims=["x"])  # the first array makes xarray search for array libraries
    import_checks()
    with contextlib.suppress(EOFError):
        while True:
            send(ready=True)
            root, pickled = pickle.load(jobs)  # noqa: S301  (from the process that started this one)
            (_work_in_fork if _FORKS else _work)(root, pickled, send)
            if not _FORKS:
                send(ended="")
                return
