"""The model card: authors, training data and licence of a model."""

import re
from pathlib import Path
from typing import Annotated, Any, Self

from bioimageio.spec import ValidationContext
from bioimageio.spec.generic.v0_3 import Author, CiteEntry, LicenseId, Maintainer, Uploader
from pydantic import Field, ModelWrapValidatorHandler, TypeAdapter, ValidationError, field_validator, model_validator

from gap_bioimage.config import Config, read_yaml
from gap_bioimage.errors import CardError, ConfigError
from gap_bioimage.files import replacing

GAP_PAPER = {
    "text": "Krull et al., Image Denoising and the Generative Accumulation of Photons, WACV 2024",
    "doi": "10.48550/arXiv.2307.06607",
}
TEMPLATE = Path(__file__).with_name("card_template.yaml")
"""A commented card to fill in."""
LONGEST_DESCRIPTION = 1024  # limit of the format
_MUST_CHANGE = ("name", "description", "authors", "training_data")

Text = Annotated[str, Field(min_length=1)]


class Card(Config):
    """The author's part of a model description; names and rules of the fields are those of bioimage.io."""

    name: Annotated[str, Field(min_length=5, max_length=128, pattern=r"^[\w ()+-]+$")]
    description: Annotated[str, Field(min_length=1, max_length=LONGEST_DESCRIPTION)]
    authors: Annotated[tuple[Author, ...], Field(min_length=1)]
    license: Text
    maintainers: tuple[Maintainer, ...] = ()
    cite: tuple[CiteEntry, ...] = ()
    tags: tuple[Text, ...] = ()
    training_data: Text | None = None
    limitations: Text | None = None
    modality: Text | None = None
    target_structure: tuple[Text, ...] = ()
    out_of_scope_use: Text | None = None
    funded_by: Text | None = None
    dataset: Text | None = None
    uploader: Uploader | None = None
    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=128)] | None = None
    version: Annotated[str, Field(pattern=r"^\d+(\.\d+)*([ab.+-][\w.]+)?$")] = "0.1.0"
    version_comment: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    git_repo: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _offline(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Validate offline: bioimageio.spec would look up user names at GitHub, and addresses at their servers."""
        with ValidationContext(perform_io_checks=False):
            card = handler(values)
        if not card.identifier:
            raise ValueError(f"name {card.name!r} has no Latin letters or digits to form an id; give an id")
        return card

    @field_validator("license")
    @classmethod
    def _spdx(cls, identifier: str) -> str:
        try:
            TypeAdapter[Any](LicenseId).validate_python(identifier)
        except ValidationError:
            raise ValueError("is not an SPDX licence identifier such as MIT or CC-BY-4.0") from None
        return identifier

    @property
    def identifier(self) -> str:
        """The id, by default made from the name: Fiji cannot load a model without one."""
        return self.id or re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def citations(self) -> list[dict[str, str]]:
        """All citations, the GAP paper first."""
        own = [entry.model_dump(mode="json", exclude_none=True) for entry in self.cite]
        return [GAP_PAPER, *(e for e in own if "2307.06607" not in f"{e.get('doi')} {e.get('url')}")]

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a card; `CardError` lists every missing or wrong field at once."""
        hint = "`gap-bioimage export --init-card new.yaml` writes a template that explains every field"
        try:
            values = read_yaml(path)
        except ConfigError as error:
            raise CardError(f"{error}; {hint}") from None
        template = read_yaml(TEMPLATE)
        problems = [f"{name}: still the template's text" for name in _MUST_CHANGE if values.get(name) == template[name]]
        try:
            card = cls.from_dict(values)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise CardError(f"{path}: {'; '.join(problems)}; {hint}")
        return card


def write_template(path: Path | str) -> None:
    """Write a commented card to fill in; `CardError` if the file exists."""
    path = Path(path)
    if path.exists():
        raise CardError(f"{path} exists and is not overwritten; give another name for the card")
    with replacing(path) as temporary:
        temporary.write_bytes(TEMPLATE.read_bytes())
