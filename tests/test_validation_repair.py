"""Repairs: what each mends, that nothing else changes, and that the original stays."""

import copy
import functools
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zips
from PIL import Image
from running import static_validate
from zips import both, drop, put

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.validation.archive.rdf import references
from gap_bioimage.validation.check import registry
from gap_bioimage.validation.repair import repairing as module
from gap_bioimage.validation.repair.editor import PackageEditor
from gap_bioimage.validation.repair.repairing import REPAIRS, Repaired, repair
from gap_bioimage.validation.report import Report, validate
from gap_bioimage.validation.run.sandbox import Sandbox

Rdf = dict[str, Any]
Files = dict[str, bytes | None]
Mend = Callable[[Path], Repaired]


@pytest.fixture
def mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mend:
    """Repair a model to ``tmp_path / "out.zip"``, validating without running it."""
    monkeypatch.setattr(module, "validate", static_validate)

    def call(path: Path) -> Repaired:
        before = path.read_bytes() if path.is_file() else b""
        repaired = repair(path, tmp_path / "out.zip")
        assert not before or path.read_bytes() == before
        again = repair(tmp_path / "out.zip", tmp_path / "again.zip")
        assert again.changes == ()
        assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()
        return repaired

    return call


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def unpacked(path: Path) -> Path:
    shutil.unpack_archive(path, path.with_name("model"))
    return path.with_name("model")


def out(tmp_path: Path) -> dict[str, bytes]:
    return contents(tmp_path / "out.zip")


def rdf_of(tmp_path: Path) -> Any:
    return yaml.safe_load(out(tmp_path)["rdf.yaml"])


def status(report: Report, check_id: str) -> str:
    return next(check.status for check in report.checks if check.id == check_id)


def objects(rdf: Rdf) -> None:
    """As bioimageio.spec 0.5.12 writes."""
    files = zips.model_files()
    named = {name: {"source": name, "sha256": zips.sha256(files[name])} for name in ("README.md", "cover.png")}
    rdf |= {"format_version": "0.5.12", "documentation": named["README.md"], "covers": [named["cover.png"]]}


def newest_fields(rdf: Rdf) -> None:
    objects(rdf)
    rdf["inputs"][0]["pad"] = {"mode": "symmetric"}
    rdf["weights"]["pytorch_state_dict"]["strict"] = True
    rdf["outputs"][0]["axes"][1]["channel_names"] = ["DAPI 405"]


PLACES = {name: f"files/{name}" for name in ("torchscript.pt", "weights.pt", "tiny.py", "README.md")}
MOVED: Files = {**dict.fromkeys(PLACES), **{new: zips.model_files()[old] for old, new in PLACES.items()}}


def moved(rdf: Rdf) -> None:
    for reference in references(rdf):
        if reference.path in PLACES:
            reference.point_to(("./" if reference.path == "torchscript.pt" else "") + PLACES[reference.path])


def pixel_sizes(rdf: Rdf) -> None:
    for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
        for axis in tensor["axes"][2:]:
            axis.update(scale=0.1, unit="micrometer")


def two_inputs(rdf: Rdf) -> None:
    rdf["inputs"][0]["axes"][2]["scale"] = 0.5
    size = {"tensor_id": "photons", "axis_id": "y"}
    axes = [{"type": "batch"}, {"type": "space", "id": "y", "scale": 2.0, "size": size}]
    rdf["inputs"].append({"id": "more", "axes": axes})


def shared(rdf: Rdf) -> None:
    rdf["inputs"][0]["axes"][1] = rdf["outputs"][0]["axes"][1] = {"type": "channel", "channel_names": []}


def version_04(rdf: Rdf) -> None:
    """The same model as format 0.4 describes it."""
    weights = copy.deepcopy(rdf["weights"])
    architecture = weights["pytorch_state_dict"].pop("architecture")
    weights["pytorch_state_dict"] |= {
        "architecture": "tiny.py:Tiny", "architecture_sha256": architecture["sha256"], "kwargs": {"size": 3},
    }  # fmt: skip
    zips.to_format_0_4("0.4.10", weights=weights)(rdf)
    rdf["id"], rdf["inputs"][0]["shape"] = "tiny-blur", {"min": [1, 1, 16, 16], "step": [0, 0, 4, 4]}


