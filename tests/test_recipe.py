"""Recipes of models: what they hold, and that each makes a model."""

from pathlib import Path

import pytest

from gap_bioimage.exporting.card import Card
from gap_bioimage.io import write_image
from gap_bioimage.recipe import Recipe, packaged
from gap_bioimage.simulation import simulate
from gap_bioimage.training.fit import train

PACKAGING = Path(__file__).parent.parent / "packaging"
FOLDERS = sorted(path.parent for path in PACKAGING.glob("*/recipe.yaml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_recipe_of_ours_is_complete(folder: Path) -> None:
    recipe = Recipe.read(folder / "recipe.yaml")
    assert packaged(folder.name) == folder
    assert Card.read(folder / "card.yaml").name
    assert {"README.md", "cover.png"} <= {path.name for path in folder.iterdir()}
    if recipe.simulate is not None:
        small = recipe.simulate.model_copy(update={"images": 2, "shape": (*recipe.simulate.shape[:-2], 40, 40)})
        images = recipe.model_copy(update={"simulate": small}).photons(folder)
        assert [image.shape for image in images] == [small.shape] * 2
        assert not images[0].equals(images[1])


def test_a_recipe_trains_its_network_on_what_it_names(tmp_path: Path) -> None:
    folder = PACKAGING / "filaments_3d"
    recipe = Recipe.read(folder / "recipe.yaml")
    write_image(tmp_path / "counts.tif", simulate(3, (24, 48, 48), 5.0, scene="filaments")[0])
    recipe = recipe.model_copy(update={"images": [str(tmp_path / "counts.tif")], "simulate": None})
    once = recipe.train.model_copy(update={"steps": 1, "batch_size": 1, "validation_windows": 1})
    settings = recipe.settings.model_copy(update={"train": once})
    model = train(recipe.photons(folder), tmp_path / "run", settings, progress=False, device="cpu")
    assert model.config == recipe.network
    assert model.trained_range_db[0] == recipe.thinning.min_db
