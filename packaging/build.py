"""Build a model from its recipe folder: train, export, validate.

python packaging/build.py packaging/NAME OUT
python packaging/build.py packaging/hazelnut_2d OUT --images hazelnut_photons_t0_zyx.tif
python packaging/build.py packaging/nuclei_2d OUT --pretrained nuclei
"""

import argparse
import shutil
import zipfile
from pathlib import Path

from gap_bioimage import pretrained
from gap_bioimage.exporting.archive import export
from gap_bioimage.files import replacing
from gap_bioimage.recipe import Recipe
from gap_bioimage.training.fit import train
from gap_bioimage.validation.reports.terminal import print_report


def main() -> None:
    """Train into OUT/run, or resume there, and write OUT/NAME.zip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="recipe folder")
    parser.add_argument("out", type=Path, help="folder for the run and the zip")
    parser.add_argument("--images", type=Path, nargs="+", help="images to use instead of those in the recipe")
    parser.add_argument("--pretrained", help="copy the zip into the package under this name")
    arguments = parser.parse_args()
    source, out = arguments.recipe.resolve(), arguments.out
    recipe = Recipe.read(source / "recipe.yaml")
    if arguments.images:
        recipe = recipe.model_copy(update={"images": [str(path.resolve()) for path in arguments.images]})
    run = out / "run"
    model = train(recipe.photons(source), run, recipe.settings, resume=(run / "config.yaml").exists())
    target = out / f"{source.name}.zip"
    print_report(export(model, target, source / "card.yaml"))
    with zipfile.ZipFile(target) as archive, replacing(source / "cover.png") as temporary:
        temporary.write_bytes(archive.read("cover.png"))
    print(f"{target}: written")
    if arguments.pretrained:
        shutil.copyfile(target, Path(pretrained.__file__).with_name(f"{arguments.pretrained}.zip"))


if __name__ == "__main__":
    main()
