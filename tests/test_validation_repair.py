"""Repairs: what each mends, that nothing else changes, and that the original stays."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import itertools
import os
import shutil
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
import zips
from bioimageio.spec.utils import read_yaml
from PIL import Image
from zips import drop, put

from gap_bioimage.errors import OutputError, UnreadableModelError
from gap_bioimage.validation.archive.examine import examine
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import Check, definitions, registry
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.quiet import quiet
from gap_bioimage.validation.repair import description as repair_format
from gap_bioimage.validation.repair import repairing as module
from gap_bioimage.validation.repair.editor import Change, PackageEditor, to_yaml
from gap_bioimage.validation.repair.repairing import REPAIRS, Repaired, repair
from gap_bioimage.validation.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    Rdf = dict[str, Any]
    Mutation = Callable[[Rdf], None]


@functools.cache
def good_files() -> dict[str, bytes]:
    """The files that `zips.make_zip` writes: TorchScript is other bytes each time that it is saved."""
    with tempfile.TemporaryDirectory() as folder:
        files = contents(zips.make_zip(Path(folder)))
    return {name: data for name, data in files.items() if name != "rdf.yaml"}


def static_validate(path: Path, **_: object) -> Report:
    """Everything but running the model, which a few tests below do."""
    with open_package(path) as (package, checks):
        assert package is not None
        examined = examine(package)
        upgraded = examined.description.upgraded if examined.description else None
        partners = [made.judge(Model(package, upgraded)) for made in definitions("rule")]
        softened = [replace(check, status="warning") if check.status == "failed" else check for check in partners]
        ran = Check("core.test", "core", "passed", "not really")
        return Report(str(path), (*checks, *examined.checks, ran, *softened))


@pytest.fixture
def mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Repaired]:
    """Repair a model to ``tmp_path / "out.zip"``, validating without running it."""
    monkeypatch.setattr(module, "validate", static_validate)

    def call(path: Path) -> Repaired:
        before = path.read_bytes() if path.is_file() else b""
        repaired = repair(path, tmp_path / "out.zip")
        assert not before or path.read_bytes() == before
        again = repair(tmp_path / "out.zip", tmp_path / "again.zip")
        assert again.changes == ()
        assert contents(tmp_path / "again.zip") == contents(tmp_path / "out.zip")
        assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()
        return repaired

    return call


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def out(tmp_path: Path) -> dict[str, bytes]:
    return contents(tmp_path / "out.zip")


def rdf_of(tmp_path: Path) -> Any:
    return yaml.safe_load(out(tmp_path)["rdf.yaml"])


def status(report: Report, check_id: str) -> str:
    return next(check.status for check in report.checks if check.id == check_id)


def both(*mutations: Mutation) -> Mutation:
    def mutate(rdf: Rdf) -> None:
        for one in mutations:
            one(rdf)

    return mutate


def keep(rdf: Rdf) -> None:
    """No mutation."""


def objects(rdf: Rdf) -> None:
    """As bioimageio.spec 0.5.12 writes."""
    rdf["format_version"] = "0.5.12"
    rdf["documentation"] = {"source": "README.md", "sha256": zips.sha256(good_files()["README.md"])}
    rdf["covers"] = [{"source": "cover.png", "sha256": zips.sha256(good_files()["cover.png"])}]


def newest_fields(rdf: Rdf) -> None:
    objects(rdf)
    rdf["inputs"][0]["pad"] = {"mode": "symmetric"}
    rdf["weights"]["pytorch_state_dict"]["strict"] = True
    rdf["outputs"][0]["axes"][1]["channel_names"] = ["DAPI 405"]


def moved(rdf: Rdf) -> None:
    rdf["weights"]["torchscript"]["source"] = "./weights/torchscript.pt"
    rdf["weights"]["pytorch_state_dict"]["source"] = "weights/weights.pt"
    rdf["weights"]["pytorch_state_dict"]["architecture"]["source"] = "code/tiny.py"
    rdf["documentation"] = "docs/README.md"


def moved_files() -> dict[str, bytes | None]:
    files = good_files()
    plan = {"torchscript.pt": "weights/torchscript.pt", "weights.pt": "weights/weights.pt", "tiny.py": "code/tiny.py"}
    readme = b"# Tiny\n![cover](../cover.png) [notes](notes.txt)\n\n## Validation\nLook at it.\n"
    return {
        **dict.fromkeys([*plan, "README.md"]),
        **{new: files[old] for old, new in plan.items()},
        "docs/README.md": readme,
        "docs/notes.txt": b"notes",
    }


def pixel_sizes(rdf: Rdf) -> None:
    for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
        for axis in tensor["axes"][2:]:
            axis.update(scale=0.1, unit="micrometer")


def wide(width: int, height: int, suffix: str = "PNG") -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, suffix)
    return buffer.getvalue()


SIZE_Y = ("inputs", 0, "axes", 2, "size")
SIZE_X = ("inputs", 0, "axes", 3, "size")
ON_STEP = both(put(*SIZE_Y, value={"min": 18, "step": 4}), put(*SIZE_X, value={"min": 18, "step": 4}))
NO_README: dict[str, bytes | None] = {"README.md": None}
MENDED: list[tuple[str, str, Mutation, dict[str, Any]]] = [
    # rule, repair, what is broken
    ("fiji.rdf_name", "rdf_name", keep, {"rdf_name": "bioimageio.yaml"}),
    ("fiji.format_version", "format_version", objects, {}),
    ("fiji.plain_strings", "plain_strings", objects, {}),
    ("ilastik.plain_strings", "plain_strings", objects, {}),
    ("ilastik.format_version", "format_version", newest_fields, {}),
    ("fiji.plain_strings", "plain_strings", put("license", value={"source": "LICENSE"}), {
        "files": {"LICENSE": b"// SPDX-License-Identifier: MIT\nPermission is granted\n"}}),
    ("fiji.id", "id", drop("id"), {}),
    ("fiji.id", "id", put("id", value=""), {}),
    ("archive.hashes", "hash_wrong", put("weights", "torchscript", "sha256", value="0" * 64), {}),
    ("zoo.test_hashes", "hash_missing", drop("inputs", 0, "test_tensor", "sha256"), {}),
    ("fiji.channel_names", "channel_names", put("outputs", 0, "axes", 1, "channel_names", value=[]), {}),
    ("ilastik.channel_names", "channel_names", drop("inputs", 0, "axes", 1, "channel_names"), {}),
    ("fiji.axis_scale", "axis_scale", pixel_sizes, {}),
    ("fiji.min_of_step", "min_of_step", ON_STEP, {}),
    ("fiji.min_halo", "min_halo", put("outputs", 0, "axes", 3, "halo", value=9), {}),
    ("ilastik.grid", "grid", put(*SIZE_Y, value={"min": 16, "step": 8}), {}),
    ("fiji.explicit_axis_ids", "axis_ids", drop("outputs", 0, "axes", 3, "id"), {}),
    ("format.version", "format_version", put("format_version", value="0.5"), {}),
    ("zoo.documentation", "readme", drop("documentation"), {"files": NO_README}),
    ("zoo.documentation", "readme", drop("documentation"), {}),
    ("archive.files", "readme", keep, {"files": NO_README}),
    ("zoo.documentation", "readme", keep, {"files": {"README.md": b"# Tiny\nNothing.\n"}}),
    ("format.valid", "readme", put("documentation", value="README.txt"), {
        "files": {"README.md": None, "README.txt": b"# Tiny\n"}}),
    ("archive.files", "cover", put("covers", value=["gone.png", "cover.png"]), {}),
    ("zoo.cover", "cover", keep, {"files": {"cover.png": wide(300, 900)}}),
    ("zoo.cover", "cover", keep, {"files": {"cover.png": wide(800, 400)}}),
    ("zoo.cover", "cover", put("covers", value=["cover.jpg"]), {"files": {"cover.jpg": wide(1600, 1300, "JPEG")}}),
    ("format.valid", "cover", put("covers", value=["cover.tif"]), {"files": {"cover.tif": wide(40, 30, "TIFF")}}),
    ("fiji.weights_root", "flat", moved, {"files": moved_files()}),
    ("zoo.few_files", "flat", moved, {"files": moved_files()}),
    ("fiji.no_deepimagej_config", "deepimagej_config", put("config", "deepimagej", value={"a": 1}), {}),
    ("zoo.sample_tensor", "sample_tensor", lambda rdf: rdf["inputs"][0].update(
        sample_tensor=dict(rdf["outputs"][0]["test_tensor"])), {}),
    ("zoo.few_files", "leftovers", keep, {"files": {"__MACOSX/._rdf.yaml": b"x"}}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "fix", "mutate", "options"), MENDED, ids=[f"{m[0]}-{m[1]}" for m in MENDED])
def test_what_is_broken_is_mended(
    rule: str, fix: str, mutate: Mutation, options: dict[str, Any], tmp_path: Path, mend: Callable[..., Repaired]
) -> None:
    repaired = mend(zips.make_zip(tmp_path, mutate, **options))
    assert status(repaired.before, rule) in ("failed", "warning")
    assert status(repaired.after, rule) == "passed"
    assert fix in {change.id for change in repaired.changes}
    assert {check.id for check in repaired.after.checks if check.status == "failed"} == set()


def checked(**expected: Any) -> Callable[[Repaired, Rdf, dict[str, bytes]], None]:
    """Values that places of the repaired description have."""

    def check(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
        for where, value in expected.items():
            found: Any = rdf
            for key in where.split("__"):
                found = found[int(key) if key.isdigit() else key]
            assert found == value, where

    return check


def noted(text: str, *changes: str) -> Callable[[Repaired, Rdf, dict[str, bytes]], None]:
    """A note that says what was left alone, and the only repairs that were made."""

    def check(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
        assert any(text in note for note in repaired.notes), repaired.notes
        assert {change.id for change in repaired.changes} == {*changes}
        sizes = [axis["size"] for axis in rdf["inputs"][0]["axes"][2:] if "size" in axis]
        assert all(32 >= size["min"] and (32 - size["min"]) % size["step"] == 0 for size in sizes)

    return check


def custom(rdf: Rdf) -> None:
    objects(rdf)
    rdf["outputs"][0]["postprocessing"] = [{"id": "custom", "callable": "Op", "source": "op.py", "kwargs": {}}]


def larger(rdf: Rdf) -> None:
    pixel_sizes(rdf)
    rdf["outputs"][0]["axes"][2]["scale"] = 0.05


def two_inputs(rdf: Rdf) -> None:
    rdf["inputs"][0]["axes"][2]["scale"] = 0.5
    size = {"tensor_id": "photons", "axis_id": "y"}
    axes = [{"type": "batch"}, {"type": "space", "id": "y", "scale": 2.0, "size": size}]
    rdf["inputs"].append({"id": "more", "axes": axes})


def shared(rdf: Rdf) -> None:
    rdf["inputs"][0]["axes"][1] = rdf["outputs"][0]["axes"][1] = {"type": "channel", "channel_names": []}


def moves(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
    assert not [name for name in files if "/" in name]
    assert b"](cover.png) [notes](notes.txt)" in files["README.md"]
    assert files["weights.pt"] == good_files()["weights.pt"]
    weights = rdf["weights"]
    assert weights["torchscript"]["source"] == "torchscript.pt"
    assert weights["pytorch_state_dict"]["architecture"]["source"] == "tiny.py"
    assert rdf["documentation"] == "README.md"


def unique(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
    assert files["input.npy"] == good_files()["input.npy"] and files["more_INPUT.npy"] == OTHER
    assert rdf["attachments"][0]["source"] == "more_INPUT.npy"
    assert files["more/cover.png"] == b"unnamed"
    noted("more/cover.png stays", "flat")(repaired, rdf, files)


def wrong_hash(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
    (change,) = [change for change in repaired.changes if change.id == "hash_wrong"]
    assert (change.before, change.after) == ("0" * 64, zips.sha256(files["torchscript.pt"]))
    assert "WRONG HASH" in change.what


def readme_is(text: str) -> Callable[[Repaired, Rdf, dict[str, bytes]], None]:
    def check(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
        assert files["README.md"].decode() == text

    return check


def two_places(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
    assert [change.id for change in repaired.changes] == ["channel_names", "channel_names"]
    assert b"&id" not in files["rdf.yaml"]


def least(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
    assert repaired.changes == (Change("grid", "size of photons, x", "min 16, step 4", "min 24, step 4"),)


def impossible(repaired: Repaired, rdf: Rdf, files: dict[str, bytes]) -> None:
    assert (repaired.changes, status(repaired.after, "ilastik.grid")) == ((), "warning")


OTHER = zips.npy(np.zeros(3))
ARCHITECTURE = ("weights", "pytorch_state_dict", "architecture")
WRONG = put("weights", "torchscript", "sha256", value="0" * 64)
NO_IDS = both(drop("inputs", 0, "axes", 3, "id"), drop("outputs", 0, "axes", 3, "id"))
ATTACHED = put("attachments", value=[{"source": "more/INPUT.npy", "sha256": zips.sha256(OTHER)}])
NAIVE = "# Naïve\n\n## Validation\nnone\n"
HONEST = "# Tiny blur\n\nBlurs photon counts.\n\n# Validation\n\nNo validation was described by the authors.\n"
DETAILS: list[tuple[Mutation, dict[str, bytes | None], Callable[[Repaired, Rdf, dict[str, bytes]], None]]] = [
    # what is broken, other files, what becomes of it
    (custom, {"op.py": b"class Op: ..."}, checked(format_version="0.5.10")),
    (WRONG, {}, wrong_hash),
    (both(lambda rdf: version_04(rdf), WRONG), {}, wrong_hash),  # conversion hides none
    (put(*ARCHITECTURE, "sha256", value="0" * 64), {}, noted("tiny.py is code")),
    (drop(*ARCHITECTURE, "sha256"), {}, noted(zips.sha256(zips.BLUR.encode()))),
    (NO_IDS, {}, checked(inputs__0__axes__3__id="x", outputs__0__axes__3__id="x", outputs__0__axes__3__halo=2)),
    (moved, moved_files(), moves),
    (ATTACHED, {"more/INPUT.npy": OTHER, "more/cover.png": b"unnamed"}, unique),
    (keep, {"data/table.bin": b"x", "helper.py": b'open("data/table.bin")\n'}, noted("helper.py may read it")),
    (larger, {}, checked(inputs__0__axes__2__description="pixel size 0.1 micrometer", outputs__0__axes__2__scale=0.5)),
    (two_inputs, {}, noted("relate the sizes of two inputs")),
    (put(*SIZE_Y, value={"min": 20, "step": 12}), {}, noted("the test tensor needs it")),  # 32 = 20 + 12
    (put("outputs", 0, "axes", 2, "halo", value=16), {}, noted("the test tensor needs it")),
    (put(*SIZE_Y, value={"min": 24, "step": 4}), {}, least),
    (put(*SIZE_Y, value={"min": 16, "step": 1}), {}, impossible),
    (shared, {}, two_places),
    (keep, {"cover.png": b"no image"}, noted("cover.png is not looked at")),
    (drop("documentation"), NO_README, readme_is(HONEST)),
    (keep, {"README.md": NAIVE.encode("latin-1")}, readme_is(NAIVE)),
]  # fmt: skip


@pytest.mark.parametrize(("mutate", "files", "check"), DETAILS)
def test_repairs_change_what_they_should_and_nothing_else(
    mutate: Mutation, files: dict[str, bytes | None], check: Any, tmp_path: Path, mend: Callable[..., Repaired]
) -> None:
    repaired = mend(zips.make_zip(tmp_path, mutate, files=files))
    check(repaired, rdf_of(tmp_path), out(tmp_path))


def test_a_good_zip_is_copied(tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    path = zips.make_zip(tmp_path)
    repaired = mend(path)
    assert repaired.changes == ()
    assert repaired.turned == {}
    assert out(tmp_path) == contents(path)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist()[0] == "rdf.yaml"
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_newest_fields_are_dropped_and_listed(tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    repaired = mend(zips.make_zip(tmp_path, newest_fields))
    dropped = {change.what for change in repaired.changes if change.after.startswith("dropped")}
    assert dropped == {"weights.pytorch_state_dict: strict", "input photons: pad"}
    rdf = rdf_of(tmp_path)
    assert rdf["format_version"] == "0.5.9"
    assert rdf["covers"] == ["cover.png"]
    assert rdf["outputs"][0]["axes"][1]["channel_names"] == ["DAPI_405"]
    assert "pad" not in rdf["inputs"][0]


def test_lenient_weights_keep_the_newest_format(tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    lenient = put("weights", "pytorch_state_dict", "strict", value=False)
    repaired = mend(zips.make_zip(tmp_path, both(objects, lenient), files={"README.md": b"# Tiny\n"}))
    rdf = rdf_of(tmp_path)
    assert rdf["format_version"] == "0.5.12"
    assert rdf["documentation"]["sha256"] == hashlib.sha256(out(tmp_path)["README.md"]).hexdigest()
    assert any("strict" in note for note in repaired.notes)
    assert status(repaired.after, "format.valid") == "passed"


def test_a_licence_file_stays_as_an_attachment(tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    own = both(objects, put("license", value={"source": "LICENSE"}))
    repaired = mend(zips.make_zip(tmp_path, own, files={"LICENSE": b"Ask me first.\n"}))
    rdf = rdf_of(tmp_path)
    assert "license" not in rdf
    assert rdf["attachments"] == [{"source": "LICENSE", "sha256": zips.sha256(b"Ask me first.\n")}]
    assert status(repaired.after, "fiji.plain_strings") == "passed"
    assert status(repaired.after, "zoo.license") == "warning"


def test_rules_name_repairs_that_there_are() -> None:
    named = {made.repair for made in registry().values() if made.repair}
    assert named
    assert named <= {function.__name__ for function in REPAIRS}


@pytest.mark.parametrize("line", [b"from .layers import Layer\n", b"from code.layers import Layer\n"])
def test_imported_packages_stay_in_their_folder(line: bytes, tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    files = moved_files() | {"code/layers.py": b"Layer = 1\n"}
    files["code/tiny.py"] = line + zips.BLUR.encode()
    repaired = mend(zips.make_zip(tmp_path, moved, files=files))
    assert {name for name in out(tmp_path) if "/" in name} == {"code/tiny.py", "code/layers.py"}
    assert rdf_of(tmp_path)["weights"]["pytorch_state_dict"]["architecture"]["source"] == "code/tiny.py"
    assert any("imports modules by their folder" in note for note in repaired.notes)


@pytest.mark.parametrize(
    "text", ["1e5", "0o14", "1_000", "2022-01-01", "-.5e3", "0.5.9", "y", "on", "null", "~", ".inf"]
)
def test_texts_stay_texts_in_both_versions_of_yaml(text: str) -> None:
    written = to_yaml({text: text, "numbers": [1, 1e-5, float("inf"), None, True]})
    for read in (read_yaml, yaml.safe_load):
        assert read(written.decode()) == {text: text, "numbers": [1, 1e-5, float("inf"), None, True]}


def version_04(rdf: Rdf) -> None:
    """The same model as format 0.4 describes it."""
    shape = {"min": [1, 1, 16, 16], "step": [0, 0, 4, 4]}
    tensor = {"axes": "bcyx", "data_type": "float32", "data_range": [-float("inf"), float("inf")]}
    output = {"reference_tensor": "photons", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]}
    entry = rdf["weights"]["pytorch_state_dict"]
    architecture = entry.pop("architecture")
    entry |= {"architecture": "tiny.py:Tiny", "architecture_sha256": architecture["sha256"], "kwargs": {"size": 3}}
    rdf |= {
        "format_version": "0.4.10",
        "timestamp": "2022-10-23T00:00:00",
        "inputs": [{"name": "photons", "shape": shape, **tensor}],
        "outputs": [{"name": "rate", "shape": output, "halo": [0, 0, 2, 2], **tensor}],
        "test_inputs": ["input.npy"],
        "test_outputs": ["output.npy"],
    }


def test_format_0_4_becomes_0_5_9(tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    repaired = mend(zips.make_zip(tmp_path, version_04))
    rdf = rdf_of(tmp_path)
    assert rdf["format_version"] == "0.5.9"
    assert (rdf["documentation"], rdf["covers"]) == ("README.md", ["cover.png"])
    assert rdf["outputs"][0]["axes"][2]["halo"] == 2
    assert rdf["weights"]["pytorch_state_dict"]["architecture"]["kwargs"] == {"size": 3}
    assert {check.id for check in repaired.left if check.status == "failed"} == set()
    assert status(repaired.after, "fiji.channel_names") == "passed"


def fixed_with_halo(rdf: Rdf) -> None:
    rdf["inputs"][0]["shape"] = rdf["outputs"][0]["shape"] = [1, 1, 32, 32]


@pytest.mark.parametrize(
    ("mutate", "note"),
    [
        (drop("timestamp"), "timestamp: is missing"),
        # bioimageio.spec takes seconds to print this error
        pytest.param(fixed_with_halo, "fixed size 32 has a halo", marks=pytest.mark.slow),
    ],
)
def test_what_spec_cannot_convert_is_left(
    mutate: Mutation, note: str, tmp_path: Path, mend: Callable[..., Repaired]
) -> None:
    repaired = mend(zips.make_zip(tmp_path, both(version_04, drop("id"), mutate)))
    assert rdf_of(tmp_path)["format_version"] == "0.4.10"
    assert [change.id for change in repaired.changes] == ["id"]
    assert any(note in line for line in repaired.notes)


STRANGE: tuple[Any, ...] = ("x", 3, None, [], {}, ["x"], {"x": 1}, [[]], -1.5, {"source": 3}, {"source": "input.npy"})
FIELDS: tuple[tuple[str | int, ...], ...] = (
    ("id",), ("name",), ("description",), ("license",), ("documentation",), ("covers",), ("covers", 0), ("inputs",),
    ("inputs", 0), ("inputs", 0, "id"), ("inputs", 0, "axes"), ("inputs", 0, "axes", 1), ("inputs", 0, "test_tensor"),
    ("inputs", 0, "axes", 1, "channel_names"), ("inputs", 0, "axes", 2, "size"), ("inputs", 0, "axes", 2, "scale"),
    ("inputs", 0, "axes", 2, "size", "min"), ("inputs", 0, "axes", 2, "size", "step"), ("outputs",),
    ("outputs", 0, "axes", 2, "halo"), ("outputs", 0, "axes", 2, "size"), ("outputs", 0, "sample_tensor"), ("config",),
    ("weights",), ("weights", "torchscript"), ("weights", "torchscript", "source"), ("attachments",),
    ("weights", "torchscript", "sha256"), ("weights", "pytorch_state_dict", "architecture"), ("icon",),
)  # fmt: skip


@pytest.mark.parametrize("version", [*(pytest.param(v, marks=pytest.mark.slow) for v in ("0.4.10", "0.5.4")), "0.5.12"])
def test_strange_descriptions_end_no_repair(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what spec's own conversion makes of nonsense takes seconds each
    monkeypatch.setattr(repair_format, "_built", lambda *_: ValueError("not converted"))
    files = good_files()
    for number, (where, value) in enumerate(itertools.product(FIELDS, STRANGE)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        rdf = copy.deepcopy(zips.description(files)) | {"format_version": version}
        put(*where, value=value)(rdf)
        editor = PackageEditor(folder, rdf, "rdf.yaml")
        module.apply_repairs(editor)
        editor.changes.clear()
        module.apply_repairs(editor)
        assert editor.changes == [], (where, value)


def test_a_folder_and_a_yaml_become_zips(tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    folder = tmp_path / "model"
    with zipfile.ZipFile(zips.make_zip(tmp_path)) as archive:
        archive.extractall(folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "unnamed.txt").write_text("x")
    assert mend(folder).changes == ()
    assert "unnamed.txt" in out(tmp_path) and ".git/HEAD" not in out(tmp_path)
    assert mend(folder / "rdf.yaml").changes == ()
    assert set(out(tmp_path)) == {"rdf.yaml", *good_files()}


@pytest.mark.parametrize("link", [None, "symlink", "hardlink"])
def test_the_original_is_no_output(link: str | None, tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    target = path if link is None else tmp_path / "link.zip"
    if link == "symlink":
        target.symlink_to(path)
    elif link == "hardlink":
        os.link(path, target)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="choose another name"):
        repair(path, target)
    assert path.read_bytes() == before


def test_outputs_inside_the_model_or_without_zip_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with zipfile.ZipFile(zips.make_zip(tmp_path)) as archive:
        archive.extractall(folder)
    with pytest.raises(OutputError, match="inside the model's folder"):
        repair(folder, folder / "out.zip")
    with pytest.raises(OutputError, match=r"ends in \.zip"):
        repair(folder, tmp_path / "out.tar")
    with pytest.raises(OutputError, match="it is the model"):
        shutil.copy(tmp_path / "tiny.zip", folder / "input.zip")
        rdf = yaml.safe_load((folder / "rdf.yaml").read_text())
        (folder / "rdf.yaml").write_text(yaml.safe_dump({**rdf, "attachments": [{"source": "input.zip"}]}))
        repair(folder / "rdf.yaml", folder / "input.zip")


@pytest.mark.parametrize(
    ("mutate", "options", "sentence"),
    [
        (put("format_version", value="0.3.6"), {}, r"format 0\.3\.6, repair takes 0\.4 and 0\.5"),
        (put("type", value="dataset"), {}, "type 'dataset'; repair takes models"),
        (keep, {"files": {"../evil.py": b"x"}}, r"leads out of the package"),
    ],
)
def test_what_is_no_safe_model_is_refused(
    mutate: Mutation, options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UnreadableModelError, match=sentence):
        repair(zips.make_zip(tmp_path, mutate, **options), tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def predict(path: Path, photons: np.ndarray[Any, Any], weights_format: str) -> np.ndarray[Any, Any]:
    """What bioimageio.core makes of an image."""
    from bioimageio.core import create_prediction_pipeline
    from bioimageio.core import predict as core_predict
    from bioimageio.spec import load_model_description

    with quiet():
        model = load_model_description(path, perform_io_checks=False)
        pipeline = create_prediction_pipeline(model, weights_format=weights_format)  # type: ignore[arg-type]
        sample = core_predict(model=pipeline, inputs={"photons": photons})
    (output,) = sample.members.values()
    return np.asarray(output.data)


@pytest.mark.parametrize("weights_format", ["torchscript", "pytorch_state_dict"])
def test_predictions_stay(weights_format: str, tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    worst = both(
        newest_fields, moved, pixel_sizes, drop("id"), put("documentation", value={"source": "docs/README.md"}),
        put(*SIZE_Y, value={"min": 24, "step": 4}),
    )  # fmt: skip
    path = zips.make_zip(tmp_path, worst, files=moved_files())
    assert len(mend(path).changes) > 12
    photons = np.random.default_rng(1).poisson(3, (1, 1, 48, 32)).astype(np.float32)
    before = predict(path, photons, weights_format)
    assert before.shape == photons.shape
    assert np.array_equal(predict(tmp_path / "out.zip", photons, weights_format), before)


def test_the_models_themselves_are_validated(tmp_path: Path) -> None:
    seen: list[str] = []
    path = zips.make_zip(tmp_path, both(objects, drop("id"), drop("covers")))
    repaired = repair(path, tmp_path / "out.zip", run_code=True, on_check=lambda check: seen.append(check.id))
    assert repaired.after.status == "passed"
    assert (repaired.before.model, repaired.after.model) == (str(path), str(tmp_path / "out.zip"))
    assert repaired.turned["fiji.id"] == ("warning", "passed")
    assert len(seen) == len(repaired.before.checks) + len(repaired.after.checks)
    assert repaired.to_dict()["status"] == "passed"


@pytest.mark.parametrize(
    ("name", "version"),
    [
        pytest.param("spec_unet2d_fixed_shape", "0.4.9", marks=pytest.mark.slow),
        ("spec_unet2d_multi_tensor", "0.5.4"),
        ("spec_upsample_test_model", "0.5.9"),
    ],
)
def test_real_models(name: str, version: str, shared_data: Path, tmp_path: Path, mend: Callable[..., Repaired]) -> None:
    folder = shared_data.parent / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    repaired = mend(folder)
    assert rdf_of(tmp_path)["format_version"] == version
    assert repaired.before.status == repaired.after.status == "passed"
    for rule in ("fiji.id", "fiji.rdf_name", "zoo.documentation"):
        needs_none = rule == "fiji.id" and version.startswith("0.4")  # Fiji makes the id of these
        assert status(repaired.after, rule) == ("skipped" if needs_none else "passed")
