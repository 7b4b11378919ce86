"""Own postprocessing: what a zip may rely on is accepted, everything else refused in a sentence."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gap_bioimage.errors import ExportError
from gap_bioimage.exporting.operation import Operation, parse_kwargs, read_operation

if TYPE_CHECKING:
    from pathlib import Path

ARRAY = np.random.default_rng(0).gamma(2.0, 1.5, (1, 3, 24, 20)).astype(np.float32)
MASK = """
import numpy as np
from dataclasses import dataclass


@dataclass
class Op:
    above: float = 2.0

    def __call__(self, array):
        return (array > self.above).astype(np.uint8)
"""


def operation(body: str, **kwargs: Any) -> Operation:
    """An operation whose class answers with ``body``."""
    source = MASK.replace("return (array > self.above).astype(np.uint8)", body)
    return Operation("postprocessing.py", source.encode(), "Op", kwargs)


def written(folder: Path, source: str = MASK) -> str:
    (folder / "mask.py").write_text(source)
    return str(folder / "mask.py")


def test_a_pointwise_operation_is_applied_without_a_word(tmp_path: Path) -> None:
    found = read_operation(f"{written(tmp_path)}:Op", {"above": 1.5})
    assert (found.file_name, found.source, found.callable) == ("postprocessing.py", MASK.encode(), "Op")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = found.apply_checked(ARRAY)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, ARRAY > 1.5)


NOT_MADE = [
    ("class Op: ...", "Other", {}, "Other is not there"),
    ("Op = 3", "Op", {}, "Op is a int"),
    ("import a_module_that_is_nowhere", "Op", {}, "cannot be imported by itself: ModuleNotFoundError"),
    ("def broken(:", "Op", {}, "cannot be imported by itself: SyntaxError"),
    (MASK, "Op", {"below": 1}, r"Op\(below=1\) cannot be made: TypeError.*postprocessing_kwargs"),
    ("class Op: ...", "Op", {}, r"Op\(\) is a Op, expected something to call"),
    (MASK, "Op", {"above": object()}, "plain values of yaml"),
    (MASK, "Op", {"above": (1, 2)}, "plain values of yaml"),
]


@pytest.mark.parametrize(("source", "name", "kwargs", "message"), NOT_MADE, ids=range(len(NOT_MADE)))
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, source: str, name: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message) as error:
        read_operation(f"{written(tmp_path, source)}:{name}", kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["mask.py", "mask.py:", "mask.txt:Op", ":Op", "mask.py:Op()", ""])
def test_places_are_a_file_and_a_name(place: str) -> None:
    with pytest.raises(ExportError, match=r"expected FILE\.py:NAME"):
        read_operation(place)


def test_files_beside_the_operation_are_not_there_for_others(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("")
    with pytest.raises(ExportError, match="no files beside it"):
        read_operation(f"{written(tmp_path, 'import beside')}:Op")


UNFIT = [
    ("return array[..., 1:]", "expected the same shape"),
    ("return array[0]", "expected the same shape"),
    ("return array.tolist()", "returned a list, expected a numpy array"),
    ("return array > 1", "returns bool, expected one of float32"),
    ("return array.astype(complex)", "returns complex128"),
    ("return array.astype(np.float16)", "returns float16"),
    ("return array.astype(str)", "returns str"),
    ("return np.log(array * 0)", "1440 values that are not finite"),
    ("raise OSError('no disk')", "raised OSError: no disk for an array of shape"),
    ("return array + np.random.random(array.shape)", "another result for the same array"),
    ("self.above += 1; return array + self.above", "another result for the same array"),
]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("body", "message"), UNFIT)
def test_what_consumers_could_not_use_is_refused(body: str, message: str) -> None:
    with pytest.raises(ExportError, match=message) as error:
        operation(body).apply_checked(ARRAY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        "return array / array.mean()",
        "return array - np.roll(array, 1, axis=-1)",
        "return array + np.arange(array.shape[-2], dtype=np.float32)[:, None]",
    ],
)
def test_what_looks_beyond_the_pixel_is_warned_about(body: str) -> None:
    with pytest.warns(UserWarning, match="will show seams"):
        result = operation(body).apply_checked(ARRAY)
    assert result.shape == ARRAY.shape


@pytest.mark.parametrize(
    "body", ["return np.sqrt(array)", "return array[:, ::-1].copy()", "return array - array.mean(1, keepdims=True)"]
)
def test_channels_may_be_mixed(body: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operation(body).apply_checked(ARRAY)


def test_the_input_is_not_changed_for_others() -> None:
    before = ARRAY.copy()
    operation("array *= 2; return array").apply_checked(ARRAY)
    np.testing.assert_array_equal(ARRAY, before)


def test_kwargs_are_yaml_or_json() -> None:
    assert parse_kwargs(None) == {}
    assert parse_kwargs("{threshold: 2.5, names: [a, b]}") == {"threshold": 2.5, "names": ["a", "b"]}
    assert parse_kwargs('{"threshold": 2.5}') == {"threshold": 2.5}
    for text in ("2.5", "[1]", "{", "text"):
        with pytest.raises(ExportError, match="expected a mapping"):
            parse_kwargs(text)