IN, OUT = ("inputs", 0, "axes"), ("outputs", 0, "axes")
NET = ("weights", "pytorch_state_dict", "architecture")
NO_IDS = both(drop(*IN, 3, "id"), drop(*OUT, 3, "id"))
REFERRED = [put(*OUT, n, "size", "tensor_id", value="input") for n in (2, 3)]
DEFAULT_IDS = both(drop("inputs", 0, "id"), drop("outputs", 0, "id"), *REFERRED)
OP = {"id": "custom", "callable": "Op", "source": "op.py", "kwargs": {}}
CUSTOM = both(objects, put("outputs", 0, "postprocessing", value=[OP]))
NAIVE = "# Naïve\n\n## Validation\nnone\n"
WRONG = put("weights", "torchscript", "sha256", value="0" * 64)
MAMBA = put("weights", "pytorch_state_dict", "dependencies", value="mamba:e.yaml")
LOOSE = put("weights", "pytorch_state_dict", "strict", value=False)


def wide(width: int, height: int, kind: str = "PNG") -> bytes:
    noise, buffer = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


# what is broken, further files, the check that turns, the repair, and places of the description afterwards
MENDED: list[tuple[zips.Mutation | None, Files, str, str, Rdf]] = [
    (objects, {}, "fiji.format_version", "format_version", {"format_version": "0.5.9", "documentation": "README.md"}),
    (objects, {}, "fiji.plain_strings", "plain_strings", {"covers": ["cover.png"]}),
    (CUSTOM, {"op.py": b"class Op: ..."}, "ilastik.format_version", "format_version", {"format_version": "0.5.10"}),
    (both(newest_fields, put(*OUT, 1, "channel_names", value=["a b", "a_b", "\u03b1", "A-B", "class", "\U0001f52c"])),
     {"output.npy": zips.npy(np.ones((1, 6, 32, 32), "f4"))}, "ilastik.plain_strings", "channel_names",
     {"outputs.0.axes.1.channel_names": ["a_b_2", "a_b", "\u03b1", "A_B_3", "channel_class", "channel"],
      "inputs.0.pad": None, "weights.pytorch_state_dict.strict": None}),
    (put("format_version", value="0.5"), {}, "format.version", "format_version", {"format_version": "0.5.9"}),
    (both(version_04, put("format_version", value="0.4")), {}, "format.version", "format_version",
     {"format_version": "0.5.9"}),
    (put("id", value=""), {}, "fiji.id", "id", {"id": "tiny-blur"}),
    (WRONG, {}, "archive.hashes", "hash_wrong", {}),
    (both(version_04, WRONG), {}, "archive.hashes", "hash_wrong",  # the conversion hides none
     {"format_version": "0.5.9", "documentation": "README.md", "covers": ["cover.png"], "outputs.0.axes.2.halo": 2,
      "weights.pytorch_state_dict.architecture.kwargs": {"size": 3}}),
    (drop("inputs", 0, "test_tensor", "sha256"), {}, "zoo.test_hashes", "hash_missing", {}),
    (put(*OUT, 1, "channel_names", value=[]), {}, "fiji.channel_names", "channel_names",
     {"outputs.0.axes.1.channel_names": ["channel0"]}),
    (shared, {}, "ilastik.channel_names", "channel_names", {}),
    (both(pixel_sizes, put(*OUT, 2, "scale", value=0.05)), {"output.npy": zips.npy(np.ones((1, 1, 64, 32), "f4"))},
     "fiji.axis_scale", "axis_scale",
     {"inputs.0.axes.2.description": "pixel size 0.1 micrometer", "outputs.0.axes.2.scale": 0.5,
      "outputs.0.axes.3.scale": 1.0}),
    (NO_IDS, {}, "fiji.explicit_axis_ids", "axis_ids", {"inputs.0.axes.3.id": "x", "outputs.0.axes.3.halo": 2}),
    (both(pixel_sizes, DEFAULT_IDS), {}, "fiji.explicit_tensor_ids", "tensor_ids",
     {"inputs.0.id": "input", "outputs.0.id": "output", "outputs.0.axes.2.scale": 1.0}),
    (drop("documentation"), {}, "zoo.documentation", "readme", {"documentation": "README.md"}),
    (both(version_04, drop("documentation"), MAMBA), {"e.yaml": b"name: x"},
     "zoo.documentation", "readme",  # which makes the conversion possible
     {"format_version": "0.5.9", "weights.pytorch_state_dict.dependencies.source": "e.yaml"}),
    (None, {"README.md": None}, "archive.files", "readme", {}),
    (put("documentation", value="a.txt"), {"a.txt": b"# Tiny\n"}, "format.valid", "readme", {"documentation": "a.md"}),
    (put("documentation", value="a.MD"), {"a.MD": b"# Tiny\n"}, "format.valid", "readme", {"documentation": "a.md"}),
    (put("covers", value=["gone.png", "cover.png"]), {}, "archive.files", "cover", {"covers": ["cover.png"]}),
    (None, {"cover.png": wide(300, 900)}, "zoo.cover", "cover", {}),
    (put("covers", value=["a.jpg"]), {"a.jpg": wide(1600, 1300, "JPEG")}, "zoo.cover", "cover", {"covers": ["a.jpg"]}),
    (moved, MOVED, "fiji.weights_root", "flat",
     {"weights.torchscript.source": "torchscript.pt", "documentation": "files/README.md"}),
    (put("config", "deepimagej", value={"a": 1}), {}, "fiji.no_deepimagej_config", "deepimagej_config", {}),
    (put("inputs", 0, "sample_tensor", value={"source": "output.npy"}), {}, "zoo.sample_tensor", "sample_tensor", {}),
    (put("inputs", 0, "sample_tensor", value={"source": "input.npy"}), {}, "format.valid", "sample_tensor", {}),
    (None, {"__MACOSX/._rdf.yaml": b"x"}, "zoo.few_files", "leftovers", {}),
]  # fmt: skip


