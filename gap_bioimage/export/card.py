"""The model card: who made a model, from what, under which licence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from gap_bioimage.config import Config, error_sentence, read_yaml
from gap_bioimage.errors import CardError, ConfigError
from gap_bioimage.files import replacing

GAP_PAPER = {
    "text": "Krull et al., Image Denoising and the Generative Accumulation of Photons, WACV 2024",
    "doi": "10.48550/arXiv.2307.06607",
}
Text = Annotated[str, Field(min_length=1)]

TEMPLATE = """\
# Model card for `gap-bioimage export MODEL OUT.zip --card card.yaml`. The names are those of bioimage.io.

# 5 to 128 letters, digits, spaces, or any of _ + - ( ).
name: My photon denoiser
# What it does, on which images; at most 512 characters.
description: Denoises photon counts of ... recorded with ...

# Everyone who deserves credit; only the name is needed.
authors:
  - name: Your Name
    # affiliation: Institute of Examples
    # orcid: 0000-0002-1825-0097
    # github_user: ada-example

# Who to ask; the model zoo wants at least one with a GitHub user name.
maintainers: []
#  - name: Ada Example
#    github_user: ada-example

# An SPDX identifier: https://spdx.org/licenses
license: CC-BY-4.0

# What to cite, each with a doi or a url. The GAP paper is added for you.
cite: []
#  - text: Example et al., The images, 2026
#    doi: 10.1234/example

# Added to: denoising, photon-counting, poisson, unet, 2d or 3d, ...
tags: []
#  - confocal

# What the network was trained on, in a sentence or two; it goes into the README.
training_data: Photon counts of ...

# Optional.
# id: my-photon-denoiser
# version: 0.1.0
# git_repo: https://github.com/ada-example/my-photon-denoiser
# limitations: Not for ...
"""


class Person(Config):
    """An author or maintainer."""

    name: Text | None = None
    affiliation: Text | None = None
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")] | None = None
    orcid: Annotated[str, Field(pattern=r"^\d{4}-\d{4}-\d{4}-\d{3}[\dX]$")] | None = None
    github_user: Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}$")] | None = None

    @field_validator("orcid")
    @classmethod
    def _check_digit(cls, orcid: str | None) -> str | None:
        """Verify the ISO 7064 mod 11-2 check digit that the last place of an ORCID iD is."""
        if orcid is not None:
            total = 0
            for digit in orcid.replace("-", "")[:-1]:
                total = (total + int(digit)) * 2
            expected = "0123456789X"[(12 - total % 11) % 11]
            if orcid[-1] != expected:
                raise ValueError(f"is not an ORCID iD: its check digit should be {expected}")
        return orcid


class Author(Person):
    """An author; only the name is needed."""

    name: Text


class Maintainer(Person):
    """A maintainer; only the GitHub user name is needed."""

    github_user: Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}$")]


class Citation(Config):
    """What to cite."""

    text: Text
    doi: Annotated[str, Field(pattern=r"^10\.\d{4,9}/\S+$")] | None = None
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None

    @model_validator(mode="after")
    def _findable(self) -> Self:
        if self.doi is None and self.url is None:
            raise ValueError("needs a doi or a url")
        return self


class Card(Config):
    """The author's part of a model description; field names are those of bioimage.io."""

    name: Annotated[str, Field(min_length=5, max_length=128, pattern=r"^[\w ()+-]+$")]
    description: Annotated[str, Field(min_length=1, max_length=512)]
    authors: Annotated[tuple[Author, ...], Field(min_length=1)]
    license: Text
    maintainers: tuple[Maintainer, ...] = ()
    cite: tuple[Citation, ...] = ()
    tags: tuple[Text, ...] = ()
    training_data: Text | None = None
    limitations: Text | None = None
    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=128)] | None = None
    version: Annotated[str, Field(pattern=r"^\d+(\.\d+)*([ab.+-][\w.]+)?$")] = "0.1.0"
    git_repo: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None

    @field_validator("license")
    @classmethod
    def _spdx(cls, identifier: str) -> str:
        from bioimageio.spec.generic.v0_3 import LicenseId
        from pydantic import TypeAdapter

        try:
            TypeAdapter[Any](LicenseId).validate_python(identifier)
        except ValidationError:
            raise ValueError(
                "is not an SPDX licence identifier such as MIT or CC-BY-4.0 (see https://spdx.org/licenses)"
            ) from None
        return identifier

    @model_validator(mode="after")
    def _identifiable(self) -> Self:
        if not self.identifier:
            raise ValueError(f"name {self.name!r} has no Latin letters or digits to make an id from; give an id")
        return self

    @property
    def identifier(self) -> str:
        """The id, made from the name when none is given: Fiji cannot load a model without."""
        return self.id or re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def citations(self) -> list[dict[str, str]]:
        """All citations, the GAP paper's first."""
        own = [entry.model_dump(exclude_none=True) for entry in self.cite]
        return [GAP_PAPER, *(entry for entry in own if not _is_gap_paper(entry))]

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a card.

        Raises
        ------
        CardError
            Listing every missing or wrong field at once.
        """
        try:
            values = read_yaml(path)
        except ConfigError as error:
            raise CardError(str(error)) from None
        template = yaml.safe_load(TEMPLATE)
        problems = [
            f"{field}: still the template's text"
            for field in ("name", "description", "authors", "training_data")
            if values.get(field) == template[field]
        ]
        try:
            card = cls.model_validate(values)
        except ValidationError as error:
            problems += [error_sentence(cls, e) for e in error.errors()]
        if problems:
            raise CardError(f"{path}: {'; '.join(problems)}; `gap-bioimage export --init-card` writes a template")
        return card


def _is_gap_paper(entry: dict[str, str]) -> bool:
    number = GAP_PAPER["doi"].lower().removeprefix("10.48550/arxiv.")
    return number in f"{entry.get('doi')} {entry.get('url')}"


def write_template(path: Path | str) -> None:
    """Write a commented card to fill in.

    Raises
    ------
    CardError
        If the file exists.
    """
    path = Path(path)
    if path.exists():
        raise CardError(f"{path} exists and is not overwritten; give --init-card another name")
    with replacing(path) as temporary:
        temporary.write_text(TEMPLATE, encoding="utf-8")
