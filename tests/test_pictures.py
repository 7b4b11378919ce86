"""Pictures of counts: PNG files of a sensible size, without a display."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gap_bioimage.pictures import draw_grid, draw_posterior, in_rows


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        size: tuple[int, int] = picture.size
    return size


@pytest.mark.parametrize("shape", [(40, 40), (8, 200), (1, 1)])
def test_a_row_is_wider_with_more_images(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).poisson(3, shape)
    for name, count in (("one.png", 1), ("row.png", 3)):
        draw_grid(tmp_path / name, [{str(i): image for i in range(count)}])
    one, row = size_of(tmp_path / "one.png"), size_of(tmp_path / "row.png")
    assert row[1] == one[1]
    assert abs(row[0] - 3 * one[0]) <= 3
    assert max(row) < 4000


def test_strips_become_rows_and_other_images_stay() -> None:
    strip, square = np.arange(8.0 * 200).reshape(8, 200), np.ones((30, 40))
    rows = in_rows(strip)
    assert rows.shape == (5 * 9 - 1, 40) and np.isnan(rows[8::9]).all()
    np.testing.assert_array_equal(rows[9:17], strip[:, 40:80])
    np.testing.assert_array_equal(in_rows(strip.T), rows)
    np.testing.assert_array_equal(in_rows(square), square)


def test_the_last_image_sets_the_scale(tmp_path: Path) -> None:
    drawn = []
    for name, factor in (("a.png", 1.0), ("b.png", 10.0)):
        draw_grid(tmp_path / name, [{"dim": np.full((20, 20), factor), "bright": np.full((20, 20), 10 * factor)}])
        drawn.append(np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int))
    np.testing.assert_array_equal(*drawn)
    height, width = drawn[0].shape[:2]
    left, right = drawn[0][height // 2, width // 4], drawn[0][height // 2, 3 * width // 4]
    assert right.sum() > 600 > 200 > left.sum()


def test_a_posterior_has_counts_samples_and_their_deviation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.poisson(3.0, (20, 30)).astype(float) for name in ("counts", "mmse", "sample")}
    draw_posterior(tmp_path / "p.png", images, np.zeros((20, 30)))
    draw_posterior(tmp_path / "q.png", {"counts": images["counts"], "mmse": images["mmse"]}, images["counts"])
    assert size_of(tmp_path / "p.png")[0] > size_of(tmp_path / "q.png")[0]