@pytest.mark.parametrize("row", MENDED, ids=lambda row: f"{row[2]}-{row[3]}")
def test_what_is_broken_is_mended(row: Any, tmp_path: Path, mend: Mend) -> None:
    mutate, files, rule, fix, places = row
    repaired = mend(zips.make_zip(tmp_path, mutate, files=files))
    assert status(repaired.before, rule) in ("failed", "warning")
    assert status(repaired.after, rule) == "passed"
    assert {check.id for check in repaired.after.checks if check.status == "failed"} == set()
    (change, *_) = [change for change in repaired.changes if change.id == fix]
    made = {change.id for change in repaired.changes} | {change.what for change in repaired.changes}
    assert not {"plain_strings", "format of the description"} <= made  # what the conversion wrote, nobody changed
    assert ("WRONG HASH" in change.what) == (fix == "hash_wrong")
    for where, value in places.items():
        found = rdf_of(tmp_path)
        for key in where.split("."):
            found = found[int(key)] if key.isdigit() else found.get(key)
        assert found == value, where


LICENCE = put("license", value={"source": "LICENSE", "sha256": zips.sha256(b"Ask me.")})
# what is broken, further files, and what a note says of it
LEFT: list[tuple[zips.Mutation | None, Files, str]] = [
    (put(*NET, "sha256", value="0" * 64), {}, "tiny.py is code"),
    (drop(*NET, "sha256"), {}, zips.sha256(zips.BLUR.encode())),
    (None, {"cover.png": b"no image"}, "cover.png stays as it is"),
    (both(newest_fields, LOOSE), {}, "strict"),
    (both(newest_fields, put("inputs", 0, "output_of", value="another-model")), {}, "another model's output"),
    (both(newest_fields, LICENCE), {"LICENSE": b"Ask me."}, "licence"),
    (two_inputs, {}, "relate the sizes of two inputs"),
    (None, {"README.md": b"# Tiny\nNothing.\n"}, "README.md has no heading about validation"),
    (both(version_04, drop("timestamp")), {}, "timestamp: is missing"),
    (both(version_04, put("inputs", 0, "data_type", value="uint8")), {}, "'float32' does not match"),
]


