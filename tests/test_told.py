from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fixtures_model import random_model

from gap_bioimage.training.told import facts_of, in_words, kind_in_words


@pytest.mark.parametrize(
    ("origin", "config", "words"),
    [
        ("run", {}, "training run, 2D"),
        ("checkpoint", {"dim": 3}, "checkpoint of gap-bioimage, 3D"),
        ("original GAP checkpoint", {"channels": 3}, "original GAP checkpoint, 2D, RGB"),
        ("bioimage.io zip", {"dim": 3, "channels": 2, "z_conv_stage": 2}, "bioimage.io zip, 3D, 2 channels"),
        ("state_dict", {"dim": 3, "z_conv_stage": 1}, "state_dict, 3D anisotropic, z in 1 of 2 levels"),
    ],
)
def test_kinds_have_words(origin: str, config: dict[str, Any], words: str) -> None:
    assert kind_in_words(replace(random_model(**config), origin=origin)) == words


def test_facts_of_a_run() -> None:
    metrics = [{"step": 5, "validation_loss": 2.0}, {"step": 10, "validation_loss": float("nan")}]
    init = {"name": "a.ckpt", "origin": "checkpoint", "sha256": "ab", "trained_range_db": [-40.0, 1.0]}
    facts = facts_of(replace(random_model(), details={"metrics": metrics, "init": init}))
    assert facts == {
        "settings_from": None,
        "range_from": "training",
        "epochs": None,
        "steps": 10,
        "validation_loss": 2.0,
        "init": init,
    }
    words = in_words({"dim": 2, **facts})
    assert (words["init"], words["settings_from"]) == ("a.ckpt (checkpoint, weights with sha256 ab)", None)


def test_facts_of_others_weights() -> None:
    found = {"dim": "weights", "levels": "sidecar", "depth": "weights"}
    details = {"found_in": found, "range_from": "assumed", "epoch": 4, "step": 90}
    facts = facts_of(replace(random_model(), details=details))
    assert (facts["epochs"], facts["steps"], facts["range_from"]) == (4, 90, "assumed")
    assert facts["settings_from"] == found
    assert in_words(facts)["settings_from"] == "weights: dim, depth; sidecar: levels"
    assert in_words(facts)["init"] is None
