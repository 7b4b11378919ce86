"""Recipes: folders that hold everything needed to make one model, from images to zip.

A recipe folder holds recipe.yaml (images and training settings), card.yaml (authors and licence), README.md and a
cover. ``packaging/`` holds the recipes of this project.
"""

from pathlib import Path
from typing import Annotated, Literal

import xarray as xr
from pydantic import Field

from gap_bioimage.config import Config, RunConfig
from gap_bioimage.errors import ConfigError


class SimulateConfig(Config):
    """Images to simulate."""

    images: Annotated[int, Field(gt=0)] = 8
    shape: tuple[int, ...]
    photons: Annotated[float, Field(gt=0)] = Field(description="mean photons per pixel")
    seed: Annotated[int, Field(ge=0)] = 0
    scene: Literal["cells", "filaments"] = "cells"


class Recipe(RunConfig):
    """A training run and the source of its images: ``simulate`` or ``images``."""

    simulate: SimulateConfig | None = None
    images: list[str] | None = Field(None, description="files or folders, relative to the recipe")
    axes: str | None = Field(None, description="axes of the files, if these do not record them")

    @property
    def settings(self) -> RunConfig:
        """The training settings alone."""
        return RunConfig(network=self.network, thinning=self.thinning, train=self.train, camera=self.camera)

    def photons(self, folder: Path) -> list[xr.DataArray]:
        """Return the training images."""
        from gap_bioimage.io import read_images
        from gap_bioimage.simulation import simulate

        settings = self.simulate
        if (self.images is None) == (settings is None):
            raise ConfigError(f"{folder / 'recipe.yaml'} must have either 'simulate' or 'images'; keep one of them")
        if settings is None:
            return read_images([folder / name for name in self.images or []], self.axes)
        seeds = range(settings.seed, settings.seed + settings.images)
        return [simulate(self.network.dim, settings.shape, settings.photons, s, settings.scene)[0] for s in seeds]


def packaged(name: str) -> Path:
    """Return the folder of one of the project's own recipes, installed or in a checkout."""
    here = Path(__file__).parent
    for parent in (here / "recipes", here.parent / "packaging"):
        if (parent / name / "recipe.yaml").is_file():
            return parent / name
    raise ConfigError(f"there is no recipe {name!r} in this installation")
