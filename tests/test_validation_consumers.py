"""Every consumer rule: a model that keeps it and one that breaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import zips
from zips import drop, put

from gap_bioimage.validation.archive.facts import Facts
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.checks import PARTNER_CONSUMERS, Check
from gap_bioimage.validation.old_rules import all_rules

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Rdf = dict[str, Any]


def judge(path: Path) -> dict[str, Check]:
    with open_package(path) as (package, _):
        assert package is not None
        facts = Facts(package)
        return {rule.id: rule.judge(facts) for rule in all_rules()}


def two_outputs(rdf: Rdf) -> None:
    rdf["outputs"].append({**rdf["outputs"][0], "id": "std"})


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
    ("core.reproducibility_tolerance", tolerate(relative_tolerance=0.02), {}),
    ("core.reproducibility_tolerance", tolerate(mismatched_elements_per_million=2000), {}),
    ("core.reproducibility_tolerance", tolerate(absolute_tolerance=1.0), {}),
    ("core.output_channel", drop("outputs", 0, "axes", 1), {}),
    ("core.custom_ops", CUSTOM, {}),
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
    ("zoo.single_io", two_outputs, {}),
    ("zoo.sample_tensor", sample_of_output, {}),
    ("zoo.test_of_step", put(*SIZE_Y, value={"min": 18, "step": 9}), {}),
    ("zoo.custom_ops", put("outputs", 0, "postprocessing", value=[{"id": "custom", "callable": "Op"}]), {}),
    ("zoo.few_files", put("x", value=1), {"files": {"extra/notes.txt": b"x"}}),
    ("fiji.format_version", put("format_version", value="0.5.11"), {}),
    ("fiji.plain_strings", put("documentation", value={"source": "README.md"}), {}),
    ("fiji.plain_strings", put("covers", value=[{"source": "cover.png"}]), {}),
    ("fiji.id", drop("id"), {}),
    ("fiji.rdf_name", put("x", value=1), {"rdf_name": "bioimageio.yaml"}),
    ("fiji.weights_format", drop("weights", "torchscript"), {}),
    ("fiji.weights_root", put("weights", "torchscript", "source", value="weights/torchscript.pt"), {}),
    ("fiji.weights_root", put("weights", "torchscript", "source", value="torchscript.pth"), {}),
    ("fiji.pytorch_version", put("weights", "torchscript", "pytorch_version", value="1.13"), {}),
    ("fiji.axis_scale", put("inputs", 0, "axes", 3, "scale", value=0.1), {}),
    ("fiji.axis_ids", put("inputs", 0, "axes", 0, value={"type": "time", "size": 1}), {}),
    ("fiji.axis_order", swap_axes, {}),
    ("fiji.channel_names", put("outputs", 0, "axes", 1, "channel_names", value=[]), {}),
    ("fiji.single_io", two_outputs, {}),
    ("fiji.min_of_step", put(*SIZE_Y, value={"min": 18, "step": 4}), {}),
    ("fiji.min_halo", put("outputs", 0, "axes", 3, "halo", value=8), {}),
    ("fiji.processing_ops", preprocess(id="softmax", kwargs={"axis": "channel"}), {}),
    ("fiji.processing_ops", CUSTOM, {}),
    ("fiji.processing_ops", preprocess(id="clip", kwargs={"min": 0}), {}),
    ("fiji.processing_ops", preprocess(id="scale_linear", kwargs={"gain": [1, 2], "offset": 0}), {}),
    ("fiji.no_deepimagej_config", put("config", "deepimagej", value={"allow_tiling": False}), {}),
    ("fiji.archive_ops", put("x", value=1), {"source": ATTENTION}),
    ("fiji.frozen", put("x", value=1), {"freeze": True}),
    ("fiji.devices", put("x", value=1), {"source": zips.tiny(
        'rate = rate + torch.zeros(1, device=torch.device("cpu"))')}),
    ("fiji.eval_mode", put("x", value=1), {"train": True, "source": zips.tiny(
        "rate = self.other(rate)", "self.other = nn.Dropout(0.5)")}),
    ("fiji.norms", put("x", value=1), {"source": zips.tiny(
        "rate = self.other(rate)", "self.other = nn.InstanceNorm2d(1)")}),
    ("fiji.tile_voxels", large_tiles, {}),
    ("fiji.onnx", onnx(opset_version=19), {"files": {"model.onnx": OLD_IR}}),
    ("fiji.onnx", onnx(), {"files": {"model.onnx": NEW_IR}}),
    ("fiji.onnx", onnx(external_data={"source": "model.data"}), {"files": {"model.onnx": OLD_IR}}),
    ("ilastik.format_version", put("format_version", value="0.5.12"), {}),
    ("ilastik.plain_strings", put("license", value={"source": "LICENSE"}), {}),
    ("ilastik.weights_format", put("weights", value={"tensorflow_js": {"source": "x"}}), {}),
    ("ilastik.single_io", two_outputs, {}),
    ("ilastik.axis_ids", put("inputs", 0, "axes", 2, "id", value="row"), {}),
    ("ilastik.channel_names", drop("inputs", 0, "axes", 1), {}),
    ("ilastik.custom_ops", CUSTOM, {}),
    ("ilastik.grid", put(*SIZE_Y, value={"min": 64, "step": 4}), {}),
    ("ilastik.archive_ops", put("x", value=1), {"source": ATTENTION}),
    ("biapy.state_dict", drop("weights", "pytorch_state_dict"), {}),
    ("biapy.kwargs", put("weights", "pytorch_state_dict", "architecture", "kwargs", value={}), {}),
    ("biapy.axes", channels_last, {}),
    ("biapy.tag", put("tags", value=["2d"]), {}),
    ("qupath.weights_format", drop("weights", "torchscript"), {}),
    ("qupath.axes", third_dimension, {}),
    ("qupath.single_io", two_outputs, {}),
    ("qupath.image_statistics", preprocess(id="zero_mean_unit_variance", kwargs={"axes": ["y", "x"]}), {}),
    ("qupath.image_statistics", preprocess(id="scale_range"), {}),
    ("qupath.custom_ops", CUSTOM, {}),
    ("bioengine.weights_format", put("weights", value={"tensorflow_js": {"source": "x"}}), {}),
    ("bioengine.archive_ops", put("x", value=1), {"source": ATTENTION}),
    ("bioengine.custom_ops", CUSTOM, {}),
]  # fmt: skip


def test_the_good_zip_keeps_every_rule(tmp_path: Path) -> None:
    assert {
        id_: check.status for id_, check in judge(zips.make_zip(tmp_path)).items() if check.status != "passed"
    } == {}


@pytest.mark.parametrize(("name", "broken"), [("2d", set()), ("3d", {"ilastik.grid", "qupath.axes"})])
def test_our_own_zips_break_no_rule_that_they_could_keep(
    name: str, broken: set[str], request: pytest.FixtureRequest
) -> None:
    checks = judge(request.getfixturevalue(f"unchecked_zip_{name}"))
    assert {id_ for id_, check in checks.items() if check.status != "passed"} <= broken


@pytest.mark.parametrize(("rule_id", "mutate", "options"), BREAKS)
def test_breaking_a_rule_is_noticed(
    tmp_path: Path, rule_id: str, mutate: Callable[[Rdf], None], options: dict[str, Any]
) -> None:
    rule = next(rule for rule in all_rules() if rule.id == rule_id)
    check = judge(zips.make_zip(tmp_path, mutate, **options))[rule_id]
    assert check.status == ("warning" if rule.advice else "failed")
    assert rule.breaks in check.message
    assert check.fix
    if rule.fix_of is None:
        assert check.fix == rule.fix


def test_every_rule_has_a_model_that_breaks_it() -> None:
    assert {rule.id for rule in all_rules()} == {rule_id for rule_id, _, _ in BREAKS}


def test_rules_are_well_formed() -> None:
    ids = [rule.id for rule in all_rules()]
    assert len(ids) == len(set(ids))
    for rule in all_rules():
        assert rule.consumer in ("core", *PARTNER_CONSUMERS)
        assert rule.breaks and not rule.breaks.endswith(".")
        assert rule.asks.endswith(".") and rule.fix.endswith(".")
    assert {rule.consumer for rule in all_rules()} == {"core", *PARTNER_CONSUMERS}


def test_core_only_advises_here() -> None:
    """What bioimageio.core needs is found by running it; its rules never fail a report for everybody."""
    assert all(rule.advice for rule in all_rules() if rule.consumer == "core")


@pytest.mark.parametrize(
    ("version", "status"),
    [("0.4.10", "passed"), ("0.5.10", "passed"), ("0.5.11", "failed"), ("99.0.0", "failed"), ("banana", "skipped")],
)
@pytest.mark.parametrize("consumer", ["fiji", "ilastik"])
def test_versions_are_judged_as_the_rule_says(tmp_path: Path, consumer: str, version: str, status: str) -> None:
    check = judge(zips.make_zip(tmp_path, put("format_version", value=version)))[f"{consumer}.format_version"]
    rule = next(rule for rule in all_rules() if rule.id == check.id)
    assert rule.asks == "A format_version of at most 0.5.10."
    assert check.status == status


def test_deepimagej_may_tile(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, put("config", "deepimagej", value={"allow_tiling": True}))
    assert judge(path)["fiji.no_deepimagej_config"].status == "passed"


@pytest.mark.parametrize(
    "mutate",
    [
        tolerate(relative_tolerance=0.01, absolute_tolerance=0.1, mismatched_elements_per_million=1000),
        tolerate(absolute_tolerance=1.0, output_ids=["another"]),
    ],
)
def test_small_tolerances_may_be_stated(tmp_path: Path, mutate: Callable[[Rdf], None]) -> None:
    assert judge(zips.make_zip(tmp_path, mutate))["core.reproducibility_tolerance"].status == "passed"


def test_old_onnx_runs_in_fiji(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, onnx(), files={"model.onnx": OLD_IR})
    assert judge(path)["fiji.onnx"].status == "passed"


def test_large_fixed_sizes_do_not_hang_fiji(tmp_path: Path) -> None:
    def fixed(rdf: Rdf) -> None:
        for axis in rdf["inputs"][0]["axes"][2:]:
            axis["size"] = 8192

    assert judge(zips.make_zip(tmp_path, fixed))["fiji.tile_voxels"].status == "passed"


def test_training_mode_matters_only_to_networks_that_differ_in_it(tmp_path: Path) -> None:
    assert judge(zips.make_zip(tmp_path, train=True))["fiji.eval_mode"].status == "passed"


def test_many_missing_operators_are_summed_up(tmp_path: Path) -> None:
    body = "; ".join(
        f"rate = nn.functional.{call}"
        for call in ("rms_norm(rate, [32])", "scaled_dot_product_attention(rate, rate, rate)")
    )
    more = "rate = rate.to(torch.uint16).to(torch.float32); rate = rate.to(torch.uint32).to(torch.float32)"
    check = judge(zips.make_zip(tmp_path, source=zips.tiny(f"{body}; {more}")))["fiji.archive_ops"]
    assert check.message.startswith("the code uses torch.")
    assert " and 1 more: " in check.message


@pytest.mark.parametrize("junk", [None, 3, "text", [], [1, None], {"a": 1}])
@pytest.mark.parametrize("field", ["inputs", "outputs", "weights", "covers", "authors", "config", "cite"])
def test_rules_survive_any_description(tmp_path: Path, field: str, junk: Any) -> None:
    path = tmp_path / "rdf.yaml"
    import yaml

    rdf = zips.description(zips.model_files())
    rdf[field] = junk
    path.write_text(yaml.safe_dump(rdf))
    assert {check.status for check in judge(path).values()} <= {"passed", "failed", "warning", "skipped"}
