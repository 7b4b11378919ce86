"""Fixtures for all tests."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from command_line import run  # noqa: F401  (fixture)
from fixtures_model import trained_2d, trained_3d, unchecked_zip_2d  # noqa: F401  (fixtures)

from gap_bioimage.validation.run.sandbox import Sandbox

_ROOT = Path(__file__).parent.parent

# Machines differ in speed: no test is about time. A run tries the examples that the last run tried, so that a change
# is judged by what it changed; to look for new ones there is --hypothesis-profile=explore.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("repeatable")


# Workers take whole files, in this order: those first that take minutes, so that none of them is left over at the end.
_LONG = ("test_end_to_end", "test_exporting", "test_training_fit", "test_training_run_folder", "test_validation_run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take longest begin first, and then those with the most tests."""
    tests = Counter(item.path for item in items)

    def order(item: pytest.Item) -> tuple[int, int, Path]:
        place = next((n for n, name in enumerate(_LONG) if item.path.stem.startswith(name)), len(_LONG))
        return place, -tests[item.path], item.path

    items.sort(key=order)


def pytest_configure() -> None:
    """Give each worker one thread, and what it starts: threads that wait for each other take many times as long."""
    import torch

    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of development data; tests that need it are skipped where there is none."""
    data = Path(os.environ.get("GAP_BIOIMAGE_SHARED", _ROOT / ".." / "shared")) / "data"
    if not data.is_dir():
        pytest.skip(f"no development data at {data}")
    return data


@pytest.fixture(scope="session")
def model_process() -> Iterator[Sandbox]:
    """Return a process for running models, which is started once for all tests."""
    from gap_bioimage.validation.run.sandbox import Limits, Sandbox

    with Sandbox(Limits(120)) as process:
        yield process


@pytest.fixture(scope="session")
def old_python() -> str:
    """Return the system's Python, if that has an older torch than ours."""
    import torch

    python = shutil.which("python3", path=os.defpath) or ""
    command = [python, "-c", "import torch; print(torch.__version__)"]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        pytest.skip("the system has no Python")

    def version(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".")[:2])

    if probe.returncode or version(probe.stdout) >= version(torch.__version__):
        pytest.skip("no older torch")
    return python


@pytest.fixture(scope="session")
def old_torch(old_python: str) -> Callable[..., None]:
    """Return a function that runs a script with arguments in ``old_python``."""

    def in_old_python(script: str, *arguments: object) -> None:
        subprocess.run([old_python, "-c", script, *map(str, arguments)], check=True, timeout=120)

    return in_old_python
