"""What tiles change in models that run, and the halo that would do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zips
from running import judged

from gap_bioimage.validation.run import behaviour, edges
from gap_bioimage.validation.run.behaviour import below_min, sizes
from gap_bioimage.validation.run.edges import tiled


def blurs(times: int, folder: Path, halo: int | None = 2, min_px: int = 16, step_px: int = 4) -> Path:
    """A zip whose network looks ``times`` pixels far."""

    def declare(rdf: dict[str, Any]) -> None:
        for given, made in zip(rdf["inputs"][0]["axes"][2:], rdf["outputs"][0]["axes"][2:], strict=True):
            given["size"] = {"min": min_px, "step": step_px}
            made.pop("halo")
            made |= {} if halo is None else {"halo": halo}

    body = "\n        ".join(["rate = self.blur(rate)"] * (times - 1))
    return zips.make_zip(folder, declare, source=zips.tiny(body))


def test_the_halo_that_would_do_is_named_and_does(tmp_path: Path) -> None:
    outcome = judged(tiled, blurs(6, tmp_path, halo=1, min_px=32))
    needed = int(outcome.message.split("a halo of ")[1].split(" px")[0])
    assert outcome.status == "failed" and 1 < needed <= 6 and f"Declare a halo of {needed} px" in outcome.fix
    assert {item.expected.shape == item.got.shape for item in outcome.evidence} == {True}
    least = int(outcome.fix.split("a min of ")[1].split(" px")[0])
    assert judged(tiled, blurs(6, tmp_path, halo=needed, min_px=-(-least // 4) * 4)).status == "passed"
    assert "; no halo is declared" in judged(tiled, blurs(2, tmp_path, halo=None)).message
    tiny = judged(tiled, blurs(6, tmp_path, halo=None, min_px=1, step_px=1))  # farther than the smallest tile reaches
    assert f"Declare a halo of {needed} px" in tiny.fix


GUIDED = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.blur = nn.AvgPool2d(3, 1, 1)

    def forward(self, photons: torch.Tensor, guide: torch.Tensor):
        return self.blur(photons) + guide.repeat_interleave(2, 2).repeat_interleave(2, 3)
"""


def test_an_input_whose_size_follows_anothers_is_cut_with_it(tmp_path: Path) -> None:
    def guided(rdf: dict[str, Any]) -> None:
        space = [
            {"type": "space", "id": name, "size": {"tensor_id": "photons", "axis_id": name}, "scale": 2}
            for name in "yx"
        ]
        axes = [{"type": "batch"}, {"type": "channel", "channel_names": ["guide"]}, *space]
        rdf["inputs"].append({"id": "guide", "axes": axes, "test_tensor": {"source": "guide.npy"}})

    path = zips.scripted(tmp_path, GUIDED, mutate=guided, guide=np.ones((1, 1, 16, 16), np.float32))
    found = {judge: judged(judge, path) for judge in (tiled, sizes, behaviour.cost, below_min)}
    assert [outcome.status for outcome in found.values()] == ["passed", "passed", "passed", "skipped"]
    assert "differ from the whole by 0.00%" in found[tiled].message


def test_axes_that_follow_each_other_are_not_cut_alone(tmp_path: Path) -> None:
    square = {"size": {"tensor_id": "photons", "axis_id": "y"}}

    def follow(rdf: dict[str, Any]) -> None:
        for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
            tensor["axes"][3] |= square

    found = [judged(judge, zips.make_zip(tmp_path, follow)).status for judge in (sizes, tiled, below_min)]
    assert found == ["passed", "skipped", "skipped"]


def test_postprocessing_that_takes_statistics_of_the_input_runs_everywhere(tmp_path: Path) -> None:
    kwargs = {"reference_tensor": "photons", "axes": ["channel", "y", "x"], "max_percentile": 99.0}
    step = {"id": "scale_range", "kwargs": kwargs}
    path = zips.make_zip(tmp_path, zips.put("outputs", 0, "postprocessing", value=[step]))
    assert [judged(judge, path).status for judge in (tiled, behaviour.cost)] == ["passed", "passed"]


def test_what_cannot_be_tiled_here_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(rdf: dict[str, Any]) -> None:
        for axis in (*rdf["inputs"][0]["axes"][2:], *rdf["outputs"][0]["axes"][2:]):
            axis["size"] = 32
            axis.pop("halo", None)

    path = zips.make_zip(tmp_path, fixed)
    assert {judged(judge, path).status for judge in (tiled, sizes, below_min)} == {"skipped"}
    path = zips.make_zip(tmp_path, zips.put("config", value={"gap_bioimage": {"stochastic": True}}))
    assert judged(tiled, path).status == "skipped"
    monkeypatch.setattr(edges, "MAX_VOXELS", 32 * 32)
    assert judged(tiled, blurs(6, tmp_path, halo=1, min_px=32)).status == "skipped"


def test_outputs_of_another_size_are_measured_in_their_own_pixels(tmp_path: Path) -> None:
    def twice(rdf: dict[str, Any]) -> None:
        for axis in rdf["outputs"][0]["axes"][2:]:
            axis.update(scale=0.5, halo=4)

    body = "rate = self.blur(rate).repeat_interleave(2, 2).repeat_interleave(2, 3)"
    assert judged(tiled, zips.make_zip(tmp_path, twice, source=zips.tiny(body))).status == "passed"

    def half(rdf: dict[str, Any]) -> None:
        for axis in rdf["outputs"][0]["axes"][2:]:
            del axis["halo"]
            axis["scale"] = 2

    path = zips.make_zip(tmp_path, half, source=zips.tiny("rate = self.blur(rate)[:, :, ::2, ::2]"))
    assert "Declare a halo of 1 px on the outputs' axes, and a min of 36 px" in judged(tiled, path).fix
