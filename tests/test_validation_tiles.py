"""Tiles, paddings and odd sizes against the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import zips
from test_validation_loading import judged

from gap_bioimage.validation.running.tiles import odd_sizes, padding, tiled

if TYPE_CHECKING:
    from pathlib import Path


def blurs(times: int, folder: Path, halo: int = 2, min_px: int = 16) -> Path:
    """A zip whose network looks ``times`` pixels far."""

    def declare(rdf: dict[str, Any]) -> None:
        for axis in rdf["inputs"][0]["axes"][2:]:
            axis["size"]["min"] = min_px
        for axis in rdf["outputs"][0]["axes"][2:]:
            axis["halo"] = halo

    body = "\n        ".join(["rate = self.blur(rate)"] * (times - 1))
    return zips.make_zip(folder, declare, source=zips.tiny(body))


@pytest.mark.parametrize("reach", [4, 6])
def test_the_halo_that_would_do_is_named(tmp_path: Path, reach: int) -> None:
    outcome = judged(tiled, blurs(reach, tmp_path, halo=1, min_px=32))
    assert outcome.status == "failed"
    needed = int(outcome.message.split("a halo of ")[1].split(" px")[0])
    assert 1 < needed <= reach
    assert f"Declare a halo of {needed} px" in outcome.fix
    assert len(outcome.evidence) == 1
    # with it declared, the check passes
    assert judged(tiled, blurs(reach, tmp_path, halo=needed, min_px=32)).status == "passed"


def test_statistics_of_the_whole_image_have_no_halo(tmp_path: Path) -> None:
    outcome = judged(tiled, zips.make_zip(tmp_path, source=zips.tiny("rate = rate / rate.mean() * 20.0")))
    assert outcome.status == "failed"
    assert "no halo that was tried would do" in outcome.message
    assert "statistics of the whole image" in outcome.fix


def test_padding_changes_statistics_and_nothing_else(tmp_path: Path) -> None:
    assert judged(padding, zips.make_zip(tmp_path)).status == "passed"
    norm = zips.make_zip(tmp_path, source=zips.tiny("rate = nn.functional.instance_norm(rate)"))
    outcome = judged(padding, norm)
    assert outcome.status == "failed"
    assert outcome.evidence[0].expected.shape == outcome.evidence[0].got.shape


def test_odd_sizes_are_tried(tmp_path: Path) -> None:
    assert "(17, 17) runs" in judged(odd_sizes, zips.make_zip(tmp_path)).message
    refuses = zips.make_zip(tmp_path, source=zips.tiny("assert photons.shape[2] % 4 == 0"))
    outcome = judged(odd_sizes, refuses)
    assert outcome.status == "skipped"
    assert "programs pad" in outcome.message
    pools = zips.tiny("rate = nn.functional.avg_pool2d(rate, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)")
    assert "pixels are lost" in judged(odd_sizes, zips.make_zip(tmp_path, source=pools)).message


def test_every_size_may_be_declared(tmp_path: Path) -> None:
    def any_size(rdf: dict[str, Any]) -> None:
        for axis in rdf["inputs"][0]["axes"][2:]:
            axis["size"] = {"min": 16, "step": 1}

    assert judged(odd_sizes, zips.make_zip(tmp_path, any_size)).message == "every size from min on is declared"


def test_fixed_sizes_have_no_tiles(tmp_path: Path) -> None:
    def fixed(rdf: dict[str, Any]) -> None:
        for axis in (*rdf["inputs"][0]["axes"][2:], *rdf["outputs"][0]["axes"][2:]):
            axis["size"] = 32
            axis.pop("halo", None)

    path = zips.make_zip(tmp_path, fixed)
    assert {judged(judge, path).status for judge in (tiled, padding, odd_sizes)} == {"skipped"}
