"""Models that come with the package, known by their names wherever a model is asked for."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the models."""
    return sorted(path.stem for path in _HERE.glob("*.zip"))


def find(model: str | Path) -> Path:
    """Return the path of a model: that of ours if it is the name of one and no file or folder, as it is otherwise."""
    path = Path(model)
    return _HERE / f"{path}.zip" if not path.exists() and str(path) in names() else path
