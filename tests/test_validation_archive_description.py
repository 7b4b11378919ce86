"""What bioimageio.spec says of a description, in plain words; no network is used and nothing is left behind."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zips
from zips import both, drop, put

from gap_bioimage.validation.archive.description import Description
from gap_bioimage.validation.archive.examine import examine
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import Check
from gap_bioimage.validation.report import validate
from gap_bioimage.validation.run.sandbox import Sandbox

CASES = Path(__file__).parents[2] / "shared" / "cases"
JARGON = ("Value error", "Input should", "pydantic", "https://errors", "RelativePath", "union", "[type=", "KeyError")
AXIS = ("inputs", 0, "axes", 2)


def judged(path: Path) -> tuple[Description | None, dict[str, Check]]:
    with open_package(path) as (package, _):
        assert package is not None
        examined = examine(package)
    return examined.description, {check.id: check for check in examined.checks}


def message(path: Path) -> str:
    return judged(path)[1]["format.valid"].message


def old(*mutations: zips.Mutation) -> zips.Mutation:
    """A mutation of the model as format 0.4 describes it."""
    return both(zips.to_format_0_4(), *mutations)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a request was made")

    for name in ("get", "request", "stream", "head"):
        monkeypatch.setattr(httpx, name, refuse)


def test_good_description_and_unlisted_people_without_a_network(tmp_path: Path, no_network: None) -> None:
    from bioimageio.spec._internal.constants import KNOWN_GITHUB_USERS

    before = set(KNOWN_GITHUB_USERS)
    description, checks = judged(zips.make_zip(tmp_path))
    assert {check.status for check in checks.values()} == {"passed"}
    assert description is not None and description.weights == ("pytorch_state_dict", "torchscript")
    description, checks = judged(zips.make_zip(tmp_path, put("maintainers", 0, "github_user", value="unlisted-one")))
    assert description is not None and checks["format.github_user"].status == "warning"
    assert "unlisted-one" in checks["format.github_user"].message and before == KNOWN_GITHUB_USERS


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [
        ("0.6.0", "failed", ("'0.6.0', expected", "0.5.9")), (0.5, "failed", ("is 0.5, expected", "0.5.9")),
        (None, "failed", ("is absent",)), ("0.5.99", "warning", ("newer",)), ("0.3.2", "warning", ("outdated",)),
    ],
)  # fmt: skip
def test_versions_that_are_wrong_or_not_in_use(tmp_path: Path, version: Any, status: str, words: Any) -> None:
    check = judged(zips.make_zip(tmp_path, put("format_version", value=version)))[1]["format.version"]
    assert check.status == status and [word for word in words if word not in f"{check.message} {check.fix}"] == []


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"id": "clip", "kwargs": {"min": 3, "max": 1}}, "the min 3 and the max 1"),
        ({"id": "scale_linear", "kwargs": {"gain": [1, 2], "offset": 0.5, "axis": "channel"}}, "2 values for 1"),
        ({"id": "scale_linear", "kwargs": {"gain": [2], "offset": 0.5, "axis": "channel"}}, ""),
    ],
)  # fmt: skip
def test_processing_that_core_refuses_fails_without_a_run(tmp_path: Path, step: Any, words: str) -> None:
    for mutate in (put("inputs", 0, "preprocessing", value=[step]), put("outputs", 0, "postprocessing", value=[step])):
        report = validate(zips.make_zip(tmp_path, mutate), description_only=True)
        assert report.status == ("failed" if words else "passed")
        assert words in {check.id: check.message for check in report.checks}.get("core.test", "")
        assert not words or {entry.verdict for entry in report.verdicts} == {"fails"}


def test_other_resources_are_told_in_a_sentence_without_advice(tmp_path: Path) -> None:
    other = both(*map(drop, ("inputs", "outputs", "weights")), put("type", value="dataset"))
    report = validate(zips.make_zip(tmp_path, other))
    assert {check.consumer for check in report.checks} == {"archive", "format"}
    (check,) = [check for check in report.checks if check.status == "failed"]
    assert (check.id, "type 'dataset'" in check.message) == ("format.valid", True)
    assert (report.status, report.score) == ("failed", None)  # only models have one


@pytest.mark.parametrize(
    ("mutate", "field", "words"),
    [
        (put("license", value="Free"), "license", ("'Free'", "SPDX", "MIT")),
        (put("name", value="x"), "name", ("'x'", "at least 5 characters")),
        (put("authors", value=["Ada"]), "authors[0]", ("'Ada'", "mapping")),
        (put("authors", value={"name": "Ada"}), "authors", ("is a mapping", "a valid list")),
        (put("training_data", value="cells"), "training_data", ("a mapping",)),
        (put("documentation", value="It denoises. Well."), "documentation", (".md",)),
        (put("inputs", 0, "axes", value="bcyx"), "format_version is 0.5.9", ("inputs[0].axes", "format 0.4")),
        (put("format_version", value="0.4.10"), "format_version is 0.4.10", ("inputs[0].axes", "format 0.5")),
        (put("extra", value=3), "extra", ("not a field", "config")),
        (drop("name"), "name", ("is missing",)),
        (put(*AXIS, "size", value={"min": 16}), "inputs[0].axes[2].size.step", ("is missing",)),
        (put(*AXIS, "type", value="spce"), "inputs[0].axes[2]", ("'spce'", "space")),
        (put(*AXIS, "unit", value="um"), "inputs[0].axes[2].unit", ("'um'", "micrometer")),
        (put(*AXIS, "unit", value="micrometer"), "outputs", ("units", "'None' != 'micrometer'")),
        (put(*AXIS, "id", value="Y"), "outputs", ("outputs[0].axes[2].size", "photons", "y")),
        (put("outputs", 0, "axes", 2, "size", "axis_id", value="z"), "outputs[0].axes[2].size", ("'z'", "'photons'")),
        (put("inputs", 0, "preprocessing",
             value=[{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["q"]}}]), "inputs[0]", ("names an axis",)),
        (put(*AXIS, "size", value={"tensor_id": "photons", "axis_id": "y"}), "inputs[0].axes[2].size", ("'photons'",)),
        (put("authors", 0, "name", value="A/B"), "authors[0].name", ("'A/B'", "no slash")),
        (put("name", value="A: B, C"), "name", ("is 'A: B, C'", "abc")),
        (put("format_version", value="0.5.11"), "covers[0]", ("'cover.png'", "0.5.9", "{source: ")),
        (put("covers", value=None), "covers", ("is null", "a valid list")),
        (put("inputs", value=[]), "inputs", ("is []", "at least 1 item")),
        (put("training_data", value={"type": "dataset", "source": "https://example.invalid"}), "training_data",
         ("is missing",)),
        (put("inputs", 0, "preprocessing", value=[{}]), "inputs[0].preprocessing[0]", ("its id is missing",)),
        (drop("inputs", 0, "test_tensor"), "", ("'photons'", "test_tensor")),
        (put("inputs", 0, "test_tensor", value="input.npy"), "inputs[0].test_tensor", ("'input.npy'", "{source: ")),
        (put("weights", "pytorch_state_dict", "architecture", value="tiny.py:Tiny"),
         "weights.pytorch_state_dict.architecture", ("'tiny.py:Tiny'", "callable:")),
        (put("outputs", 0, "axes", 2, "halo", value=20), "outputs", ("size 16", "halo 20")),
        (put("outputs", 0, "axes", 2, "size", value=32), "outputs[0].axes[2].size", ("32", "halo", "{tensor_id:")),
        (put("outputs", 0, "axes", 2, "size", "tensor_id", value="nobody"), "outputs",
         ("outputs[0].axes[2].size", "'nobody'")),
        (put("outputs", 0, "postprocessing", value=[{"id": "scale_range"}]),
         "outputs[0].postprocessing[0].kwargs.reference_tensor", ("is missing", "an input")),
        (put("outputs", 0, "postprocessing", value=[{"id": "clip", "kwargs": {"max_percentile": 99}}]),
         "outputs[0].postprocessing[0]", ("clip", "statistics of the output")),
        (put("outputs", 0, "postprocessing", value=[{"id": "scale_range", "kwargs": {"reference_tensor": "no"}}]), "",
         ("'no'", "'photons'")),
        (put("inputs", 0, "sample_tensor", value={"source": "input.npy"}), "a sample_tensor", ("not an image",)),
        # format 0.4
        (old(put("outputs", 0, "postprocessing", value=[{"name": "scale_linear", "kwargs": {"gain": 2, "offset": 0}}])),
         "outputs[0]", ("no kwargs.axes",)),
        (old(put("inputs", 0, "shape", value=[1, 10**12, 32, 32])), "the shape of 'photons'", ("1000000",)),
        (old(put("test_inputs", value="input.npy")), "test_inputs", ("'input.npy'", "a valid list")),
        (old(put("outputs", 0, "shape", "reference_tensor", value="nobody")), "'nobody'", ("nothing of that name",)),
        (old(put("inputs", 0, "axes", value="bczyx")), "inputs[0].axes", ("'bczyx'", "4 sizes")),
        (old(put("outputs", 0, "halo", value=[2, 2])), "outputs[0]", ("[2, 2]", "length")),
        (old(put("outputs", 0, "postprocessing", value=[{"name": "scale_range", "kwargs": {"mode": "per_sample"}}])),
         "outputs[0].postprocessing[0].kwargs.reference_tensor", ("is missing", "an input")),
        (old(put("dependencies", value="pip:tiny.py")), "dependencies", ("weights.",)),
        (old(lambda rdf: rdf["inputs"].append({**rdf["inputs"][0], "name": "more"})), "test_inputs",
         ("2 inputs are described, and 1 tested",)),
    ],
)  # fmt: skip
def test_a_sentence_names_the_field_what_it_holds_and_what_is_expected(
    tmp_path: Path, mutate: zips.Mutation, field: str, words: tuple[str, ...]
) -> None:
    found = message(zips.make_zip(tmp_path, mutate))
    assert found.startswith(field) and len(found) < 400
    assert not field.startswith("inputs") or "outputs" not in found  # no follow-ups of errors in the input
    assert [word for word in words if word not in found] + [word for word in JARGON if word in found] == []


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("output.npy", (1, 1, 32, 44), "axis 'x' of size 40 or 44 invalid for referenced size 32"),
        ("output.npy", (1, 2, 32, 32), "outputs[rate].axes[channel]: test_tensor axis has incompatible size 2"),
        ("output.npy", (1, 1, 36, 36), "a valid model"),  # with its halo
        ("input.npy", (1, 1, 33, 32), "inputs[photons].axes[y]: test_tensor axis size 33 is not parameterized"),
    ],
)  # fmt: skip
def test_test_tensors_of_other_shapes_are_named(tmp_path: Path, name: str, shape: Any, expected: str) -> None:
    assert expected in message(zips.make_zip(tmp_path, files={name: zips.npy(np.ones(shape, np.float32))}))


def shaped(tensor: str, **changes: Any) -> zips.Mutation:
    """Format 0.4 without a halo, and with other fields of a tensor."""
    return old(put("outputs", 0, "halo", value=[0, 0, 0, 0]), *(put(tensor, 0, k, value=v) for k, v in changes.items()))


TWICE = {"reference_tensor": "photons", "scale": [1, 1, 2, 2], "offset": [0, 0, 0, 0]}


@pytest.mark.parametrize(
    ("mutate", "words"),
    [
        (shaped("inputs", shape=[1, 1, 128, 128]), ("axes[y]", "size 32", "128")),
        (shaped("inputs", shape={"min": [1, 1, 30, 30], "step": [0, 0, 16, 16]}), ("axes[y]", "size 32", "30 + n*16")),
        (shaped("outputs", shape=[1, 2, 32, 32]), ("axes[channel]", "size 1", "2")),
        (shaped("outputs", shape=TWICE), ("axis 'y'", "64")),
        (shaped("outputs", shape=[1, 1, 96, 96], halo=[0, 0, 8, 8]), ("axes[y]", "size 32", "96")),
        (shaped("inputs", axes="cyx", shape=[1, 32, 32]), ("photons",)),
    ],
)
def test_shapes_of_format_0_4_are_held_against_the_test_tensors(tmp_path: Path, mutate: Any, words: Any) -> None:
    description, checks = judged(zips.make_zip(tmp_path, mutate))
    assert (description, checks["format.valid"].status) == (None, "failed")
    assert [word for word in words if word not in checks["format.valid"].message] == []


def test_what_only_format_0_5_refuses_is_no_failure_of_format_0_4(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, shaped("outputs", shape=[1, 1, 32, 32], halo=[0, 0, 8, 8]))
    description, checks = judged(path)
    assert description is not None and checks["format.valid"].status == "passed"
    assert description.upgraded is None and "halo" in description.not_upgraded
    assert description.not_upgraded in checks["format.recommended"].message
    description, _ = judged(zips.make_zip(tmp_path, zips.to_format_0_4()))
    assert description is not None and description.upgraded is not None and description.not_upgraded == ""


@pytest.mark.parametrize("url", ["HTTP://unreachable.invalid/x", "http:/unreachable.invalid/x", "https:x.invalid"])
def test_urls_in_any_spelling_are_not_requested(tmp_path: Path, no_network: None, url: str) -> None:
    spelled = both(put("cite", 0, "url", value=url), put("git_repo", value=url))
    assert "a request was made" not in message(zips.make_zip(tmp_path, spelled))


def test_an_input_that_another_model_makes_is_not_looked_up(
    tmp_path: Path, no_network: None, model_process: Sandbox
) -> None:
    path = zips.make_zip(tmp_path, put("inputs", 0, "output_of", value="affable-shark"))
    report = validate(path, process=model_process)
    assert (report.status, {check.id: check.status for check in report.checks}["format.valid"]) == ("not-run", "passed")


def test_files_that_are_not_text_or_picture_do_not_crash(tmp_path: Path) -> None:
    huge = zips.png(64, 32).replace((64).to_bytes(4, "big"), (2**31 - 1).to_bytes(4, "big"), 1)
    assert message(zips.make_zip(tmp_path, files={"cover.png": huge})).startswith("a valid model")
    assert "utf-8" in message(zips.make_zip(tmp_path, files={"README.md": b"\xff\xfe # Validation"}))


INVALID = (
    "authors_in_0_3_0", "halo_on_fixed_size", "promises_128", "promises_2_channels", "promises_33_channels",
    "promises_twice_the_size", "scale_range_without_reference",
)  # fmt: skip
PICKLED = ("state_dict_called_torchscript", "state_dict_with_numbers_beside")
FAILING = {**dict.fromkeys(INVALID, "valid"), "format_0_5": "version", **dict.fromkeys(PICKLED, "pickles")}


def test_reported_models_fail_where_they_should() -> None:
    if not (paths := sorted(CASES.glob("model*/*.zip"))):
        pytest.skip(f"no models in {CASES}")
    for path in paths:
        failed = [check_id.split(".")[1] for check_id, check in judged(path)[1].items() if check.status == "failed"]
        assert failed == [FAILING[path.stem]] if path.stem in FAILING else failed == [], path.stem
