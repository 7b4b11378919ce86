"""What is kept of long work, and for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gap_bioimage.inference.resume import Unfinished, fingerprint

if TYPE_CHECKING:
    from pathlib import Path


def test_the_same_work_finds_what_was_saved(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Unfinished(folder, {"seed": 1}).save("a", x=np.arange(3), y=np.ones(2))
    found = Unfinished(folder, {"seed": 1}).load("a")
    assert found is not None
    np.testing.assert_array_equal(found["x"], np.arange(3))
    np.testing.assert_array_equal(found["y"], np.ones(2))
    assert Unfinished(folder, {"seed": 1}).load("b") is None


def test_other_work_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Unfinished(folder, {"seed": 1}).save("a", x=np.arange(3))
    other = Unfinished(folder, {"seed": 2})
    assert (other.load("a"), other.count("a"), other.found) == (None, 0, False)
    other.save("b", x=np.arange(3))
    assert Unfinished(folder, {"seed": 1}).load("a") is None
    assert [path.name for path in folder.glob("*.npz")] == ["b.npz"]


def test_counting_ends_at_the_first_gap(tmp_path: Path) -> None:
    kept = Unfinished(tmp_path / "work", {})
    assert kept.count("a") == 0
    for name in ("a1", "a2", "a4", "b1"):
        kept.save(name, x=np.arange(1))
    assert (kept.count("a"), kept.count("b"), Unfinished(None, {}).count("a")) == (2, 1, 0)


def test_nothing_is_kept_without_a_folder(tmp_path: Path) -> None:
    kept = Unfinished(None, {})
    kept.save("a", x=np.arange(3))
    assert kept.load("a") is None
    kept.remove()


def test_fingerprints_tell_values_apart() -> None:
    a = torch.arange(6.0)
    assert fingerprint(a) == fingerprint(a.clone()) != fingerprint(a + 1e-6)
    assert fingerprint(a, a) != fingerprint(a)
    assert fingerprint(a.reshape(2, 3).T) != fingerprint(a)
    assert len(fingerprint(torch.tensor(1.0))) == 64


@pytest.mark.parametrize("damage", ["", "PK no zip", "truncated", "inside"])
def test_what_cannot_be_read_was_not_saved(tmp_path: Path, damage: str) -> None:
    kept = Unfinished(tmp_path / "work", {})
    assert not kept.found
    kept.save("a", x=np.arange(300))
    assert Unfinished(tmp_path / "work", {}).found
    file = tmp_path / "work" / "a.npz"
    content = file.read_bytes()
    broken = {"truncated": content[:-30], "inside": content[:900] + b"damage" + content[906:]}
    file.write_bytes(broken.get(damage, damage.encode()))
    assert kept.load("a") is None
