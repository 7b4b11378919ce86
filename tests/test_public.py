"""The public names: importable, lazy, and all that their signatures take."""

import inspect
import re
from pathlib import Path

import pytest

import gap_bioimage as gap

PACKAGE = Path(gap.__file__).parent


@pytest.mark.parametrize("name", gap.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(gap, name) is not None
    assert name in dir(gap)


@pytest.mark.parametrize("name", [name for name in gap.__all__ if name[0].islower()])
def test_what_signatures_take_is_public(name: str) -> None:
    for parameter in inspect.signature(getattr(gap, name)).parameters.values():
        ours = r"\b[A-Z]\w*(?:Config|Model|Detector|Camera|Calibration|Region|Unfinished)\b"
        own = set(re.findall(ours, str(parameter.annotation)))
        assert own <= set(gap.__all__), (name, parameter)


def test_no_module_has_the_name_of_a_public_function() -> None:
    functions = {name for name in gap.__all__ if name[0].islower()}
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert not functions & modules


def test_warnings_and_errors_are_of_one_family_each() -> None:
    for name in gap.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(gap, name), gap.GapError)
        elif name.endswith("Warning"):
            assert issubclass(getattr(gap, name), gap.GapWarning)
    assert issubclass(gap.GapWarning, UserWarning)
