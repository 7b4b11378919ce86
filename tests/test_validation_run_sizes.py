"""Sizes of images: declared, below min, odd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import zips
from running import judged

from gap_bioimage.validation.run.sizes import below_min, odd_sizes, sizes

if TYPE_CHECKING:
    from pathlib import Path

POOLS = "rate = nn.functional.avg_pool2d(rate, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)"


@pytest.mark.parametrize(
    ("judge", "body", "status", "words"),
    [
        (sizes, "", "passed", "4 sizes from (16, 16) to (24, 24) run"),
        (sizes, "assert photons.shape[2] == photons.shape[3]", "failed", "input size (20, 16) raised AssertionError"),
        (sizes, "rate = rate[..., :32, :]", "passed", ""),
        (sizes, "rate = rate[..., :20, :]", "failed", "20 along y, declared is"),
        (below_min, "", "passed", "from (4, 4)"),
        (below_min, "assert photons.shape[3] >= 16", "failed", "below min, raised"),
        (odd_sizes, "", "passed", "(17, 17) runs"),
        (odd_sizes, "assert photons.shape[2] % 4 == 0", "skipped", "programs pad"),
        (odd_sizes, POOLS, "skipped", "pixels are lost"),
    ],
)
def test_sizes_are_tried(tmp_path: Path, judge: Any, body: str, status: str, words: str) -> None:
    source = zips.tiny(body if body != "rate = rate[..., :20, :]" else "")
    script = zips.model_files(zips.tiny(body))["torchscript.pt"]
    outcome = judged(judge, zips.make_zip(tmp_path, source=source, files={"torchscript.pt": script}))
    assert outcome.status == status, outcome.message
    assert words in outcome.message


def test_every_size_may_be_declared(tmp_path: Path) -> None:
    def any_size(rdf: dict[str, Any]) -> None:
        for axis in rdf["inputs"][0]["axes"][2:]:
            axis["size"] = {"min": 16, "step": 1}

    assert judged(odd_sizes, zips.make_zip(tmp_path, any_size)).status == "passed"


def test_a_fixed_size_has_no_others(tmp_path: Path) -> None:
    def fixed(rdf: dict[str, Any]) -> None:
        for axis in (*rdf["inputs"][0]["axes"][2:], *rdf["outputs"][0]["axes"][2:]):
            axis["size"] = 32
            axis.pop("halo", None)

    path = zips.make_zip(tmp_path, fixed)
    assert {judged(judge, path).status for judge in (sizes, below_min, odd_sizes)} == {"skipped"}
