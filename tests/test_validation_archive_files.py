"""The files that a description names: inside the package, there, unchanged, plain arrays, and pickles without code."""

import argparse
import collections
import io
import pickle
import unicodedata
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zips

from gap_bioimage.validation.archive import files
from gap_bioimage.validation.archive.examine import Examined, examine
from gap_bioimage.validation.archive.package import Package, open_package
from gap_bioimage.validation.check import Check, definition
from gap_bioimage.validation.report import validate
from gap_bioimage.validation.run.sandbox import Sandbox


def examined(path: Path) -> tuple[dict[str, str], Examined]:
    """Statuses of the checks, and all that was found."""
    with open_package(path) as (package, _):
        assert package is not None
        found = examine(package)
    assert all(len(check.message) < 1000 for check in found.checks)
    return {check.id: check.status for check in found.checks}, found


def message(found: Examined, check_id: str) -> str:
    return next(check.message for check in found.checks if check.id == check_id)


def judged(folder: Path, check_id: str, content: bytes, name: str, weights: str = "") -> Check:
    """What a check says of one file, that of weights, or else a test tensor and an attachment."""
    (folder / name).write_bytes(content)
    file = {"source": name}
    rdf = {"weights": {weights: file}} if weights else {"attachments": [file], "inputs": [{"test_tensor": file}]}
    check = definition(check_id).judge(Package(folder, folder, "rdf.yaml", rdf, (name,), folder / "scratch"))
    assert len(check.message) < 700
    assert bool(check.fix) == (check.status in ("failed", "warning"))
    return check


def test_dependencies_of_format_0_4_0_are_files_behind_a_manager(tmp_path: Path) -> None:
    for manager in ("conda:", "pip:", "conda:./", ""):
        mutate = zips.to_format_0_4("0.4.0", dependencies=f"{manager}environment.yaml")
        statuses, found = examined(zips.make_zip(tmp_path, mutate, files={"environment.yaml": b"name: x\n"}))
        assert "failed" not in statuses.values() and found.why_not_run == ""
        assert examined(zips.make_zip(tmp_path, mutate))[0]["archive.files"] == "failed"
    remote = zips.to_format_0_4("0.4.0", dependencies="conda:https://example.invalid/environment.yaml")
    assert examined(zips.make_zip(tmp_path, remote))[0]["archive.references"] == "passed"


def test_files_that_are_not_named_are_told_and_not_judged(tmp_path: Path) -> None:
    more = {"__MACOSX/._weights.pt": b"\0\5\x16\7", ".DS_Store": b"", "x.pkl": b"cos\nsystem\n."}
    statuses, found = examined(zips.make_zip(tmp_path, files={**more, "mask.npy": zips.npy(np.full(2, np.nan))}))
    assert {*statuses.values()} == {"passed"} and found.why_not_run == ""
    assert "'__MACOSX/._weights.pt'" in message(found, "archive.files")


@pytest.mark.parametrize("name", ["Cells.npy", "e\u0301ingabe.npy"])
def test_a_name_that_differs_in_case_or_in_how_an_accent_is_written_is_told(tmp_path: Path, name: str) -> None:
    written = unicodedata.normalize("NFC", name.casefold())
    mutate = zips.put("inputs", 0, "test_tensor", value={"source": written})
    statuses, found = examined(zips.make_zip(tmp_path, mutate, files={name: b""}))
    assert statuses["archive.files"] == "failed"
    assert [text for text in (name, written) if ascii(text) not in message(found, "archive.files")] == []


def test_missing_and_changed_files_are_told_by_the_archive_only(tmp_path: Path) -> None:
    changed = zips.put("outputs", 0, "test_tensor", "sha256", value="0" * 64)
    for mutate, absent, check in ((None, {"output.npy": None}, "archive.files"), (changed, {}, "archive.hashes")):
        found = examined(zips.make_zip(tmp_path, mutate, files=absent))[1]
        assert found.failed == [check] and found.why_not_run == f"not run, see {check}"


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64


