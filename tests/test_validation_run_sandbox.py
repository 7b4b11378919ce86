"""Models that hang, take all memory or kill their process are failed checks, and the rest goes on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import zips

from gap_bioimage.validation.report import Report, validate
from gap_bioimage.validation.run import sandbox as module
from gap_bioimage.validation.run.sandbox import Limits, Sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.outcome import Check


def state_dict_only(rdf: dict[str, Any]) -> None:
    del rdf["weights"]["torchscript"]


def by_id(report: Report) -> dict[str, Check]:
    checks = {check.id: check for check in report.checks}
    assert len(checks) == len(report.checks)
    return checks


def with_code(folder: Path, body: str) -> Path:
    """A zip of a state_dict whose network does something before it returns."""
    source = zips.BLUR.replace("        return rate\n", f"        {body}\n        return rate\n")
    return zips.make_zip(folder, state_dict_only, files={"tiny.py": f"import os, time\n{source}".encode()})


DARK = "float(photons.sum()) == 0"


@pytest.fixture(scope="module")
def limited() -> Any:
    with Sandbox(Limits(seconds=15, memory_gib=2.5)) as process:
        yield process


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"while {DARK}: time.sleep(0.1)", "did not finish within 15 s and was ended"),
        (f"kept = [torch.ones(2**27) for _ in range(40)] if {DARK} else 0", "took more than 2.5 GiB of memory"),
        (f"os.kill(os.getpid(), 11) if {DARK} else None", "ended by signal 11"),
        (f"os._exit(3) if {DARK} else None", "ended with exit code 3"),
        (f"exit('gone') if {DARK} else None", "SystemExit: gone"),
        (f"[os.fork() or time.sleep(60) for _ in range(2)] and time.sleep(60) if {DARK} else None", "did not finish"),
    ],
)
def test_a_check_during_which_the_process_ends_has_failed(
    tmp_path: Path, limited: Sandbox, body: str, words: str
) -> None:
    checks = by_id(validate(with_code(tmp_path, body), run_code=True, process=limited))
    assert checks["run.zero"].status == "failed"
    assert words in checks["run.zero"].message
    assert checks["run.zero"].fix
    # those before it and after it were made
    for check_id in ("core.test", "run.loads", "run.reproduces", "run.single_photon", "zoo.name"):
        assert checks[check_id].status == "passed", checks[check_id]
    assert "run.process" not in checks


def test_a_model_that_always_dies_ends_the_validation(tmp_path: Path, limited: Sandbox) -> None:
    report = validate(with_code(tmp_path, "os._exit(1)"), run_code=True, process=limited)
    checks = by_id(report)
    assert report.status == "failed"
    assert checks["core.test"].status == "failed"
    assert checks["run.process"].status == "failed"
    assert checks["zoo.name"].status == "passed"  # the static rules do not depend on it


def test_dying_while_loading_is_not_tried_again(tmp_path: Path, limited: Sandbox) -> None:
    code = "import os\nos._exit(4)\n" + zips.BLUR
    path = zips.make_zip(tmp_path, state_dict_only, files={"tiny.py": code.encode()})
    checks = by_id(validate(path, run_code=True, process=limited))
    assert "exit code 4" in checks["core.test"].message
    assert "exit code 4" in checks["run.loads"].message
    assert "run.zero" not in checks


def test_one_process_serves_several_models_that_do_not_meet(tmp_path: Path, model_process: Sandbox) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    leave = "setattr(torch, 'left_behind', 1)"
    see = "assert not hasattr(torch, 'left_behind')"
    for folder, body in (("a", leave), ("b", see)):
        report = validate(with_code(tmp_path / folder, body), run_code=True, process=model_process)
        assert report.status == "passed", [check for check in report.checks if check.status == "failed"]


def test_nothing_is_left_running(tmp_path: Path, limited: Sandbox) -> None:
    pids = tmp_path / "pids"
    body = f"if {DARK} and os.fork() == 0: open({str(pids)!r}, 'a').write(f'{{os.getpid()}} ') and time.sleep(60)"
    assert validate(with_code(tmp_path, body), run_code=True, process=limited).status == "passed"
    assert pids.read_text()
    for pid in map(int, pids.read_text().split()):
        with contextlib.suppress(psutil.NoSuchProcess):  # what was killed takes a moment to go
            left = psutil.Process(pid)
            assert left.status() == psutil.STATUS_ZOMBIE or left.wait(60) is None


def test_a_model_that_hangs_ends_with_a_validation_that_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    path = with_code(tmp_path, f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} ') and time.sleep(1000)")
    script = f"from gap_bioimage import validate; validate({str(path)!r}, run_code=True)"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while not (pids.exists() and pids.read_text().endswith(" ")):
            assert process.poll() is None
            time.sleep(0.05)
        model = psutil.Process(int(pids.read_text()))
        process.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        model.wait(60)  # TimeoutExpired if it goes on


def test_an_interrupted_validation_ends_its_process(tmp_path: Path) -> None:
    def interrupt(check: Check) -> None:
        if check.id == "run.loads":
            raise KeyboardInterrupt

    with Sandbox() as process:
        with pytest.raises(KeyboardInterrupt):
            validate(zips.make_zip(tmp_path), process=process, on_check=interrupt)
        # and the next one is not given the rest of the first one's checks
        assert validate(zips.make_zip(tmp_path), process=process).status == "passed"


def test_stray_files_of_a_model_end_in_the_scratch_folder(
    tmp_path: Path, model_process: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = with_code(tmp_path, "open('stray.txt', 'w').close()")
    assert validate(path, run_code=True, process=model_process).status == "passed"
    assert list((tmp_path / "here").iterdir()) == []


def test_what_models_print_does_not_disturb(
    tmp_path: Path, model_process: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "print('{\"end\": true}'); os.write(1, b'noise')"
    report = validate(with_code(tmp_path, body), run_code=True, process=model_process)
    assert report.status == "passed"
    assert by_id(report)["run.cost"].status == "passed"
    assert capfd.readouterr() == ("", "")


def test_the_folder_of_the_user_is_not_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zips.make_zip(tmp_path)
    (tmp_path / "json.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path)
    with Sandbox() as process:
        assert validate(path, process=process).status == "passed"


def test_memory_is_a_share_of_the_machine_s_by_default() -> None:
    assert 0.5 * psutil.virtual_memory().total < Limits().memory_bytes < psutil.virtual_memory().total
    assert Limits(memory_gib=2).memory_bytes == 2**31


def test_a_broken_installation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="does not start"):
        validate(zips.make_zip(tmp_path))


@pytest.mark.parametrize(("share", "words"), [(1 / 3, "did not finish"), (1, "took more than 2 GiB of memory")])
def test_pages_that_forks_share_count_once(share: float, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    used = SimpleNamespace(rss=gib, pss=int(share * gib), uss=0)
    model = SimpleNamespace(memory_info=lambda: used, memory_full_info=lambda: used)
    monkeypatch.setattr(Sandbox, "_models", lambda process: 3 * [model])
    assert words in Sandbox()._next(Limits(seconds=0.1, memory_gib=2))["limit"]


def test_a_job_that_does_not_arrive_says_nothing_of_the_model(
    tmp_path: Path, limited: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.pickle, "dumps", lambda job: b"no pickle")
    report = validate(zips.make_zip(tmp_path), process=limited)
    assert [check.id for check in report.raised] == ["run.loads"]
    assert "the validation itself raised UnpicklingError" in report.raised[0].message
    assert {verdict.verdict for verdict in report.verdicts} == {"unknown"}
    assert report.status == "not-run"


def test_a_worker_that_ends_says_nothing_of_the_model(
    tmp_path: Path, limited: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.pickle, "dump", lambda job, stream: limited._process and limited._process.kill())
    report = validate(zips.make_zip(tmp_path), process=limited)
    assert [check.id for check in report.raised] == ["run.loads"]
    assert not [check for check in report.checks if check.status == "failed"]
