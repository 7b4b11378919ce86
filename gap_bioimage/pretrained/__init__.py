"""Models that come with the package; their names are accepted wherever a path of a model is."""

from pathlib import Path

from gap_bioimage.errors import CheckpointError

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the models."""
    return sorted(path.stem for path in _FOLDER.glob("*.zip"))


def resolve(model: str | Path) -> Path:
    """Return the path of a pretrained model if this is its name and not a file or folder; else ``model`` as a path."""
    path = Path(model)
    return _FOLDER / f"{path}.zip" if not path.exists() and str(path) in names() else path


def path_of(name: str) -> Path:
    """Return the path of a pretrained model, even if a file or folder has its name."""
    if name not in names():
        raise CheckpointError(f"no model {name!r} comes with the package, only {', '.join(names())}; give its path")
    return _FOLDER / f"{name}.zip"
