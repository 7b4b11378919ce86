"""Every consumer rule: a model that keeps it and one that breaks it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zips
from zips import Mutation, both, drop, put

from gap_bioimage.validation.archive.description import Description
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import Check, Severity, definition, definitions
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.report import validate
from gap_bioimage.validation.verdicts import verdicts_of

VALID = Description("as written", "upgraded", "", "plain", ())  # stand for what bioimageio.spec makes of it


def judge(path: Path, valid: Description | None = VALID, with_files: bool = True) -> dict[str, Check]:
    with open_package(path) as (package, _):
        assert package is not None
        model = Model(package, valid, with_files)
        return {made.id: made.judge(model) for made in definitions("rule")}


def again(key: str) -> Mutation:
    """A second input or output."""
    return lambda rdf: rdf[key].append({**rdf[key][0], "id": "more"})


def turned(key: str) -> Mutation:
    """The axes of the input or output in another order."""
    return lambda rdf: rdf[key][0]["axes"].reverse()


def space(*, has_z: bool = False, **fields: Any) -> Mutation:
    """Fields of every space axis, and a third of these where asked for."""

    def mutate(rdf: dict[str, Any]) -> None:
        for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
            tensor["axes"][2:2] = [{"type": "space", "id": "z"}] if has_z else []
            for axis in tensor["axes"][2:]:
                axis.update(fields)

    return mutate


def preprocess(**step: Any) -> Mutation:
    return put("inputs", 0, "preprocessing", value=[step])


def tolerate(**tolerance: Any) -> Mutation:
    return put("config", "bioimageio", "reproducibility_tolerance", value=[tolerance])


def onnx(**more: Any) -> Mutation:
    return put("weights", "onnx", value={"source": "model.onnx", "opset_version": 18} | more)


def depends(on: Any) -> Mutation:
    return both(STATE_DICT_ONLY, put("weights", "pytorch_state_dict", "dependencies", value=on))


ARCHITECTURE = ("weights", "pytorch_state_dict", "architecture")
STATE_DICT_ONLY = drop("weights", "torchscript")
IMPORTED = both(
    STATE_DICT_ONLY, drop(*ARCHITECTURE, "source"), put(*ARCHITECTURE, "import_from", value="plantseg.models.unet")
)
STARDIST = both(put("name", value="My StarDist"), put("config", "stardist", value={"thresholds": True}))
FIXED_04 = both(put("format_version", value="0.4.10"), put("inputs", 0, "shape", value=[1, 1, 32, 32]))
SCALE_04 = {"name": "scale_linear", "kwargs": {"gain": 2.0, "offset": 0.0, "axes": "xy"}}
AXES_04 = both(zips.to_format_0_4(), put("inputs", 0, "preprocessing", value=[SCALE_04]))
FIXED = {"mean": [1.0], "std": [2.0], "axis": "channel"}  # as CAREamics writes them
SIZE_Y = ("inputs", 0, "axes", 2, "size")
OLD_IR, NEW_IR = b"\x08\x08\x12", b"\x08\x0a\x12"
BARE = {
    "name": "abc", "description": "x" * 513, "authors": [], "license": "free", "covers": [], "cite": [{"text": "A"}],
    "tags": [], "maintainers": [{"name": "Ada"}], "id": "", "documentation": None,
}  # fmt: skip
BREAKS: list[tuple[str, Any, dict[str, Any]]] = [
    ("zoo.name zoo.description zoo.authors zoo.license zoo.documentation zoo.cover zoo.cite zoo.tags zoo.maintainers "
     "fiji.id biapy.tag", lambda rdf: rdf.update(BARE), {}),
    ("zoo.name", put("name", value="naïve: model"), {}),
    ("zoo.documentation", None, {"files": {"README.md": b"# Tiny\nvalidation is for others\n"}}),
    ("zoo.cover", None, {"files": {"cover.png": zips.png(30, 90)}}),
    ("zoo.cover", None, {"files": {"cover.png": zips.png(2, 1) + bytes(600_000)}}),
    ("zoo.test_hashes", put("inputs", 0, "test_tensor", value={"source": "input.npy"}), {}),
    ("zoo.id", None, {}),
    ("zoo.single_io fiji.single_io biapy.single_input", again("inputs"), {}),
    ("zoo.tolerance", tolerate(absolute_tolerance=1e-3), {}),
    ("zoo.sample_tensor", put("inputs", 0, "sample_tensor", value={"source": "output.npy"}), {}),
    ("zoo.test_of_step", put(*SIZE_Y, value={"min": 18, "step": 9}), {}),
    ("zoo.few_files", None, {"files": {"extra/notes.txt": b"x"}}),
    ("core.reproducibility_tolerance ilastik.newer_fields", tolerate(mismatched_elements_per_million=2000), {}),
    ("ilastik.newer_fields", put("weights", "pytorch_state_dict", "strict", value=False), {}),
    ("ilastik.channel_names bioengine.channel_names", put("outputs", 0, "axes", 1, "channel_names", value=["a b"]), {}),
    ("format.dtypes", put("inputs", 0, "data", value={"type": "float64"}), {}),
    ("core.output_channel", drop("outputs", 0, "axes", 1), {}),
    ("core.dependencies", IMPORTED, {}),
    ("core.scale_linear", AXES_04, {}),
    ("core.tensorflow fiji.weights_format", put("weights", value={"keras_hdf5": {"source": "x"}}), {}),
    ("core.custom_ops zoo.custom_ops ilastik.custom_ops qupath.custom_ops bioengine.custom_ops fiji.processing_ops",
     preprocess(id="custom", source="op.py", callable="Op"), {}),
    ("zoo.custom_ops", put("outputs", 0, "postprocessing", value=[{"id": "custom", "callable": "Op"}]), {}),
    ("fiji.format_version ilastik.format_version bioengine.format_version", put("format_version", value="0.5.11"), {}),
    ("fiji.plain_strings bioengine.plain_strings", put("documentation", value={"source": "README.md"}), {}),
    ("fiji.plain_strings", put("covers", value=[{"source": "cover.png"}]), {}),
    ("ilastik.plain_strings", put("license", value={"source": "LICENSE"}), {}),
    ("fiji.archive_ops ilastik.archive_ops bioengine.archive_ops", None, {"source": zips.tiny(
        "rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)")}),
    ("fiji.rdf_name", None, {"rdf_name": "bioimageio.yaml"}),
    ("fiji.state_dict ilastik.dependencies", IMPORTED, {}),
    ("fiji.state_dict_values qupath.weights_format", STATE_DICT_ONLY, {}),
    ("fiji.state_dict_file", both(STATE_DICT_ONLY, put("weights", "pytorch_state_dict", "source", value="w.bin")), {}),
    ("fiji.stardist", STARDIST, {"files": {"input.npy": None}}),
    ("fiji.weights_root", put("weights", "torchscript", "source", value="weights/torchscript.pt"), {}),
    ("fiji.pytorch_version", put("weights", "torchscript", "pytorch_version", value="1.4"), {}),
    ("fiji.pytorch_version", put("weights", "torchscript", "pytorch_version", value="3.0"), {}),
    ("fiji.axis_scale", put("inputs", 0, "axes", 3, "scale", value=0.1), {}),
    ("fiji.output_size", put("outputs", 0, "axes", 3, "scale", value=0.5), {}),
    ("fiji.output_size", put("outputs", 0, "axes", 3, "size", "offset", value=-4), {}),
    ("fiji.axis_ids", put("inputs", 0, "axes", 0, value={"type": "time", "size": 1}), {}),
    ("fiji.explicit_axis_ids", drop("outputs", 0, "axes", 3, "id"), {}),
    ("fiji.explicit_tensor_ids", drop("outputs", 0, "id"), {}),
    ("fiji.axis_order", turned("outputs"), {}),
    ("fiji.channel_names", put("outputs", 0, "axes", 1, "channel_names", value=[]), {}),
    ("fiji.test_tensors", put("inputs", 0, "test_tensor", value="input.tif"), {}),
    ("fiji.test_tensors", put("outputs", 0, "data", value={"type": "bool"}), {}),
    ("fiji.test_tensors", put("outputs", 0, "data", value={"type": "uint64"}), {}),
    ("fiji.test_tensors", None, {"files": {"output.npy": zips.npy(np.ones((1, 1, 32, 32), np.float16))}}),
    ("fiji.min_of_step", put(*SIZE_Y, value={"min": 18, "step": 4}), {}),
    ("fiji.min_halo", put("outputs", 0, "axes", 3, "halo", value=8), {}),
    ("fiji.off_grid", put("outputs", 0, "axes", 3, "halo", value=2), {}),
    ("fiji.processing_ops", preprocess(id="softmax", kwargs={"axis": "channel"}), {}),
    ("fiji.processing_ops", preprocess(id="clip", kwargs={"min": 0}), {}),
    ("fiji.processing_ops", preprocess(id="scale_linear", kwargs={"gain": [1, 2], "offset": 0}), {}),
    ("fiji.processing_ops", preprocess(id="scale_linear", kwargs={"gain": 2, "offset": [0, 1], "axis": "channel"}), {}),
    ("fiji.processing_ops", preprocess(id="binarize", kwargs={"threshold": [0.5], "axis": "channel"}), {}),
    ("fiji.processing_ops", preprocess(id="fixed_zero_mean_unit_variance", kwargs=FIXED), {}),
    ("fiji.no_deepimagej_config", put("config", "deepimagej", value={"allow_tiling": False}), {}),
    ("fiji.frozen", None, {"freeze": True}),
    ("fiji.devices", None, {"source": zips.tiny('rate = rate + torch.zeros(1, device=torch.device("cpu"))')}),
    ("fiji.norms", None, {"source": zips.tiny("rate = self.other(rate)", "self.other = nn.InstanceNorm2d(1)")}),
    ("fiji.tile_voxels", space(size={"min": 8192, "step": 4}), {}),
    ("fiji.onnx", onnx(opset_version=19), {"files": {"model.onnx": OLD_IR}}),
    ("fiji.onnx", onnx(), {"files": {"model.onnx": NEW_IR}}),
    ("fiji.onnx", onnx(external_data={"source": "model.data"}), {"files": {"model.onnx": OLD_IR}}),
    ("ilastik.weights_format bioengine.weights_format", put("weights", value={"tensorflow_js": {"source": "x"}}), {}),
    ("ilastik.custom_ops qupath.custom_ops", preprocess(id="stardist_postprocessing"), {}),
    ("ilastik.single_io qupath.single_io", again("outputs"), {}),
    ("ilastik.axis_ids", put("inputs", 0, "axes", 2, "id", value="row"), {}),
    ("ilastik.channel_names", drop("inputs", 0, "axes", 1), {}),
    ("ilastik.grid", put(*SIZE_Y, value={"min": 64, "step": 8}), {}),
    ("biapy.state_dict", drop("weights", "pytorch_state_dict"), {}),
    ("biapy.kwargs", drop(*ARCHITECTURE, "kwargs"), {}),
    ("biapy.kwargs", put(*ARCHITECTURE, "kwargs", "postprocessing", value="x"), {}),
    ("biapy.classes", put("tags", value=["semantic-segmentation"]), {}),
    ("biapy.classes", put("tags", value=["instance-segmentation", "biapy"]), {}),
    ("biapy.classes", both(put("tags", value=["instance-segmentation"]), put(*ARCHITECTURE, "kwargs", "out_channels",
                                                                             value="2")), {}),
    ("biapy.preprocessing", preprocess(id="binarize"), {}),
    ("biapy.preprocessing", preprocess(id="scale_range", kwargs={"max_percentile": 99.8}), {}),
    ("biapy.preprocessing", preprocess(id="ensure_dtype", kwargs={"dtype": "uint8"}), {}),
    ("biapy.preprocessing", put("inputs", 0, "preprocessing", value=[{"id": "sigmoid"}, {"id": "scale_range"}]), {}),
    ("biapy.fixed_shape", FIXED_04, {}),
    ("biapy.axes", turned("inputs"), {}),
    ("biapy.axes", drop("inputs", 0, "axes", 3, "id"), {}),
    ("qupath.axes", space(has_z=True), {}),
    ("qupath.image_statistics", preprocess(id="zero_mean_unit_variance", kwargs={"axes": ["y", "x"]}), {}),
    ("qupath.image_statistics", preprocess(id="scale_range"), {}),
    ("bioengine.imports", None, {"source": zips.BLUR.replace("import torch\n", "import torch, PIL\n", 1)}),
    ("bioengine.arguments", put(*ARCHITECTURE, "kwargs", "size", value={"a": 1}), {}),
]  # fmt: skip


@pytest.mark.parametrize(("rule_ids", "mutate", "options"), BREAKS)
def test_breaking_a_rule_is_noticed(tmp_path: Path, rule_ids: str, mutate: Any, options: dict[str, Any]) -> None:
    found = judge(zips.make_zip(tmp_path, mutate, **options))
    for made in map(definition, rule_ids.split()):
        check, others = found[made.id], made.id == "fiji.onnx"  # other weights are there
        assert check.status == ("warning" if others or made.severity != Severity.BLOCKS else "failed"), check.message
        assert check.fix if others else check.fix.startswith(made.fix) and made.breaks in check.message


def test_every_rule_has_a_model_that_breaks_it() -> None:
    tested = {rule_id for rule_ids, _, _ in BREAKS for rule_id in rule_ids.split()}
    ours = {made.id for made in definitions("rule") if made.function.__module__.startswith("gap_bioimage.validation")}
    assert ours - tested == {"ilastik.conversion"}  # a test of its own


def test_what_only_a_run_can_tell_is_left_open_where_there_is_the_description_alone(tmp_path: Path) -> None:
    mutations = {
        "core.dependencies": depends("conda:environment.yaml"),
        "core.tensorflow": put("weights", value={"tensorflow_saved_model_bundle": {"source": "x.zip"}}),
        "fiji.stardist": STARDIST,
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
        *((rule_id, STATE_DICT_ONLY) for rule_id in ("fiji.weights_format", "fiji.state_dict_file")),
        ("fiji.state_dict", both(IMPORTED, put(*ARCHITECTURE, "import_from", value="careamics.models.unet"))),
        ("fiji.state_dict_values", both(STATE_DICT_ONLY, space(has_z=True, size=80))),
        ("fiji.processing_ops", preprocess(id="clip", kwargs={"min": 0, "max": 1})),
        ("ilastik.dependencies", depends("conda:environment.yaml")),  # what the code imports is there
        ("core.dependencies", depends({"source": "environment.yaml"})),
        ("biapy.kwargs", put(*ARCHITECTURE, "kwargs", value={})),
        ("biapy.preprocessing", put("inputs", 0, "preprocessing", value=[
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
            {"id": "scale_range", "kwargs": {"min_percentile": 0, "max_percentile": 100}}, {"id": "ensure_dtype"}])),
        ("biapy.classes", both(put("tags", value=["segmentation"]), put(*ARCHITECTURE, "callable", value="ResUNet"))),
        ("biapy.axes", put("inputs", 0, "axes", 1, "id", value="c")),
        ("fiji.processing_ops", preprocess(id="fixed_zero_mean_unit_variance", kwargs={"mean": 1.0, "std": 2.0})),
        ("fiji.processing_ops", preprocess(id="scale_linear", kwargs={"gain": [2.0], "axis": "channel"})),
        ("qupath.weights_format", put("weights", value={"tensorflow_saved_model_bundle": {"source": "x.zip"}})),
        ("zoo.single_io", again("outputs")),
        ("bioengine.arguments", put(*ARCHITECTURE, "kwargs", "size", value=[1, "a"])),
        ("fiji.no_deepimagej_config", put("config", "deepimagej", value={"allow_tiling": True})),
        ("fiji.onnx", onnx()),
        ("fiji.tile_voxels", space(size=8192)),
        ("core.reproducibility_tolerance", tolerate(mismatched_elements_per_million=1000)),
    ],
)  # fmt: skip
def test_what_runs_is_not_refused(tmp_path: Path, rule_id: str, mutate: Mutation) -> None:
    assert judge(zips.make_zip(tmp_path, mutate, files={"model.onnx": OLD_IR}))[rule_id].status == "passed"


def test_what_is_advice_beside_others_and_must_hold_alone(tmp_path: Path) -> None:
    assert judge(zips.make_zip(tmp_path, again("outputs")))["fiji.single_io"].status == "warning"
    only = put("weights", value={"onnx": {"source": "model.onnx", "opset_version": 19}})
    assert judge(zips.make_zip(tmp_path, only, files={"model.onnx": OLD_IR}))["fiji.onnx"].status == "failed"


@pytest.mark.parametrize(
    ("guard", "status"),
    [("import careamics", "failed"), ("from layers import UNet", "failed"), ("from .layers import UNet", "failed"),
     ("try:\n    import careamics\nexcept ImportError:\n    pass", "passed"),
     ("if __name__ == '__main__':\n    import careamics", "passed"),
     ("if TYPE_CHECKING:\n    import careamics\nelse:\n    import os", "passed"),
     ("if os.name:\n    import careamics", "failed"),
     ("def train():\n    import careamics", "passed"),
     ("class Tiny(nn.Module):\n    def forward(self, x):\n        import careamics", "failed"),
     ("class Tiny(nn.Module):\n    def plot(self):\n        import careamics", "passed"),
     ("class Tiny(nn.Module):\n    def forward(self, x):\n        return self.norm(x)\n"
      "    def norm(self, x):\n        return helper(x)\ndef helper(x):\n    import careamics", "failed"),
     ("def Tiny(size):\n    from careamics import UNet", "failed")],
)  # fmt: skip
def test_imports_of_an_architecture_are_read(tmp_path: Path, guard: str, status: str) -> None:
    beside = both(STATE_DICT_ONLY, put(*ARCHITECTURE, "source", value="beside.py"))
    source = f"import os\nimport numpy as np\nfrom torch import nn\n{guard}\n"
    path = zips.make_zip(tmp_path, beside, files={"beside.py": source.encode(), "layers.py": b"class UNet: ..."})
    assert judge(path)["ilastik.dependencies"].status == status


def test_an_old_description_that_cannot_be_converted_fails_in_ilastik(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, zips.to_format_0_4())
    assert judge(path, Description("as written", None, "a halo", None, ()))["ilastik.conversion"].status == "failed"
    assert judge(path, None)["ilastik.conversion"].status == "skipped"  # it is invalid for everybody
    lost = {"name": "scale_range", "kwargs": {"mode": "per_sample", "axes": "xy", "reference_tensor": "photons"}}
    zips.make_zip(tmp_path, both(zips.to_format_0_4(), put("outputs", 0, "postprocessing", value=[lost])))
    checks = {check.id: check.status for check in validate(path, description_only=True).checks}
    assert (checks["format.valid"], checks["ilastik.conversion"]) == ("passed", "warning")
    remote = put("documentation", value="https://example.invalid/README.md")
    assert judge(zips.make_zip(tmp_path, remote))["zoo.documentation"].status == "skipped"
