"""One profile of the edge effect: seams between tiles, and the halo that they need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zips
from running import judged

from gap_bioimage.validation.run import edges
from gap_bioimage.validation.run.behaviour import below_min, sizes
from gap_bioimage.validation.run.edges import EdgeProfile, tiled

if TYPE_CHECKING:
    from pathlib import Path


def blurs(times: int, folder: Path, halo: int | None = 2, min_px: int = 16) -> Path:
    """A zip whose network looks ``times`` pixels far."""

    def declare(rdf: dict[str, Any]) -> None:
        for axis in rdf["inputs"][0]["axes"][2:]:
            axis["size"]["min"] = min_px
        for axis in rdf["outputs"][0]["axes"][2:]:
            axis["halo"] = halo
            if halo is None:
                del axis["halo"]

    body = "\n        ".join(["rate = self.blur(rate)"] * (times - 1))
    return zips.make_zip(folder, declare, source=zips.tiny(body))


def test_a_profile_is_the_difference_against_the_distance_from_the_cut() -> None:
    whole = np.ones((2, 10))
    cut = whole + np.array([4, 2, 1, 0, 0, 0, 0, 0, 2, 4])
    profile = EdgeProfile.of(whole, cut, axis=1)
    assert profile.squares.tolist() == [16, 4, 0.5, 0, 0]
    assert profile.seam(1, 2) == pytest.approx(math.sqrt(2.25))
    assert profile.seam(3, 2) == 0
    assert profile.seam(5, 2) == math.inf
    assert profile.needed_halo(0.1) == 3
    assert profile.needed_halo(0.1, step_px=2) == 4
    broken = EdgeProfile.of(whole, np.where(cut == 5, np.nan, cut), axis=1)
    assert broken.seam(0, 1) == math.inf
    assert broken.needed_halo(0.1) == 3


def test_the_halo_that_would_do_is_named_and_does(tmp_path: Path) -> None:
    outcome = judged(tiled, blurs(6, tmp_path, halo=1, min_px=32))
    assert outcome.status == "failed"
    needed = int(outcome.message.split("a halo of ")[1].split(" px")[0])
    assert 1 < needed <= 6
    assert f"Declare a halo of {needed} px" in outcome.fix
    assert {item.expected.shape == item.got.shape for item in outcome.evidence} == {True}
    least = int(outcome.fix.split("a min of ")[1].split(" px")[0])
    assert judged(tiled, blurs(6, tmp_path, halo=needed, min_px=-(-least // 4) * 4)).status == "passed"


def test_a_missing_halo_is_named_too(tmp_path: Path) -> None:
    outcome = judged(tiled, blurs(2, tmp_path, halo=None))
    assert (outcome.status, "; no halo is declared" in outcome.message) == ("failed", True)


def test_statistics_of_the_whole_image_have_no_halo(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, source=zips.tiny("rate = rate / rate.mean() * 20.0"))
    outcome = judged(tiled, path)
    assert outcome.status == "failed"
    assert "none up to" in outcome.message
    assert "statistics of the whole image" in outcome.fix


def test_images_that_are_too_large_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blurs(6, tmp_path, halo=1, min_px=32)
    monkeypatch.setattr(edges, "MAX_VOXELS", 32 * 32)
    assert judged(tiled, path).status == "skipped"


def test_fixed_sizes_and_samplers_have_no_tiles(tmp_path: Path) -> None:
    def fixed(rdf: dict[str, Any]) -> None:
        for axis in (*rdf["inputs"][0]["axes"][2:], *rdf["outputs"][0]["axes"][2:]):
            axis["size"] = 32
            axis.pop("halo", None)

    for change in (fixed, zips.put("config", value={"gap_bioimage": {"stochastic": True}})):
        path = zips.make_zip(tmp_path, change)
        assert judged(tiled, path).status == "skipped"
        if change is fixed:
            assert {judged(judge, path).status for judge in (sizes, below_min)} == {"skipped"}


def test_outputs_of_another_size_are_measured_in_their_own_pixels(tmp_path: Path) -> None:
    def twice(rdf: dict[str, Any]) -> None:
        for axis in rdf["outputs"][0]["axes"][2:]:
            axis.update(scale=0.5, halo=4)

    body = "rate = self.blur(rate).repeat_interleave(2, 2).repeat_interleave(2, 3)"
    outcome = judged(tiled, zips.make_zip(tmp_path, twice, source=zips.tiny(body)))
    assert outcome.status == "passed", outcome.message
