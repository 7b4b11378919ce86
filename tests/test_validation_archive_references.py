"""References of a description: found in one walk, inside the package, present, unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
import zips

from gap_bioimage.validation.archive.examine import examine
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.archive.references import is_url, references

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.check import Check


def judged(path: Path) -> tuple[dict[str, Check], str]:
    with open_package(path) as (package, _):
        assert package is not None
        examined = examine(package)
    return {check.id: check for check in examined.checks}, examined.why_not_run


def test_all_files_of_a_description_are_found() -> None:
    files = zips.model_files()
    assert {reference.path for reference in references(zips.description(files))} == set(files)


def test_older_formats_name_files_elsewhere() -> None:
    rdf: dict[str, Any] = {
        "covers": ["c.png"], "documentation": "d.md", "icon": "\U0001f52c", "test_inputs": ["i.npy"],
        "attachments": {"files": ["a.txt"]}, "dependencies": "conda:environment.yaml",
        "source": "old.py::Net", "sha256": "3",
        "weights": {
            "pytorch_state_dict": {
                "source": "w.pt", "sha256": "1", "architecture": "u.py:UNet", "architecture_sha256": "2",
                "dependencies": "pip:requirements.txt", "kwargs": {"source": "not a file"},
            },
            "onnx": {"architecture": "module.Net"},
        },
        "config": {"other": {"source": "ignored.txt"}},
    }  # fmt: skip
    found = {reference.path: reference.sha256 for reference in references(rdf)}
    assert found == {
        "c.png": None, "d.md": None, "i.npy": None, "a.txt": None, "w.pt": "1", "u.py": "2", "old.py": "3",
        "environment.yaml": None, "requirements.txt": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "renamed"),
    [("conda:environment.yaml", "conda:new"), ("net.py:Net", "new:Net"), ("./a.npy", "new")],
)
def test_a_reference_is_pointed_to_another_file(written: str, renamed: str) -> None:
    key = {"c": "dependencies", "n": "architecture"}.get(written[0], "source")
    rdf = {"weights": {"onnx": {key: written}}}
    (reference,) = references(rdf)
    reference.point_to("new")
    assert rdf["weights"]["onnx"][key] == renamed
    assert reference.where == f"weights.onnx.{key}"


@pytest.mark.parametrize("written", ["conda:environment.yaml", "pip:requirements.txt"])
def test_dependencies_of_format_0_4_0_are_files_behind_a_manager(tmp_path: Path, written: str) -> None:
    mutate = zips.to_format_0_4("0.4.0", dependencies=written)
    checks, why_not = judged(zips.make_zip(tmp_path, mutate, files={written.split(":")[1]: b"name: x\n"}))
    assert {check.status for check in checks.values() if check.consumer == "archive"} == {"passed"}
    assert checks["format.valid"].status == "passed"
    assert why_not == ""
    checks, _ = judged(zips.make_zip(tmp_path, mutate))
    assert checks["archive.files"].status == "failed"
    assert repr(written.split(":")[1]) in checks["archive.files"].message


def test_a_good_package_can_be_run(tmp_path: Path) -> None:
    checks, why_not = judged(zips.make_zip(tmp_path))
    assert {check.status for check in checks.values()} == {"passed"}
    assert why_not == ""


def test_files_that_are_not_named_are_told_and_not_judged(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {
        "__MACOSX/._weights.pt": b"\0\5\x16\7",
        ".DS_Store": b"",
        "x.pkl": b"cos\nsystem\n.",
    }
    checks, why_not = judged(zips.make_zip(tmp_path, files=files))
    assert {check.status for check in checks.values()} == {"passed"}
    assert "'__MACOSX/._weights.pt'" in checks["archive.files"].message
    assert why_not == ""


def test_changed_files_fail(tmp_path: Path) -> None:
    checks, why_not = judged(zips.make_zip(tmp_path, zips.put("weights", "torchscript", "sha256", value="0" * 64)))
    assert checks["archive.hashes"].status == "failed"
    assert checks["archive.hashes"].fix.startswith("Download it again; if you changed the file on purpose")
    assert why_not == "not run, see archive.hashes"


def test_missing_files_fail(tmp_path: Path) -> None:
    checks, why_not = judged(zips.make_zip(tmp_path, files={"weights.pt": None}))
    assert checks["archive.files"].status == "failed"
    assert why_not == "not run, see archive.files"


@pytest.mark.parametrize("source", ["/etc/passwd", "../outside.npy", "C:\\x.npy"])
def test_references_out_of_the_package_fail(tmp_path: Path, source: str) -> None:
    mutate = zips.put("inputs", 0, "test_tensor", value={"source": source})
    checks, why_not = judged(zips.make_zip(tmp_path, mutate))
    assert checks["archive.references"].status == "failed"
    assert "format.valid" not in checks
    assert why_not == "not run, see archive.references"


def test_weights_on_a_server_leave_the_others_to_run(tmp_path: Path) -> None:
    url = "https://example.invalid/weights.pt"
    path = zips.make_zip(tmp_path, zips.put("weights", "pytorch_state_dict", "source", value=url))
    with open_package(path) as (package, _):
        assert package is not None
        examined = examine(package)
        assert examined.description is not None
        assert list(examined.description.weights) == ["torchscript"]
    checks = {check.id: check for check in examined.checks}
    assert checks["archive.remote"].status == "warning"
    assert checks["format.valid"].status == "passed"
    assert checks["run.pytorch_state_dict"].status == "skipped"
    assert examined.why_not_run == ""


@pytest.mark.parametrize(("field", "name"), [(("documentation",), "x.md"), (("covers", 0), "x.png")])
def test_a_page_or_picture_on_a_server_does_not_keep_the_model_from_running(
    tmp_path: Path, field: tuple[str], name: str
) -> None:
    checks, why_not = judged(zips.make_zip(tmp_path, zips.put(*field, value=f"https://example.invalid/{name}")))
    assert checks["archive.remote"].status == "warning"
    assert why_not == ""


def test_what_running_needs_is_named_where_it_is_on_a_server(tmp_path: Path) -> None:
    def all_remote(rdf: dict[str, Any]) -> None:
        for entry in rdf["weights"].values():
            entry["source"] = f"https://example.invalid/{entry['source']}"

    tensor = zips.put("inputs", 0, "test_tensor", value={"source": "https://example.invalid/input.npy"})
    for mutate, where in ((all_remote, "weights.torchscript (https"), (tensor, "inputs[0].test_tensor (https")):
        checks, why_not = judged(zips.make_zip(tmp_path, mutate))
        assert checks["archive.remote"].status == "warning"
        assert where in why_not


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training_data", {"id": "x", "documentation": "../secret.md"}),
        ("badges", [{"label": "x", "icon": "../secret.md", "url": "https://example.invalid"}]),
        ("weights", {"pytorch_state_dict": {"architecture": "../secret.md:Net"}}),
        ("weights", {"pytorch_state_dict": {"dependencies": "conda:../secret.md"}}),
        ("license", "../secret.md"),
        ("config", {"anything": ["../secret.md"]}),
    ],
)
def test_files_outside_are_noticed_wherever_they_are_named(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "secret.md").write_text("secret")
    model = tmp_path / "model"
    model.mkdir()
    (model / "rdf.yaml").write_text(yaml.safe_dump({"type": "model", key: value}))
    assert judged(model / "rdf.yaml")[0]["archive.references"].status == "failed"
    (tmp_path / "secret.md").unlink()
    unsafe = key == "weights" and "dependencies" in value["pytorch_state_dict"]
    assert judged(model / "rdf.yaml")[0]["archive.references"].status == ("failed" if unsafe else "passed")


@pytest.mark.parametrize(
    "text",
    ["http://x.invalid/a", "HTTPS://x.invalid/a", "http:/x.invalid/a", "http:x.invalid", " ht\ntp://x", "file:///x"],
)
def test_whatever_may_be_taken_for_a_url_is_remote(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["README.md", "a/b.py:Net", "conda:environment.yaml", "", "the http: protocol"])
def test_paths_are_not_remote(text: str) -> None:
    assert not is_url(text)


def test_an_endless_documentation_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gap_bioimage.validation.archive.references._MAX_DOCUMENTATION_BYTES", 10)
    assert judged(zips.make_zip(tmp_path))[0]["archive.references"].status == "failed"


def test_names_are_shown_short_and_plain(tmp_path: Path) -> None:
    covers = [f"{'x' * 5000}{i}.png" for i in range(9)]
    checks, _ = judged(zips.make_zip(tmp_path, zips.put("covers", value=covers)))
    assert checks["archive.references"].status == "failed"
    assert all(len(check.message) < 1000 for check in checks.values())
