"""Every consumer rule: a model that keeps it and one that breaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import zips
from zips import drop, put

from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import Check, Severity, definition, definitions
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.verdicts import verdicts_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Rdf = dict[str, Any]


class Upgraded:
    """Stands for the description that bioimageio.spec would make of a valid one."""


def judge(path: Path, upgraded: Any = Upgraded, with_files: bool = True, why_not: str = "") -> dict[str, Check]:
    with open_package(path) as (package, _):
        assert package is not None
        model = Model(package, upgraded, with_files, why_not)
        return {made.id: made.judge(model) for made in definitions("rule")}


def two_outputs(rdf: Rdf) -> None:
    rdf["outputs"].append({**rdf["outputs"][0], "id": "std"})


def two_inputs(rdf: Rdf) -> None:
    rdf["inputs"].append({**rdf["inputs"][0], "id": "more"})


def state_dict_only(rdf: Rdf) -> None:
    del rdf["weights"]["torchscript"]


def cube(rdf: Rdf) -> None:
    state_dict_only(rdf)
    for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
        tensor["axes"].insert(2, {"type": "space", "id": "z"})
        for axis in tensor["axes"][2:]:
            axis["size"] = 80


def state_dict(**entry: Any) -> Callable[[Rdf], None]:
    def mutate(rdf: Rdf) -> None:
        state_dict_only(rdf)
        rdf["weights"]["pytorch_state_dict"] |= entry

    return mutate


def stardist(rdf: Rdf) -> None:
    rdf |= {"name": "My StarDist", "config": {"stardist": {"thresholds": True}}}


def import_from(rdf: Rdf) -> None:
    state_dict_only(rdf)
    architecture = rdf["weights"]["pytorch_state_dict"]["architecture"]
    del architecture["source"]
    architecture["import_from"] = "careamics.models.unet"


def old(rdf: Rdf) -> None:
    """What BiaPy stumbles over in format 0.4."""
    rdf["format_version"] = "0.4.10"
    rdf["inputs"][0]["shape"] = [1, 1, 32, 32]


def swap_axes(rdf: Rdf) -> None:
    axes = rdf["outputs"][0]["axes"]
    axes[2], axes[3] = axes[3], axes[2]


def channels_last(rdf: Rdf) -> None:
    for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
        tensor["axes"].append(tensor["axes"].pop(1))


def preprocess(**step: Any) -> Callable[[Rdf], None]:
    return put("inputs", 0, "preprocessing", value=[step])


def third_dimension(rdf: Rdf) -> None:
    for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
        tensor["axes"].insert(2, {"type": "space", "id": "z", "size": 1})


def large_tiles(rdf: Rdf) -> None:
    for axis in rdf["inputs"][0]["axes"][2:]:
        axis["size"] = {"min": 8192, "step": 4}


def fixed_tiles(rdf: Rdf) -> None:
    for axis in rdf["inputs"][0]["axes"][2:]:
        axis["size"] = 8192


def tolerate(**tolerance: Any) -> Callable[[Rdf], None]:
    return put("config", "bioimageio", "reproducibility_tolerance", value=[tolerance])


def onnx(**more: Any) -> Callable[[Rdf], None]:
    return put("weights", "onnx", value={"source": "model.onnx", "opset_version": 18} | more)


def sample_of_output(rdf: Rdf) -> None:
    rdf["inputs"][0]["sample_tensor"] = rdf["outputs"][0]["test_tensor"]


SIZE_Y = ("inputs", 0, "axes", 2, "size")
CUSTOM = preprocess(id="custom", source="op.py", callable="Op")
ATTENTION = zips.tiny("rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)")
OLD_IR, NEW_IR = b"\x08\x08\x12", b"\x08\x0a\x12"
BREAKS: list[tuple[str, Callable[[Rdf], None], dict[str, Any]]] = [
    ("core.reproducibility_tolerance", tolerate(mismatched_elements_per_million=2000), {}),
    ("format.dtypes", put("inputs", 0, "data", value={"type": "float64"}), {}),
    ("core.output_channel", drop("outputs", 0, "axes", 1), {}),
    ("core.custom_ops", CUSTOM, {}),
    ("core.dependencies", state_dict(dependencies={"source": "environment.yaml"}), {}),
    ("core.tensorflow", put("weights", value={"keras_hdf5": {"source": "x"}}), {}),
    ("zoo.name", put("name", value="abc"), {}),
    ("zoo.name", put("name", value="naïve: model"), {}),
    ("zoo.description", put("description", value="x" * 513), {}),
    ("zoo.authors", put("authors", value=[]), {}),
    ("zoo.license", put("license", value="free"), {}),
    ("zoo.documentation", drop("documentation"), {}),
    ("zoo.documentation", put("x", value=1), {"files": {"README.md": b"# Tiny\nvalidation is for others\n"}}),
    ("zoo.cover", put("covers", value=[]), {}),
    ("zoo.cover", put("x", value=1), {"files": {"cover.png": zips.png(30, 90)}}),
    ("zoo.cover", put("x", value=1), {"files": {"cover.png": zips.png(2, 1) + bytes(600_000)}}),
    ("zoo.cite", put("cite", value=[{"text": "A paper"}]), {}),
    ("zoo.tags", put("tags", value=[]), {}),
    ("zoo.maintainers", put("maintainers", value=[{"name": "Ada"}]), {}),
    ("zoo.test_hashes", put("inputs", 0, "test_tensor", value={"source": "input.npy"}), {}),
    ("zoo.id", put("x", value=1), {}),
    ("zoo.single_io", two_inputs, {}),
    ("zoo.tolerance", tolerate(absolute_tolerance=1e-3), {}),
    ("zoo.sample_tensor", sample_of_output, {}),
    ("zoo.test_of_step", put(*SIZE_Y, value={"min": 18, "step": 9}), {}),
    ("zoo.custom_ops", put("outputs", 0, "postprocessing", value=[{"id": "custom", "callable": "Op"}]), {}),
    ("zoo.few_files", put("x", value=1), {"files": {"extra/notes.txt": b"x"}}),
    ("fiji.format_version", put("format_version", value="0.5.11"), {}),
    ("fiji.plain_strings", put("documentation", value={"source": "README.md"}), {}),
    ("fiji.plain_strings", put("covers", value=[{"source": "cover.png"}]), {}),
    ("fiji.id", drop("id"), {}),
    ("fiji.rdf_name", put("x", value=1), {"rdf_name": "bioimageio.yaml"}),
    ("fiji.weights_format", put("weights", value={"keras_hdf5": {"source": "x"}}), {}),
    ("fiji.state_dict", import_from, {}),
    ("fiji.state_dict_values", state_dict_only, {}),
    ("fiji.stardist", stardist, {"files": {"input.npy": None}}),
    ("fiji.weights_root", put("weights", "torchscript", "source", value="weights/torchscript.pt"), {}),
    ("fiji.pytorch_version", put("weights", "torchscript", "pytorch_version", value="1.4"), {}),
    ("fiji.pytorch_version", put("weights", "torchscript", "pytorch_version", value="3.0"), {}),
    ("fiji.axis_scale", put("inputs", 0, "axes", 3, "scale", value=0.1), {}),
    ("fiji.axis_ids", put("inputs", 0, "axes", 0, value={"type": "time", "size": 1}), {}),
    ("fiji.explicit_axis_ids", drop("outputs", 0, "axes", 3, "id"), {}),
    ("fiji.axis_order", swap_axes, {}),
    ("fiji.channel_names", put("outputs", 0, "axes", 1, "channel_names", value=[]), {}),
    ("fiji.single_io", two_inputs, {}),
    ("fiji.test_tensors", put("inputs", 0, "test_tensor", value="input.tif"), {}),
    ("fiji.test_tensors", put("outputs", 0, "data", value={"type": "bool"}), {}),
    ("fiji.min_of_step", put(*SIZE_Y, value={"min": 18, "step": 4}), {}),
    ("fiji.min_halo", put("outputs", 0, "axes", 3, "halo", value=8), {}),
    ("fiji.off_grid", put("outputs", 0, "axes", 3, "halo", value=2), {}),
    ("fiji.processing_ops", preprocess(id="softmax", kwargs={"axis": "channel"}), {}),
    ("fiji.processing_ops", CUSTOM, {}),
    ("fiji.processing_ops", preprocess(id="clip", kwargs={"min": 0}), {}),
    ("fiji.processing_ops", preprocess(id="scale_linear", kwargs={"gain": [1, 2], "offset": 0}), {}),
    ("fiji.no_deepimagej_config", put("config", "deepimagej", value={"allow_tiling": False}), {}),
    ("fiji.archive_ops", put("x", value=1), {"source": ATTENTION}),
    ("fiji.frozen", put("x", value=1), {"freeze": True}),
    ("fiji.devices", put("x", value=1), {"source": zips.tiny(
        'rate = rate + torch.zeros(1, device=torch.device("cpu"))')}),
    ("fiji.norms", put("x", value=1), {"source": zips.tiny(
        "rate = self.other(rate)", "self.other = nn.InstanceNorm2d(1)")}),
    ("fiji.tile_voxels", large_tiles, {}),
    ("fiji.onnx", onnx(opset_version=19), {"files": {"model.onnx": OLD_IR}}),
    ("fiji.onnx", onnx(), {"files": {"model.onnx": NEW_IR}}),
    ("fiji.onnx", onnx(external_data={"source": "model.data"}), {"files": {"model.onnx": OLD_IR}}),
    ("ilastik.format_version", put("format_version", value="0.5.12"), {}),
    ("ilastik.plain_strings", put("license", value={"source": "LICENSE"}), {}),
    ("ilastik.weights_format", put("weights", value={"tensorflow_js": {"source": "x"}}), {}),
    ("ilastik.dependencies", state_dict(dependencies="conda:environment.yaml"), {}),
    ("ilastik.dependencies", import_from, {}),
    ("ilastik.single_io", two_outputs, {}),
    ("ilastik.axis_ids", put("inputs", 0, "axes", 2, "id", value="row"), {}),
    ("ilastik.channel_names", drop("inputs", 0, "axes", 1), {}),
    ("ilastik.custom_ops", CUSTOM, {}),
    ("ilastik.grid", put(*SIZE_Y, value={"min": 64, "step": 8}), {}),
    ("ilastik.archive_ops", put("x", value=1), {"source": ATTENTION}),
    ("biapy.state_dict", drop("weights", "pytorch_state_dict"), {}),
    ("biapy.kwargs", drop("weights", "pytorch_state_dict", "architecture", "kwargs"), {}),
    ("biapy.kwargs", put("weights", "pytorch_state_dict", "architecture", "kwargs", "postprocessing", value="x"), {}),
    ("biapy.single_input", two_inputs, {}),
    ("biapy.classes", put("tags", value=["semantic-segmentation"]), {}),
    ("biapy.classes", put("tags", value=["instance-segmentation", "biapy"]), {}),
    ("biapy.preprocessing", preprocess(id="binarize"), {}),
    ("biapy.preprocessing", put("inputs", 0, "preprocessing", value=[{"id": "sigmoid"}, {"id": "scale_range"}]), {}),
    ("biapy.fixed_shape", old, {}),
    ("biapy.axes", channels_last, {}),
    ("biapy.axes", drop("inputs", 0, "axes", 3, "id"), {}),
    ("biapy.preprocessing", preprocess(id="ensure_dtype", kwargs={"dtype": "uint8"}), {}),
    ("biapy.tag", put("tags", value=["2d"]), {}),
    ("qupath.weights_format", state_dict_only, {}),
    ("qupath.axes", third_dimension, {}),
    ("qupath.single_io", two_outputs, {}),
    ("qupath.image_statistics", preprocess(id="zero_mean_unit_variance", kwargs={"axes": ["y", "x"]}), {}),
    ("qupath.image_statistics", preprocess(id="scale_range"), {}),
    ("qupath.custom_ops", CUSTOM, {}),
    ("bioengine.weights_format", put("weights", value={"tensorflow_js": {"source": "x"}}), {}),
    ("bioengine.format_version", put("format_version", value="0.5.12"), {}),
    ("bioengine.plain_strings", put("documentation", value={"source": "README.md"}), {}),
    ("bioengine.imports", put("x", value=1), {"source": zips.BLUR.replace("import torch\n", "import torch, PIL\n", 1)}),
    ("bioengine.arguments", put("weights", "pytorch_state_dict", "architecture", "kwargs", "size", value={"a": 1}), {}),
    ("bioengine.archive_ops", put("x", value=1), {"source": ATTENTION}),
    ("bioengine.custom_ops", CUSTOM, {}),
]  # fmt: skip


def test_the_good_zip_keeps_every_rule(tmp_path: Path) -> None:
    found = {id_: check.status for id_, check in judge(zips.make_zip(tmp_path)).items() if check.status != "passed"}
    assert {id_ for id_, status in found.items() if status != "skipped"} == {"zoo.id", "fiji.off_grid"}


@pytest.mark.parametrize(("rule_id", "mutate", "options"), BREAKS)
def test_breaking_a_rule_is_noticed(
    tmp_path: Path, rule_id: str, mutate: Callable[[Rdf], None], options: dict[str, Any]
) -> None:
    made = definition(rule_id)
    check = judge(zips.make_zip(tmp_path, mutate, **options))[rule_id]
    mild = made.severity != Severity.BLOCKS or rule_id == "fiji.onnx"  # other weights are there
    assert check.status == ("warning" if mild else "failed"), check.message
    assert check.fix
    if rule_id != "fiji.onnx":
        assert made.breaks in check.message
        assert check.fix.startswith(made.fix)


def test_every_rule_has_a_model_that_breaks_it() -> None:
    tested = {rule_id for rule_id, _, _ in BREAKS}
    ours = {made.id for made in definitions("rule") if made.function.__module__.startswith("gap_bioimage.validation")}
    assert ours - tested == {"ilastik.conversion"}  # a test of its own


def test_what_only_a_run_can_tell_is_left_open_where_there_is_the_description_alone(tmp_path: Path) -> None:
    mutations = {
        "core.dependencies": state_dict(dependencies="conda:environment.yaml"),
        "core.tensorflow": put("weights", value={"tensorflow_saved_model_bundle": {"source": "x.zip"}}),
        "fiji.stardist": stardist,
    }
    for rule_id, mutate in mutations.items():
        path = zips.make_zip(tmp_path, mutate)
        check = judge(path, with_files=False)[rule_id]
        assert (check.status, bool(check.fix)) == ("skipped", True)
        found = {entry.consumer: entry.verdict for entry in verdicts_of([check], description_only=True)}
        assert found[rule_id.split(".")[0]] == "unknown"
        assert judge(path)["fiji.stardist"].status == ("passed" if rule_id == "fiji.stardist" else "skipped")


@pytest.mark.parametrize(
    ("version", "status"),
    [("0.4.10", "passed"), ("0.5.10", "passed"), ("0.5.11", "failed"), ("99.0.0", "failed"), ("banana", "skipped")],
)
@pytest.mark.parametrize("consumer", ["fiji", "ilastik", "bioengine"])
def test_versions_are_judged_as_the_rule_says(tmp_path: Path, consumer: str, version: str, status: str) -> None:
    check = judge(zips.make_zip(tmp_path, put("format_version", value=version)))[f"{consumer}.format_version"]
    assert check.status == status


@pytest.mark.parametrize(
    ("rule_id", "mutate"),
    [
        ("fiji.pytorch_version", put("weights", "torchscript", "pytorch_version", value="1.13")),
        ("fiji.pytorch_version", put("weights", "torchscript", "pytorch_version", value=1.10)),
        ("fiji.pytorch_version", drop("weights", "torchscript", "pytorch_version")),
        ("fiji.weights_root", put("weights", "torchscript", "source", value="model.torchscript")),
        ("fiji.weights_format", state_dict_only),
        ("fiji.state_dict_values", cube),
        ("fiji.processing_ops", preprocess(id="clip", kwargs={"min": 0, "max": 1})),
        ("biapy.kwargs", put("weights", "pytorch_state_dict", "architecture", "kwargs", value={})),
        ("biapy.preprocessing", put("inputs", 0, "preprocessing", value=[
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}, {"id": "scale_range"}, {"id": "ensure_dtype"}])),
        ("qupath.weights_format", put("weights", value={"tensorflow_saved_model_bundle": {"source": "x.zip"}})),
        ("zoo.single_io", two_outputs),
        ("bioengine.arguments", put("weights", "pytorch_state_dict", "architecture", "kwargs", "size", value=[1, "a"])),
        ("fiji.no_deepimagej_config", put("config", "deepimagej", value={"allow_tiling": True})),
        ("fiji.onnx", onnx()),
        ("fiji.tile_voxels", fixed_tiles),
        ("core.reproducibility_tolerance", tolerate(mismatched_elements_per_million=1000)),
    ],
)  # fmt: skip
def test_what_runs_is_not_refused(tmp_path: Path, rule_id: str, mutate: Callable[[Rdf], None]) -> None:
    assert judge(zips.make_zip(tmp_path, mutate, files={"model.onnx": OLD_IR}))[rule_id].status == "passed"


def test_what_is_advice_beside_others_and_must_hold_alone(tmp_path: Path) -> None:
    assert judge(zips.make_zip(tmp_path, two_outputs))["fiji.single_io"].status == "warning"
    only = put("weights", value={"onnx": {"source": "model.onnx", "opset_version": 19}})
    assert judge(zips.make_zip(tmp_path, only, files={"model.onnx": OLD_IR}))["fiji.onnx"].status == "failed"


@pytest.mark.parametrize(
    ("guard", "status"),
    [("import careamics", "failed"), ("from layers import UNet", "failed"), ("from .layers import UNet", "failed"),
     ("try:\n    import careamics\nexcept ImportError:\n    pass", "passed")],
)  # fmt: skip
def test_imports_of_an_architecture_are_read(tmp_path: Path, guard: str, status: str) -> None:
    def beside(rdf: Rdf) -> None:
        state_dict_only(rdf)
        rdf["weights"]["pytorch_state_dict"]["architecture"]["source"] = "beside.py"

    source = f"import os\nimport numpy as np\nfrom torch import nn\n{guard}\n"
    path = zips.make_zip(tmp_path, beside, files={"beside.py": source.encode(), "layers.py": b"class UNet: ..."})
    assert judge(path)["ilastik.dependencies"].status == status


def test_an_old_description_that_cannot_be_converted_fails_in_ilastik(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, zips.to_format_0_4())
    assert judge(path, upgraded=None, why_not="a halo")["ilastik.conversion"].status == "failed"
    assert judge(path, upgraded=None)["ilastik.conversion"].status == "skipped"  # it is invalid for everybody
    remote = put("documentation", value="https://example.invalid/README.md")
    assert judge(zips.make_zip(tmp_path, remote))["zoo.documentation"].status == "skipped"
