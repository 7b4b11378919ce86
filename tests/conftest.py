"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import run  # noqa: F401  (fixture)
from fixtures_model import (  # noqa: F401  (fixtures)
    trained_2d,
    trained_3d,
    unchecked_zip_2d,
    unchecked_zip_3d,
)

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of development data; tests that need it are skipped where there is none."""
    data = Path(os.environ.get("GAP_BIOIMAGE_SHARED", _ROOT / ".." / "shared")) / "data"
    if not data.is_dir():
        pytest.skip(f"no development data at {data}")
    return data
