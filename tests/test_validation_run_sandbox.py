"""Models that hang, take all memory or kill their process are failed checks, and the rest goes on."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import zips

from gap_bioimage.validation.check import Check
from gap_bioimage.validation.report import validate
from gap_bioimage.validation.run import sandbox as module
from gap_bioimage.validation.run.sandbox import Limits, Sandbox


def run(path: Path, process: Sandbox) -> dict[str, Check]:
    """What a validation in a process finds, by check id."""
    report = validate(path, run_code=True, process=process)
    checks = {check.id: check for check in report.checks}
    assert len(checks) == len(report.checks)
    return checks


def with_code(folder: Path, body: str, first: str = "import os, sys, time") -> Path:
    """A zip of a state_dict whose network does something before it returns."""
    files = {"tiny.py": f"{first}\n{zips.tiny(body)}".encode()}
    return zips.make_zip(folder, zips.drop("weights", "torchscript"), files=files)


DARK = "float(photons.sum()) == 0"


@pytest.fixture(scope="module")
def limited() -> Any:
    with Sandbox(Limits(seconds=20, memory_gib=2.5)) as process:
        yield process


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"kept = [torch.ones(2**27) for _ in range(40)] if {DARK} else 0", "took more than 2.5 GiB of memory"),
        (f"os.kill(os.getpid(), 11) if {DARK} else None", "ended by signal 11"),
        (f"os._exit(77) if {DARK} else None", "ended with exit code 77"),
        (f"sys.setrecursionlimit(10**9) or self(photons) if {DARK} else None", "RecursionError"),
        (f"exit('gone') if {DARK} else None", "SystemExit: gone"),
        (f"[os.fork() or time.sleep(60) for _ in range(2)] and time.sleep(60) if {DARK} else None", "did not finish"),
    ],
)
def test_a_check_during_which_the_process_ends_has_failed(
    tmp_path: Path, limited: Sandbox, body: str, words: str
) -> None:
    checks = run(with_code(tmp_path, body), limited)
    assert checks["run.zero"].status == "failed" and checks["run.zero"].fix and words in checks["run.zero"].message
    assert "--timeout" in checks["run.zero"].fix or words != "did not finish"
    # those before it and after it were made
    for check_id in ("core.test", "run.loads", "run.reproduces", "run.single_photon", "zoo.name"):
        assert checks[check_id].status == "passed", checks[check_id]
    assert "run.process" not in checks


@pytest.mark.parametrize(("body", "first"), [("os._exit(4)", "import os"), ("", "import os; os._exit(4)")])
def test_a_model_that_always_dies_ends_the_validation(tmp_path: Path, limited: Sandbox, body: str, first: str) -> None:
    checks = run(with_code(tmp_path, body, first), limited)
    assert "exit code 4" in checks["core.test"].message and checks["run.process"].status == "failed"
    assert {"run.zero", "run.loads"}.isdisjoint(checks)
    assert checks["zoo.name"].status == "passed"  # the static rules do not depend on it


def test_one_process_serves_several_models_that_do_not_meet(tmp_path: Path, model_process: Sandbox) -> None:
    leave, see = "setattr(torch, 'left_behind', 1)", "assert not hasattr(torch, 'left_behind')"
    fork = "os.path.exists('forked') or (open('forked', 'w').close(), os.fork())"  # both go through all checks
    for name, body in (("fork", fork), ("leave", leave), ("see", see)):
        (tmp_path / name).mkdir()
        checks = run(with_code(tmp_path / name, body), model_process)
        assert checks["core.test"].status == checks["run.cost"].status == "passed", checks


def test_a_model_that_starts_processes_without_end_is_ended(
    tmp_path: Path, limited: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_PROCESSES", 8)
    body = f"[os.fork() or time.sleep(60) for _ in range(12)] and time.sleep(60) if {DARK} else None"
    checks = run(with_code(tmp_path, body), limited)
    assert "8 processes" in checks["run.zero"].message
    assert checks["run.single_photon"].status == "passed"


@pytest.mark.parametrize("way", ["os.fork() == 0", "os.kill(os.getppid(), 9) is None"])
def test_nothing_is_left_running(tmp_path: Path, limited: Sandbox, way: str) -> None:
    pids = tmp_path / "pids"
    body = f"if {DARK} and {way}: open({str(pids)!r}, 'a').write(f'{{os.getpid()}} ') and time.sleep(60)"
    checks, killed = run(with_code(tmp_path, body), limited), "kill" in way
    assert pids.read_text() and ("ended with exit code -9" in checks["run.zero"].message) == killed
    assert [checks[f"run.{name}"].status == "passed" for name in ("zero", "single_photon")] == [not killed, True]
    for pid in map(int, pids.read_text().split()):
        with contextlib.suppress(psutil.NoSuchProcess):  # what was killed takes a moment to go
            left = psutil.Process(pid)
            assert left.status() == psutil.STATUS_ZOMBIE or left.wait(60) is None


def test_a_model_that_hangs_ends_with_a_validation_that_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    path = with_code(tmp_path, f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} ') and time.sleep(1000)")
    script = f"from gap_bioimage import validate; validate({str(path)!r}, run_code=True)"
    with subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        while not (pids.exists() and pids.read_text().endswith(" ")):
            assert process.poll() is None
            time.sleep(0.05)
        model = psutil.Process(int(pids.read_text()))
        process.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        model.wait(60)  # TimeoutExpired if it goes on


def test_an_interrupted_validation_ends_its_process(
    tmp_path: Path, limited: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(check: Check) -> None:
        if check.id == "run.loads":
            raise KeyboardInterrupt

    path = zips.make_zip(tmp_path, zips.torchscript_only)
    (tmp_path / "json.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path)  # the folder of the user is not imported from
    with pytest.raises(KeyboardInterrupt):
        validate(path, process=limited, on_check=interrupt)
    # the next one starts a process, and is not given the rest of the first one's checks
    assert validate(path, process=limited).status == "passed"


def test_what_models_print_and_leave_behind_disturbs_nobody(
    tmp_path: Path, model_process: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    body = "print('{\"end\": true}'); os.write(1, b'noise'); open('stray.txt', 'w').close()"
    body += "; assert not open(0, closefd=False).read()"
    checks = run(with_code(tmp_path, body), model_process)
    assert checks["core.test"].status == checks["run.cost"].status == "passed"
    assert capfd.readouterr() == ("", "") and list(here.iterdir()) == []


def test_memory_is_a_share_of_the_machine_s_by_default() -> None:
    assert 0.5 * psutil.virtual_memory().total < Limits().memory_bytes < psutil.virtual_memory().total
    assert Limits(memory_gib=2).memory_bytes == 2**31


def test_a_broken_installation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="does not start"):
        validate(zips.make_zip(tmp_path))


@pytest.mark.parametrize("what", ["job", "worker"])
def test_a_job_or_worker_that_is_lost_says_nothing_of_the_model(
    tmp_path: Path, limited: Sandbox, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "job":
        monkeypatch.setattr(module.pickle, "dumps", lambda job: b"no pickle")
    else:
        monkeypatch.setattr(module.pickle, "dump", lambda job, stream: limited._process and limited._process.kill())
    report = validate(zips.make_zip(tmp_path), process=limited)
    assert [check.id for check in report.raised] == ["run.loads"] and report.status == "not-run"
    assert {verdict.verdict for verdict in report.verdicts} == {"unknown"}
