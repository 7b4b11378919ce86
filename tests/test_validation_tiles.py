"""Tiles, paddings and odd sizes against the whole image."""

from __future__ import annotations

import re
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import yaml
import zips
from gap_bioimage.validation.running import halo_search
from gap_bioimage.validation.running.tiles import odd_sizes, padding, tiled
from test_validation_loading import judged

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
    tried = int(outcome.message.split("halos up to ")[1].split(" px were tried, and none would do")[0])
    assert tried > 100
    assert "images that are too large" in outcome.message
    assert "statistics of the whole image" in outcome.fix


def with_halo(path: Path, halo: int, out: Path, min_px: int | None = None) -> Path:
    """A copy of a zip that declares another halo."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "rdf.yaml":
                rdf = yaml.safe_load(data)
                for axis in rdf["outputs"][0]["axes"][2:]:
                    axis["halo"] = halo
                for axis in rdf["inputs"][0]["axes"][2:] if min_px else ():
                    axis["size"]["min"] = min_px
                data = yaml.safe_dump(rdf, sort_keys=False).encode()
            new.writestr(name, data)
    return out


@pytest.mark.parametrize("share", [0.55, 0.05])
def test_a_trained_network_s_halo_is_found_again(unchecked_zip_2d: Path, tmp_path: Path, share: float) -> None:
    assert judged(tiled, unchecked_zip_2d).status == "passed"
    with zipfile.ZipFile(unchecked_zip_2d) as archive:
        declared = yaml.safe_load(archive.read("rdf.yaml"))["outputs"][0]["axes"][2]["halo"]
    outcome = judged(tiled, with_halo(unchecked_zip_2d, int(share * declared), tmp_path / "small.zip"))
    assert outcome.status == "failed"
    halo = int(outcome.message.split("a halo of ")[1].split(" px would do")[0])
    assert share * declared < halo <= 1.1 * declared
    least = int(outcome.fix.split("a min of ")[1].split(" px")[0])
    # declaring what it says is enough
    assert judged(tiled, with_halo(unchecked_zip_2d, halo, tmp_path / "named.zip", least)).status == "passed"


def test_halos_keep_the_proportions_of_the_declared_ones(tmp_path: Path) -> None:
    def uneven(rdf: dict[str, Any]) -> None:
        for axis, halo in zip(rdf["outputs"][0]["axes"][2:], (1, 3), strict=True):
            axis["halo"] = halo
        for axis in rdf["inputs"][0]["axes"][2:]:
            axis["size"]["min"] = 32

    source = zips.tiny("rate = self.blur(self.blur(self.blur(self.blur(self.blur(rate)))))")
    outcome = judged(tiled, zips.make_zip(tmp_path, uneven, source=source))
    found = re.search(r"a halo of y (\d+), x (\d+) px would do", outcome.message)
    assert found is not None, outcome.message
    assert int(found[1]) == -(-int(found[2]) // 3)


def test_no_halo_at_all_is_searched_too(tmp_path: Path) -> None:
    def none(rdf: dict[str, Any]) -> None:
        for axis in rdf["outputs"][0]["axes"][2:]:
            del axis["halo"]

    outcome = judged(tiled, zips.make_zip(tmp_path, none))
    assert outcome.status == "warning"
    assert "a halo of 1 px would do; no halo is declared" in outcome.message


def test_a_search_that_takes_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halo_search, "SEARCH_S", -1.0)
    outcome = judged(tiled, blurs(6, tmp_path, halo=1, min_px=32))
    assert "no larger halo was tried: larger ones take too long" in outcome.message
    monkeypatch.setattr(halo_search, "SEARCH_S", 40.0)
    monkeypatch.setattr(halo_search, "MAX_VOXELS", 0)
    outcome = judged(tiled, blurs(6, tmp_path, halo=1, min_px=32))
    assert "no larger halo was tried: larger ones need images that are too large" in outcome.message


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