@pytest.mark.parametrize(
    ("name", "content", "check", "told"),
    [
        ("torchscript.pt", LFS, "files", "a pointer of Git LFS"),
        ("weights.pt", b"<!DOCTYPE html><html>", "pickles", "damaged"), ("weights.pt", b"", "pickles", "damaged"),
        ("output.npy", b"\n<html>", "tensors", "is not an .npy"), ("input.npy", b"", "tensors", "is not an .npy"),
    ],
)  # fmt: skip
def test_what_a_failed_download_leaves(tmp_path: Path, name: str, content: Any, check: str, told: str) -> None:
    found = examined(zips.make_zip(tmp_path, files={name: content}))[1]
    assert f"archive.{check}" in found.failed and bool(found.why_not_run) == (check != "pickles")
    assert repr(name) in message(found, f"archive.{check}") and told in message(found, f"archive.{check}")


@pytest.mark.parametrize(
    ("mutate", "content", "status"),
    [
        (None, {"README.md": LFS, "cover.png": LFS}, "warning"), (None, {"cover.png": None}, "failed"),
        (zips.to_format_0_4(sample_inputs=["gone.tif"], sample_outputs=["gone.npy"]), {"cover.png": None}, "warning"),
        (zips.to_format_0_4(sample_inputs=["x.npy"]), {"x.npy": LFS}, "warning"),
        (zips.to_format_0_4(), {"input.npy": LFS}, "failed"),
        (zips.to_format_0_4(), {"torchscript.pt": None}, "failed"),
    ],
)  # fmt: skip
def test_what_programs_do_without_is_a_warning(tmp_path: Path, mutate: Any, content: Any, status: str) -> None:
    # as bioimageio.core, which tests the same models (all but those that fail here pass there)
    statuses, found = examined(zips.make_zip(tmp_path, mutate, files=content))
    assert statuses["archive.files"] == status
    assert ("failed" in statuses.values(), found.description is None) == (status == "failed", False)


