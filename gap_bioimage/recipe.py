"""Recipes: a folder with everything that makes one model, from images to zip.

A recipe folder holds recipe.yaml (images and training settings), card.yaml (who and under which licence),
README.md and a cover. ``packaging/`` holds those of this project.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gap_bioimage.config import Config, RunConfig
from gap_bioimage.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr


class SimulateConfig(Config):
    """Images to simulate."""

    images: Annotated[int, Field(gt=0)] = 8
    shape: tuple[int, ...]
    photons: Annotated[float, Field(gt=0)] = Field(description="mean photons per pixel")
    seed: Annotated[int, Field(ge=0)] = 0


class Recipe(RunConfig):
    """A training run and where its images come from: ``simulate`` or ``images``."""

    simulate: SimulateConfig | None = None
    images: list[str] | None = Field(None, description="files or folders, relative to the recipe")
    axes: str | None = Field(None, description="axes of the files, where they do not tell")

    @property
    def settings(self) -> RunConfig:
        """The training settings alone."""
        return RunConfig(network=self.network, thinning=self.thinning, train=self.train)

    def photons(self, folder: Path) -> list[xr.DataArray]:
        """Return the training images.

        Raises
        ------
        ConfigError
            If the recipe names neither images nor a simulation, or both.
        """
        if (self.simulate is None) == (self.images is None):
            raise ConfigError(f"{folder / 'recipe.yaml'} must have one of 'simulate' and 'images'")
        if self.images is not None:
            from gap_bioimage.io import read_images

            return read_images([folder / name for name in self.images], self.axes)
        from gap_bioimage.simulation import simulate

        assert self.simulate is not None  # noqa: S101
        wanted = self.simulate
        return [
            simulate(self.network.dim, wanted.shape, wanted.photons, wanted.seed + number)[0]
            for number in range(wanted.images)
        ]


def packaged(name: str) -> Path:
    """Return the folder of one of the project's own recipes, installed or in a checkout.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    here = Path(__file__).parent
    for parent in (here / "recipes", here.parent / "packaging"):
        if (parent / name / "recipe.yaml").is_file():
            return parent / name
    raise ConfigError(f"there is no recipe {name!r} in this installation")
