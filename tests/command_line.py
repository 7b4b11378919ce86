"""The command line in this process and in one of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gap_bioimage.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return Result(int(end.value.code or 0), *capsys.readouterr())

    return call


def one_sentence(result: Result) -> str:
    assert result.code == 2, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.out + result.err
    assert "please report" not in lines[0]
    return lines[0].removeprefix("error: ")


def python(*arguments: object) -> Result:
    """Run Python on this project, with the tests on its path, in a process of its own."""
    tests = Path(__file__).parent
    path = os.pathsep.join(map(str, (tests.parent, tests)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    return Result(done.returncode, done.stdout, done.stderr)
