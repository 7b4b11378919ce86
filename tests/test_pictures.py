"""Pictures of counts: PNG files of a sensible size, without a display."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gap_bioimage.pictures import draw_posterior, draw_row


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        size: tuple[int, int] = picture.size
    return size


@pytest.mark.parametrize("dtype", [np.uint16, bool, np.float32])
@pytest.mark.parametrize("shape", [(40, 40), (8, 200), (1, 1)])
def test_a_row_is_wider_with_more_images(tmp_path: Path, shape: tuple[int, int], dtype: type) -> None:
    image = np.random.default_rng(0).poisson(3, shape).astype(dtype)
    draw_row(tmp_path / "one.png", {"a": image})
    draw_row(tmp_path / "row.png", {str(i): image for i in range(3)})
    one, row = size_of(tmp_path / "one.png"), size_of(tmp_path / "row.png")
    assert row[1] == one[1]
    assert abs(row[0] - 3 * one[0]) <= 3
    assert max(row) < 4000


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_last_image_sets_the_scale(tmp_path: Path) -> None:
    dim, bright = np.full((20, 20), 1.0), np.full((20, 20), 10.0)
    draw_row(tmp_path / "a.png", {"dim": dim, "bright": bright})
    draw_row(tmp_path / "b.png", {"dim": 10 * dim, "bright": 10 * bright})
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    drawn = pixels(tmp_path / "a.png")
    height, width = drawn.shape[:2]
    left, right = drawn[height // 2, width // 4], drawn[height // 2, 3 * width // 4]
    assert right.sum() > 600 > 200 > left.sum()


def test_no_display_is_needed_and_no_global_state_is_made(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport numpy as np\nfrom gap_bioimage.pictures import draw_row\n"
        f"draw_row(Path({str(tmp_path / 'a.png')!r}), {{'a': np.eye(9)}})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), "MPLBACKEND": "TkAgg"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()


def test_a_posterior_has_counts_samples_and_their_deviation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.poisson(3.0, (20, 30)).astype(float) for name in ("counts", "mmse", "sample")}
    draw_posterior(tmp_path / "p.png", images, np.zeros((20, 30)))
    draw_posterior(tmp_path / "q.png", {"counts": images["counts"], "mmse": images["mmse"]}, images["counts"])
    assert size_of(tmp_path / "p.png")[0] > size_of(tmp_path / "q.png")[0]