def test_references_out_of_the_package_fail(tmp_path: Path) -> None:
    for source in ("/etc/passwd", "../outside.npy", "C:\\x.npy", "file:///etc/passwd", "s3://bucket/x.npy"):
        mutate = zips.put("inputs", 0, "test_tensor", value={"source": source})
        statuses, found = examined(zips.make_zip(tmp_path, mutate))
        assert statuses["archive.references"] == "failed" and "format.valid" not in statuses
        assert found.why_not_run == "not run, see archive.references"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training_data", {"id": "x", "documentation": "../secret.md"}),
        ("weights", {"pytorch_state_dict": {"dependencies": "conda:../secret.md"}}),
        ("config", {"anything": ["../secret.md"]}),
    ],
)
def test_files_outside_are_noticed_wherever_they_are_named(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "secret.md").write_text("secret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "rdf.yaml").write_text(yaml.safe_dump({"type": "model", key: value}))
    assert examined(tmp_path / "model" / "rdf.yaml")[0]["archive.references"] == "failed"
    (tmp_path / "secret.md").unlink()
    status = "failed" if key == "weights" else "passed"
    assert examined(tmp_path / "model" / "rdf.yaml")[0]["archive.references"] == status


def test_a_description_that_no_program_finds_fails(tmp_path: Path) -> None:
    for name, status in (("rdf.yml", "failed"), ("bioimageio.yaml", "passed"), ("net.model.yaml", "passed")):
        path = zips.make_zip(tmp_path, rdf_name=name)
        assert examined(path)[0]["archive.rdf_name"] == status
    with zipfile.ZipFile(zips.make_zip(tmp_path, rdf_name="rdf.yml")) as archive:
        archive.extractall(tmp_path)
    assert examined(tmp_path / "rdf.yml")[0]["archive.rdf_name"] == "passed"  # named by its user


URL = "https://example.invalid/x.pt"
STATE_DICT = zips.put("weights", "pytorch_state_dict", "source", value=URL)
SCRIPT = zips.put("weights", "torchscript", "source", value=URL)


@pytest.mark.parametrize(
    ("mutate", "why_not_run"),
    [
        (zips.put("documentation", value="https://example.invalid/x.md"), ""),
        (STATE_DICT, ""),
        (zips.both(STATE_DICT, SCRIPT), "weights.torchscript (https"),
        (zips.put("inputs", 0, "test_tensor", value={"source": f"{URL}.npy"}), "inputs[0].test_tensor (https"),
    ],
)
def test_what_is_on_a_server_leaves_the_rest_to_run(tmp_path: Path, mutate: Any, why_not_run: str) -> None:
    statuses, found = examined(zips.make_zip(tmp_path, mutate))
    assert (statuses["archive.remote"], statuses["format.valid"]) == ("warning", "passed")
    assert bool(found.why_not_run) == bool(why_not_run) and why_not_run in found.why_not_run
    if "run.pytorch_state_dict" in statuses:
        assert found.description is not None and list(found.description.weights) == ["torchscript"]


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header("(10**12,)"), header("(4294967296, 4294967296, 4294967296)"), header("(4,)") + bytes(15),
        header("(4,)", "'|O'") + bytes(32), header("__import__('os').getpid()"), header("(" * 3000), b"",
    ],
    ids=lambda content: repr(content[:40]),
)  # fmt: skip
def test_arrays_that_are_not_what_they_seem_are_refused(tmp_path: Path, content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = judged(tmp_path, "archive.tensors", content, "x.npy")
    assert outcome.status == "failed" and outcome.message.startswith("'x.npy' ")


def test_arrays_are_known_by_their_first_bytes_and_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(tmp_path, "archive.tensors", zips.npy(np.zeros(9))[:-1], "image.bin").status == "failed"
    monkeypatch.setattr(files, "MAX_TENSOR_BYTES", 16)
    for n, status in ((16, "passed"), (17, "failed")):
        assert judged(tmp_path, "archive.tensors", zips.npy(np.zeros(n, np.uint8)), "x.npy").status == status


def test_test_tensors_hold_finite_numbers_of_the_declared_type_in_npy_files(tmp_path: Path) -> None:
    nan = np.full((1, 1, 32, 32), np.nan, ">f8")
    tif = zips.put("inputs", 0, "test_tensor", value={"source": "input.tif"})
    uint8 = zips.put("inputs", 0, "data", value={"type": "uint8"})
    for mutate, more, check, told in (
        (None, {"output.npy": zips.npy(nan)}, "archive.tensors", "'output.npy' holds values that are not finite"),
        (None, {"output.npy": zips.npy(nan)[:-9]}, "archive.tensors", "cannot be read as"),
        (None, {"output.npy": zips.npy(nan[:0])}, "archive.tensors", "holds no values"),
        (tif, {"input.tif": b"II*\0" + bytes(50)}, "archive.tensors", "'input.tif' is not an .npy file"),
        (uint8, {}, "format.valid", "'float32' does not match"),
    ):
        assert told in message(examined(zips.make_zip(tmp_path, mutate, files=more))[1], check)


class Evil:
    """Makes the directory ``evil`` wherever it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').mkdir('evil')",)


class Network(torch.nn.Module):
    """A user's own."""


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def scanned(folder: Path, content: bytes, name: str = "w.pt", weights: str = "pytorch_state_dict") -> Check:
    return judged(folder, "archive.pickles", content, name, weights)


def refused_by_torch(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pickle's protocol
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except pickle.UnpicklingError:
            return True
    return False


STATE = {
    "weight": torch.nn.Parameter(torch.zeros(3, 2)), "half": torch.zeros(2, dtype=torch.bfloat16),
    "count": torch.tensor(3), "sparse": torch.eye(3).to_sparse(), "dtype": torch.float32,
    "device": torch.device("cpu"), "shape": torch.Size([1, 2]), "numbers": {1, 2.0, None, 3j},
    "nested": collections.OrderedDict(a=[b"bytes", bytearray(b"x")]),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_pass_where_torch_loads_them(tmp_path: Path, protocol: int, legacy: bool) -> None:
    data = saved(STATE, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    outcome = scanned(tmp_path, data)
    assert refused_by_torch(data) == (protocol > 2)
    if protocol == 2:
        assert outcome.message == "1 file with pickles, all of them plain weights"
    else:
        assert (outcome.status, "pickle_protocol" in outcome.fix) == ("failed", True)


CHECKPOINT = saved({"epoch": 3, "model": {"w": torch.zeros(2)}, "best": np.float64(0.5)})
np.savez(ARRAYS := io.BytesIO(), np.ones(3))
MADE = zips.model_files()


@pytest.mark.parametrize(
    ("weights", "content", "words"),
    [
        ("torchscript", MADE["weights.pt"], ("torch.save", "not TorchScript", "weights.pytorch_state_dict")),
        ("pytorch_state_dict", MADE["torchscript.pt"], ("is TorchScript", "not a state_dict", "weights.torchscript")),
        ("pytorch_state_dict", CHECKPOINT, ("NumPy", "checkpoint['model']")),
        ("torchscript", MADE["torchscript.pt"][:-999], ("is damaged", "Download", "torch.jit.save")),
        ("torchscript", ARRAYS.getvalue(), ("is damaged", "zip of other files")),
        ("pytorch_state_dict", MADE["weights.pt"][:999], ("is damaged", "model.state_dict()")),
    ],
    ids=range(6),
)
def test_weights_that_are_something_else(tmp_path: Path, weights: str, content: Any, words: Any) -> None:
    outcome = scanned(tmp_path, content, weights=weights)
    assert outcome.status == "failed"
    assert [word for word in words if word not in f"{outcome.message} {outcome.fix}"] == []
    assert content is not CHECKPOINT or refused_by_torch(content)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"w": torch.zeros(2), "hook": Evil()}, "eval"),
        ({"w": torch.zeros(2), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (Network(), "Network"),
    ],
)
def test_checkpoints_with_code_are_refused_by_name(tmp_path: Path, content: Any, named: str, legacy: bool) -> None:
    outcome = scanned(tmp_path, saved(content, _use_new_zipfile_serialization=not legacy))
    assert outcome.status == "failed" and outcome.message.startswith("'w.pt' ") and named in outcome.message


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n.", b"(S'id'\nios\nsystem\n.", b"cos\nsystem\n(S'id'\ntR\xff\xff",
        b"I0x10\n0cos\nsystem\n.",  # a number that pickletools does not read
        pickle.dumps([1, 2, 3])[:-1], pickle.dumps(1) + pickle.dumps(Evil()), b"plain text",
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1, 2) * 2 + b"cos\nsystem\n.",  # in the fourth
        *(pickle.dumps([1, Evil()], protocol) for protocol in (0, 2, 5)),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_cannot_be_explained_fails(tmp_path: Path, data: bytes) -> None:
    assert scanned(tmp_path, data).status == "failed"
    if b"evil" in data:  # what is only attached is loaded by nobody but people
        assert scanned(tmp_path, data, "x.pkl", weights="").status == "warning"


def test_all_pickles_of_a_zip_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}, 2))
        archive.writestr("w/DATA.PKL", pickle.dumps(Evil(), 2))  # torch looks names up in any case
    assert "eval" in scanned(tmp_path, (tmp_path / "zip").read_bytes()).message
    monkeypatch.setattr(files, "MAX_PICKLE_BYTES", 1000)
    assert "at most 1000" in scanned(tmp_path, saved({f"key {i}": i for i in range(500)})).message
    assert scanned(tmp_path, b"\x08\x07\x12\x07pytorch", "x.bin", "onnx").message.startswith("0 files")


def test_a_package_whose_weights_are_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = zips.make_zip(tmp_path, files={"weights.pt": saved({"w": Evil()})})
    checks = {check.id: check for check in validate(path, run_code=True).checks}
    assert (checks["archive.pickles"].status, checks["core.test"].status) == ("failed", "skipped")
    assert "archive.pickles" in checks["core.test"].message
    assert not (tmp_path / "evil").exists()


def test_weights_beside_damaged_ones_are_run(tmp_path: Path, model_process: Sandbox) -> None:
    for name, content, reader in (
        ("torchscript", {"torchscript.pt": b"damaged"}, "biapy"), ("pytorch_state_dict", {"weights.pt": b""}, "qupath")
    ):  # fmt: skip
        report = validate(zips.make_zip(tmp_path, files=content), run_code=True, process=model_process)
        checks, unrun = {check.id: check for check in report.checks}, f"run.{name}"
        found = [checks[id_].status for id_ in ("archive.pickles", "core.test", unrun)]
        assert (report.status, found, bool(checks[unrun].fix)) == ("failed", ["failed", "passed", "skipped"], True)
        said = {entry.consumer: entry.verdict for entry in report.verdicts}
        assert (said["core"], said["ilastik"], said[reader]) == ("fails", "fails", "works")