@pytest.mark.parametrize(("mutate", "files", "note"), LEFT)
def test_what_needs_its_authors_is_left(mutate: Any, files: Files, note: str, tmp_path: Path, mend: Mend) -> None:
    path = zips.make_zip(tmp_path, mutate, files=files)
    repaired = mend(path)
    assert any(note in told for told in repaired.notes)
    assert (repaired.changes, repaired.turned, out(tmp_path)) == ((), {}, contents(path))
    assert next(iter(out(tmp_path))) == "rdf.yaml"


@pytest.mark.parametrize("encoding", ["", "latin-1", "utf-8", "utf-16"])
def test_the_readme_says_what_is_known_in_utf_8(encoding: str, tmp_path: Path, mend: Mend) -> None:
    written = NAIVE.encode(encoding) if encoding else None
    mend(zips.make_zip(tmp_path, drop("documentation"), files={"README.md": written}))
    assert out(tmp_path)["README.md"].decode() == (NAIVE if encoding else "# Tiny blur\n\nBlurs photon counts.\n")
    if written is not None:  # a hash that is stated is that of what was written
        mend(zips.make_zip(tmp_path, both(objects, LOOSE), files={"README.md": written}))
        assert rdf_of(tmp_path)["documentation"] == {"source": "README.md", "sha256": zips.sha256(NAIVE.encode())}


def test_an_old_step_keeps_the_input_that_it_refers_to(tmp_path: Path, mend: Mend) -> None:
    kwargs = {"mode": "per_sample", "axes": "xy", "reference_tensor": "photons"}
    ranges = put("outputs", 0, "postprocessing", value=[{"name": "scale_range", "kwargs": kwargs}])
    repaired = mend(zips.make_zip(tmp_path, both(zips.to_format_0_4(), ranges)))
    steps = rdf_of(tmp_path)["outputs"][0]["postprocessing"]
    assert [step["kwargs"]["reference_tensor"] for step in steps if step["id"] == "scale_range"] == ["photons"]
    assert status(repaired.after, "format.valid") == "passed"


def test_the_hash_of_a_pointer_to_a_file_is_not_stated(tmp_path: Path, mend: Mend) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    path = zips.make_zip(tmp_path, drop("weights", "torchscript", "sha256"), files={"torchscript.pt": pointer})
    assert mend(path).changes == () and status(mend(path).after, "archive.files") == "failed"


def test_rules_name_repairs_that_there_are() -> None:
    named = {made.repair for made in registry().values()}
    assert named <= {"", *(function.__name__ for function in REPAIRS)}


def test_a_repair_that_stumbles_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(editor: PackageEditor) -> None:
        editor.rdf["id"] = "new"
        editor.changed("id", "id", "old", "new")
        raise KeyError("axes")

    monkeypatch.setattr(module, "REPAIRS", (stumble,))
    editor = PackageEditor(tmp_path, {"id": "old"}, "rdf.yaml")
    module.apply_repairs(editor)
    assert (editor.rdf, editor.changes, len(editor.notes)) == ({"id": "old"}, [], 1)


