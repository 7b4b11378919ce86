"""What bioimageio.spec finds is told in plain words, once per field."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import zips
from zips import drop, put

from gap_bioimage.validation.package.archive import open_package
from gap_bioimage.validation.package.description import format_checks
from gap_bioimage.validation.package.wording import finding, told

if TYPE_CHECKING:
    from pathlib import Path

JARGON = ("Value error", "Input should", "pydantic", "https://errors", "RelativePath", "union", "[type=", "::Dummy'.")


def message(path: Path) -> str:
    with open_package(path) as (package, _):
        assert package is not None
        _, checks = format_checks(package)
    return next(check.message for check in checks if check.id == "format.valid")


@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        (put("license", value="Free for all"),
         "license: 'Free for all' is no SPDX identifier, such as CC-BY-4.0 or MIT"),
        (put("name", value="x/y?z"),
         "name: 'x/y?z' may hold letters, digits, spaces and the characters _ + - ( ) only"),
        (put("name", value=7), "name: is 7, but should be a text"),
        (put("authors", value="me"), "authors: is 'me', but should be a list"),
        (put("authors", 0, "email", value="x"), "authors[0].email: 'x' is no email address, such as ada@example.org"),
        (put("cite", 0, "url", value="no url"), "cite[0].url: 'no url' is no web address, such as https://example.org"),
        (put("cite", 0, "doi", value="x"), "cite[0].doi: 'x' is no DOI, such as 10.1234/abc"),
        (put("timestamp", value="x"), "timestamp: 'x' is no date and time, such as 2024-05-31T12:00:00"),
        (put("extra", value=3), "extra: is no field that this format knows here"),
        (drop("name"), "name: is missing"),
        (put("inputs", 0, "axes", 2, "size", value={"min": 16}), "inputs[0].axes[2].size.step: is missing"),
        (put("inputs", 0, "axes", 2, "type", value="spce"),
         "inputs[0].axes[2]: its type 'spce' is unknown, expected is one of batch, channel, index, time, space"),
        (put("weights", "pytorch_state_dict", "architecture", value={"source": "tiny.py"}),
         "weights.pytorch_state_dict.architecture.callable: is missing"),
        (put("weights", "torchscript", "pytorch_version", value="banana"),
         "weights.torchscript.pytorch_version: 'banana' is no version, such as 2.5.0"),
        (put("weights", "torchscript", "parent", value="onnx"),
         "weights: a parent is onnx, but there are no such weights"),
        (put("outputs", 0, "axes", 2, "halo", value=20),
         "outputs: axis y may be 16 long, which is too little for a halo of 20 on either side"),
        (put("outputs", 0, "axes", 2, "size", "tensor_id", value="nobody"),
         "outputs[0].axes[2].size refers to axis 'y' of tensor 'nobody', which does not exist"),
    ],
)  # fmt: skip
def test_common_mistakes_are_told_in_plain_words(tmp_path: Path, mutate: Any, expected: str) -> None:
    assert message(zips.make_zip(tmp_path, mutate)) == expected


def test_documentation_that_is_no_text_is_told(tmp_path: Path) -> None:
    found = message(zips.make_zip(tmp_path, files={"README.md": b"\xff\xfe # Validation"}))
    assert found == "documentation: is not written in UTF-8; save it as UTF-8 text"


def old_description(folder: Path, source: str) -> Path:
    """A description of format 0.3 whose architecture is written as given."""
    (folder / "net.py").write_text("class Net: ...\n")
    for name in ("in.npy", "out.npy"):
        (folder / name).write_bytes(zips.model_files()["input.npy"])
    (folder / "weights").write_bytes(zips.model_files()["weights.pt"])
    (folder / "readme.md").write_text("# Old\n")
    sha256 = zips.sha256(zips.model_files()["weights.pt"])
    tensor = {"axes": "bcyx", "data_type": "float32", "data_range": [0, 1]}
    rdf = {
        "format_version": "0.3.3", "type": "model", "language": "python", "framework": "pytorch", "name": "Old net",
        "description": "Old.", "cite": [{"text": "A paper", "doi": "10.1234/old"}], "authors": [{"name": "Ada"}],
        "documentation": "readme.md", "tags": ["old"], "license": "MIT", "git_repo": "https://example.org/old",
        "covers": [], "source": source, "sha256": zips.sha256((folder / "net.py").read_bytes()),
        "timestamp": "2019-12-11T12:22:32Z", "test_inputs": ["in.npy"], "test_outputs": ["out.npy"],
        "weights": {"pytorch_state_dict": {"source": "weights", "sha256": sha256}},
        "inputs": [{"name": "input", "shape": [1, 1, 32, 32], **tensor}],
        "outputs": [{"name": "output", "shape": [1, 1, 32, 32], **tensor}],
    }  # fmt: skip
    path = folder / "rdf.yaml"
    path.write_text(json.dumps(rdf))
    return path


def test_two_colons_are_told_though_the_file_is_there(tmp_path: Path) -> None:
    expected = (
        "source: 'net.py::Net' has two colons, one is expected between the file and what it defines: 'net.py:Net'"
    )
    assert message(old_description(tmp_path, "net.py::Net")) == expected


def test_one_colon_is_right(tmp_path: Path) -> None:
    assert message(old_description(tmp_path, "net.py:Net")).startswith("a valid model description")


@pytest.mark.parametrize("value", [3, "x", None, [], {}, [1], {"source": 3}, {"source": "absent"}, "a" * 5000])
@pytest.mark.parametrize(
    "field", ["covers", "documentation", "inputs", "weights", "authors", "cite", "tags", "license"]
)
def test_no_jargon_gets_through(tmp_path: Path, field: str, value: Any) -> None:
    found = message(zips.make_zip(tmp_path, put(field, value=value)))
    assert not [word for word in JARGON if word in found], found
    assert len(found) < 900


def test_unknown_kinds_keep_the_librarys_words(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as packed:
        packed.writestr("rdf.yaml", "type: model")
    with open_package(tmp_path / "m.zip") as (package, _):
        assert package is not None
        text = f"Value error, {package.root}/x is odd. For further information visit https://errors.pydantic.dev/2/v/x"
        assert told(finding(package, ("type",), "strange", text)) == "type: x is odd."
        assert told(finding(package, (), "strange", "Something happened")) == "Something happened"
