"""Every consumer rule: a model that keeps it and one that breaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import zips

from gap_bioimage.validation.archive import open_package
from gap_bioimage.validation.checks import PARTNER_CONSUMERS, Check
from gap_bioimage.validation.consumers import all_rules
from gap_bioimage.validation.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Rdf = dict[str, Any]


def judge(path: Path) -> dict[str, Check]:
    with open_package(path) as (package, _):
        assert package is not None
        facts = Facts(package)
        return {rule.id: rule.judge(facts) for rule in all_rules()}


def put(*where: str | int, value: Any) -> Callable[[Rdf], None]:
    """A mutation that sets one field of the description."""

    def mutate(rdf: Rdf) -> None:
        target: Any = rdf
        for key in where[:-1]:
            target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
        target[where[-1]] = value

    return mutate


def drop(*where: str | int) -> Callable[[Rdf], None]:
    """A mutation that removes one field of the description."""

    def mutate(rdf: Rdf) -> None:
        target: Any = rdf
        for key in where[:-1]:
            target = target[key]
        del target[where[-1]]

    return mutate


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


def sample_of_output(rdf: Rdf) -> None:
    rdf["inputs"][0]["sample_tensor"] = rdf["outputs"][0]["test_tensor"]


SIZE_Y = ("inputs", 0, "axes", 2, "size")
BREAKS: list[tuple[str, Callable[[Rdf], None], dict[str, Any]]] = [
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
    ("fiji.processing_ops", preprocess(id="custom", source="op.py", callable="Op"), {}),
    ("fiji.processing_ops", preprocess(id="clip", kwargs={"min": 0}), {}),
    ("fiji.processing_ops", preprocess(id="scale_linear", kwargs={"gain": [1, 2], "offset": 0}), {}),
    ("fiji.no_deepimagej_config", put("config", "deepimagej", value={"allow_tiling": False}), {}),
    ("fiji.archive_ops", put("x", value=1), {"source": zips.tiny(
        "rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)")}),
    ("fiji.frozen", put("x", value=1), {"freeze": True}),
    ("fiji.devices", put("x", value=1), {"source": zips.tiny(
        'rate = rate + torch.zeros(1, device=torch.device("cpu"))')}),
    ("ilastik.format_version", put("format_version", value="0.5.12"), {}),
    ("ilastik.plain_strings", put("license", value={"source": "LICENSE"}), {}),
    ("ilastik.weights_format", put("weights", value={"tensorflow_js": {"source": "x"}}), {}),
    ("ilastik.single_io", two_outputs, {}),
    ("ilastik.axis_ids", put("inputs", 0, "axes", 2, "id", value="row"), {}),
    ("ilastik.channel_names", drop("inputs", 0, "axes", 1), {}),
    ("ilastik.custom_ops", preprocess(id="custom", source="op.py", callable="Op"), {}),
    ("ilastik.grid", put(*SIZE_Y, value={"min": 64, "step": 4}), {}),
    ("ilastik.archive_ops", put("x", value=1), {"source": zips.tiny(
        "rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)")}),
    ("biapy.state_dict", drop("weights", "pytorch_state_dict"), {}),
    ("biapy.kwargs", put("weights", "pytorch_state_dict", "architecture", "kwargs", value={}), {}),
    ("biapy.axes", channels_last, {}),
    ("biapy.tag", put("tags", value=["2d"]), {}),
]  # fmt: skip


def test_the_good_zip_keeps_every_rule(tmp_path: Path) -> None:
    assert {
        id_: check.status for id_, check in judge(zips.make_zip(tmp_path)).items() if check.status != "passed"
    } == {}


@pytest.mark.parametrize(("rule_id", "mutate", "options"), BREAKS)
def test_breaking_a_rule_is_noticed(
    tmp_path: Path, rule_id: str, mutate: Callable[[Rdf], None], options: dict[str, Any]
) -> None:
    rule = next(rule for rule in all_rules() if rule.id == rule_id)
    check = judge(zips.make_zip(tmp_path, mutate, **options))[rule_id]
    assert check.status == ("warning" if rule.advice else "failed")
    assert rule.breaks in check.message
    assert check.fix == rule.fix


def test_every_rule_has_a_model_that_breaks_it() -> None:
    assert {rule.id for rule in all_rules()} == {rule_id for rule_id, _, _ in BREAKS}


def test_rules_are_well_formed() -> None:
    ids = [rule.id for rule in all_rules()]
    assert len(ids) == len(set(ids))
    for rule in all_rules():
        assert rule.consumer in PARTNER_CONSUMERS
        assert rule.breaks and rule.fix.endswith(".")


def test_deepimagej_may_tile(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, put("config", "deepimagej", value={"allow_tiling": True}))
    assert judge(path)["fiji.no_deepimagej_config"].status == "passed"


@pytest.mark.parametrize("junk", [None, 3, "text", [], [1, None], {"a": 1}])
@pytest.mark.parametrize("field", ["inputs", "outputs", "weights", "covers", "authors", "config", "cite"])
def test_rules_survive_any_description(tmp_path: Path, field: str, junk: Any) -> None:
    path = tmp_path / "rdf.yaml"
    import yaml

    rdf = zips.description(zips.model_files())
    rdf[field] = junk
    path.write_text(yaml.safe_dump(rdf))
    assert {check.status for check in judge(path).values()} <= {"passed", "failed", "warning", "skipped"}