def test_a_folder_and_a_yaml_become_zips(tmp_path: Path, mend: Mend) -> None:
    folder = unpacked(zips.make_zip(tmp_path))
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "unnamed.txt").write_text("x")
    (folder / "rdf.yaml").rename(folder / "bioimageio.yaml")
    assert {change.id for change in mend(folder).changes} == {"rdf_name"}
    (folder / "bioimageio.yaml").rename(folder / "rdf.yaml")
    assert "unnamed.txt" in out(tmp_path) and ".git/HEAD" not in out(tmp_path)
    assert mend(folder / "rdf.yaml").changes == ()
    assert set(out(tmp_path)) == {"rdf.yaml", *zips.model_files()}


def test_outputs_that_would_write_to_the_model_are_refused(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    before, folder = path.read_bytes(), unpacked(path)
    (tmp_path / "symlink.zip").symlink_to(path)
    os.link(path, tmp_path / "hardlink.zip")
    shutil.copy(path, folder / "input.zip")
    (folder / "rdf.yaml").write_text(f"{(folder / 'rdf.yaml').read_text()}attachments: [{{source: input.zip}}]\n")
    for given, target, words in (
        (path, path, "choose another name"),
        (path, tmp_path / "symlink.zip", "choose another name"),
        (path, tmp_path / "hardlink.zip", "choose another name"),
        (folder, folder / "out.zip", "inside the model's folder"),
        (folder, tmp_path / "out.tar", r"ends in \.zip"),
        (folder / "rdf.yaml", folder / "input.zip", "it is the model"),
    ):
        with pytest.raises(OutputError, match=words):
            repair(given, target)
    assert path.read_bytes() == before


def test_what_is_no_safe_model_is_refused(tmp_path: Path) -> None:
    for mutate, files, sentence in (
        (put("format_version", value="0.3.6"), {}, r"format 0\.3\.6, repair takes 0\.4 and 0\.5"),
        (drop("format_version"), {}, "states no format_version"),
        (put("type", value="dataset"), {}, "type 'dataset'; repair takes models"),
        (None, {"../evil.py": b"x"}, "leads out of the package"),
    ):
        with pytest.raises(UnreadableModelError, match=sentence):
            repair(zips.make_zip(tmp_path, mutate, files=files), tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_a_repaired_model_still_reproduces_its_test(tmp_path: Path, model_process: Sandbox, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "validate", functools.partial(validate, process=model_process))
    seen: list[str] = []
    document = put("documentation", value={"source": "files/README.md"})
    broken = both(newest_fields, moved, pixel_sizes, drop("id"), drop("covers"), document)
    path, target = zips.make_zip(tmp_path, broken, files=MOVED), tmp_path / "out.zip"
    repaired = repair(path, target, run_code=True, on_check=lambda check: seen.append(check.id))
    assert len(repaired.changes) > 12
    assert repaired.after.status == repaired.to_dict()["status"] == status(repaired.after, "core.test") == "passed"
    assert (repaired.before.model, repaired.after.model) == (str(path), str(target))
    assert repaired.turned["fiji.id"] == ("warning", "passed")
    assert len(seen) == len(repaired.before.checks) + len(repaired.after.checks)


OLD_MODEL = pytest.param("spec_unet2d_fixed_shape", "0.4.9", marks=pytest.mark.slow)
NEW_MODELS = (("spec_unet2d_multi_tensor", "0.5.4"), ("spec_upsample_test_model", "0.5.9"))


@pytest.mark.parametrize(("name", "version"), [OLD_MODEL, *NEW_MODELS])
def test_real_models(name: str, version: str, shared_data: Path, tmp_path: Path, mend: Mend) -> None:
    folder = shared_data.parent / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    repaired = mend(folder)
    assert {*out(tmp_path)} == {"rdf.yaml", *(file.name for file in folder.iterdir() if file.suffix != ".yaml")}
    assert rdf_of(tmp_path)["format_version"] == version
    assert repaired.before.status == repaired.after.status == "passed"
    assert ("keep both" in "".join(repaired.notes)) == (status(repaired.after, "fiji.output_size") == "warning")
    assert status(repaired.after, "fiji.id") == ("skipped" if version == "0.4.9" else "passed")  # Fiji makes one
