"""Models that come with the package, known by their names wherever a model is asked for."""

from pathlib import Path

from gap_bioimage.errors import CheckpointError

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the models."""
    return sorted(path.stem for path in _HERE.glob("*.zip"))


def find(model: str | Path) -> Path:
    """Return the path of a model: that of ours if it is the name of one and no file or folder, as it is otherwise."""
    path = Path(model)
    return _HERE / f"{path}.zip" if not path.exists() and str(path) in names() else path


def named(name: str) -> Path:
    """Return the path of a model of ours, whatever files there are."""
    if name not in names():
        raise CheckpointError(f"no model {name!r} comes with the package, only {', '.join(names())}; give its path")
    return _HERE / f"{name}.zip"
