"""Test tensors are compared with what the description declares of them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zips

from gap_bioimage.validation.package.archive import open_package
from gap_bioimage.validation.package.declared import declared_tensors, dtype_checks, too_small, wrong_sizes

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.checks import Check

GOOD = np.load(io.BytesIO(zips.model_files()["input.npy"]))


def dtype_check(path: Path) -> Check | None:
    with open_package(path) as (package, _):
        assert package is not None
        found = dtype_checks(package)
    assert len(found) < 2
    return found[0] if found else None


def test_a_good_package_has_nothing_to_tell(tmp_path: Path) -> None:
    with open_package(zips.make_zip(tmp_path)) as (package, _):
        assert package is not None
        assert [(t.side, t.id, t.name, t.dtype) for t in declared_tensors(package)] == [
            ("input", "photons", "input.npy", "float32"),
            ("output", "rate", "output.npy", "float32"),
        ]
        assert dtype_checks(package) == []
        assert too_small(package) == []
        assert wrong_sizes(package) == []


@pytest.mark.parametrize("dtype", ["float64", "uint16"])
def test_types_that_are_converted_are_a_warning(tmp_path: Path, dtype: str) -> None:
    check = dtype_check(zips.make_zip(tmp_path, files={"input.npy": zips.npy(GOOD.astype(dtype))}))
    assert check is not None
    assert (check.id, check.status) == ("format.dtypes", "warning")
    start = f"the test tensor of input 'photons' (input.npy) is stored as {dtype}, declared is float32;"
    assert check.message.startswith(start)


@pytest.mark.parametrize(("stored", "declared"), [("float32", "uint8"), ("float16", "float32")])
def test_types_that_are_refused_fail_once(tmp_path: Path, stored: str, declared: str) -> None:
    from gap_bioimage.validation.package.description import format_checks

    mutate = zips.put("inputs", 0, "data", value={"type": declared})
    path = zips.make_zip(tmp_path, mutate, files={"input.npy": zips.npy(GOOD.astype(stored))})
    with open_package(path) as (package, _):
        assert package is not None
        found = {check.id: check for check in format_checks(package)[1]}
    assert found["format.dtypes"].status == "failed"
    assert f"is stored as {stored}, declared is {declared}" in found["format.dtypes"].message
    assert found["format.valid"].message == "nothing else is wrong, see format.dtypes"


def test_byte_order_does_not_matter(tmp_path: Path) -> None:
    assert dtype_check(zips.make_zip(tmp_path, files={"input.npy": zips.npy(GOOD.astype(">f4"))})) is None


def test_cropped_halos_are_no_wrong_size(tmp_path: Path) -> None:
    cropped = np.ones((1, 1, 28, 28), np.float32)
    grown = np.ones((1, 1, 36, 36), np.float32)
    for n, values in enumerate((cropped, grown)):
        folder = tmp_path / str(n)
        folder.mkdir()
        with open_package(zips.make_zip(folder, files={"output.npy": zips.npy(values)})) as (package, _):
            assert package is not None
            # bioimageio.spec takes a tensor that is larger by the halo, which is still to be cropped
            assert bool(wrong_sizes(package)) == (values is cropped)


@pytest.mark.parametrize("value", [None, 3, [], {}, [3], [{}], [{"test_tensor": 3}], [{"test_tensor": {"source": []}}]])
def test_odd_descriptions_hold_no_tensors(tmp_path: Path, value: Any) -> None:
    def odd(rdf: dict[str, Any]) -> None:
        rdf.update(inputs=value, outputs=value, test_inputs=value)

    with open_package(zips.make_zip(tmp_path, odd)) as (package, _):
        assert package is not None
        assert list(declared_tensors(package)) == []
        assert dtype_checks(package) == []
        assert wrong_sizes(package) == []
