"""Model cards: every mistake at once, and a template that becomes a card."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gap_bioimage.errors import CardError
from gap_bioimage.exporting.card import GAP_PAPER, TEMPLATE, Card, write_template

GOOD = {"name": "Tiny denoiser", "description": "Denoises.", "authors": [{"name": "Ada Example"}], "license": "MIT"}


def card(**changes: Any) -> Card:
    return Card.model_validate({**GOOD, **changes})


def read(folder: Path, content: object) -> Card:
    path = folder / "card.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return Card.read(path)


def refused(folder: Path, content: object) -> str:
    with pytest.raises(CardError) as error:
        read(folder, content)
    return str(error.value)


def test_all_missing_and_all_wrong_fields_are_listed_at_once(tmp_path: Path) -> None:
    text = refused(tmp_path, "")
    missing = [f"{field}: is missing" for field in GOOD]
    assert [part for part in (*missing, "--init-card", "card.yaml") if part not in text] == []
    wrong = {
        "nam": "x", "name": "four", "description": "d" * 1025, "maintainers": [{"name": "Ada"}], "version": "one",
        "authors": [{"name": "Ada", "orcid": "0000-0002-1825-0098"}, {"affilation": "Somewhere"}],
        "license": "free for all", "id": "Upper Case", "git_repo": "github.com/ada/x",
        "cite": [{"text": "A paper"}, {"text": "B", "doi": "https://doi.org/10.1/x"}],
    }  # fmt: skip
    text = refused(tmp_path, wrong)
    told = (
        "unknown key 'nam'; did you mean 'name'?", "name: expected at least 5",
        "description: expected at most 1024", "authors.0.orcid:", "authors.1.name:",
        "unknown key 'authors.1.affilation'; did you mean 'authors.1.affiliation'?", "maintainers.0.github_user:",
        "license: is not an SPDX licence identifier", "cite.0", "cite.1.doi:", "id:", "git_repo:", "version:",
    )  # fmt: skip
    assert [part for part in told if part not in text] == []


def filled_in(template: str) -> str:
    return (
        template.replace("My photon", "Our photon")
        .replace("Photon counts of ...", "Photon counts of cells.")
        .replace("photon counts of ... recorded with ...", "photon counts of cells")
        .replace("Your Name", "Ada Example")
    )


def test_a_template_that_nobody_filled_in_is_refused_with_every_field_left(tmp_path: Path) -> None:
    text = refused(tmp_path, TEMPLATE.read_text())
    assert text.count("still the template's text") == 4


def test_every_comment_of_the_template_can_be_used(tmp_path: Path) -> None:
    text = re.sub(r"^(\w+): \[\]$", r"\1:", TEMPLATE.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^#( +)(- |github_user|doi)", r" \1\2", text, flags=re.MULTILINE)
    text = re.sub(r"^    # ", "    ", text, flags=re.MULTILINE)
    text = re.sub(r"^# ([a-z_]+:|  (?:name|email):)", r"\1", text, flags=re.MULTILINE)
    full = read(tmp_path, filled_in(text))
    assert full.model_fields_set == set(Card.model_fields)
    assert (full.authors[0].orcid, full.maintainers[0].github_user) == ("0000-0002-1825-0097", "ada-example")


def test_the_template_never_replaces_a_card(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("mine")
    with pytest.raises(CardError, match="not overwritten"):
        write_template(tmp_path / "card.yaml")
    assert (tmp_path / "card.yaml").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "entry", [None, {"doi": "10.48550/arxiv.2307.06607"}, {"url": "https://arxiv.org/abs/2307.06607"}]
)
def test_the_gap_paper_is_cited_once_and_first(entry: dict[str, str] | None) -> None:
    own = {"text": "Images", "doi": "10.1234/images"}
    given_ones = [own] if entry is None else [{"text": "GAP", **entry}, own]
    assert card(cite=given_ones).citations == [GAP_PAPER, own]


@pytest.mark.parametrize(
    ("name", "identifier"), [("My (photon) denoiser + 2", "my-photon-denoiser-2"), ("__Tiny__ model-", "tiny-model")]
)
def test_the_identifier_comes_from_the_name(name: str, identifier: str) -> None:
    assert card(name=name).identifier == identifier
    assert card(name=name, id="own-id").identifier == "own-id"


@pytest.mark.parametrize("name", ["細胞のノイズ除去", "_____", "+ - + -"])
def test_names_without_latin_letters_need_an_id(name: str, tmp_path: Path) -> None:
    assert "give an id" in refused(tmp_path, {**GOOD, "name": name})
    assert read(tmp_path, {**GOOD, "name": name, "id": "cells"}).identifier == "cells"
