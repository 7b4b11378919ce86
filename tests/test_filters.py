"""The filters of the anchor: borders, slopes, and hot pixels."""

import numpy as np
import torch

from gap_bioimage.anchor import Anchor
from gap_bioimage.filters import blur, curvatures, hot_pixels, slopes


def test_spots_are_not_hot_however_bright() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-8:9, -8:9]
    for sigma in (0.7, 1.0, 2.0):
        for peak in (30, 1000, 60000):
            spot = peak * np.exp(-(y**2 + x**2) / (2 * sigma**2))
            assert not hot_pixels(torch.from_numpy(rng.poisson(spot).astype(np.float32))).any()


def test_slopes_and_curvatures_are_those_of_polynomials() -> None:
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    image = (3 * x * x - y * y + 5 * x * y)[None, None]
    along_x, along_y = slopes(image)
    torch.testing.assert_close(along_x[0, 0, 1:-1, 1:-1], (6 * x + 5 * y)[1:-1, 1:-1])
    torch.testing.assert_close(along_y[0, 0, 1:-1, 1:-1], (5 * x - 2 * y)[1:-1, 1:-1])
    for step in (1, 3):
        straight, diagonal = curvatures(image, step)
        inside = (..., slice(step, -step), slice(step, -step))
        torch.testing.assert_close(straight[inside], torch.full_like(straight[inside], 8.0 * step**2))
        torch.testing.assert_close(diagonal[inside], torch.full_like(diagonal[inside], 10.0 * step**2))
    for values in (*slopes(torch.ones(1, 1, 2, 1)), *curvatures(torch.ones(1, 1, 2, 1), 3)):
        assert torch.equal(values, torch.zeros(1, 1, 2, 1))  # pixels at a border are repeated beyond it


def test_filters_average_what_is_there_at_borders() -> None:
    anchor = Anchor(3)
    for size in ((1, 1, 1), (3, 5, 7), (9, 18, 31)):
        for number in range(2 * anchor.n_scales):
            torch.testing.assert_close(anchor.smooth(torch.full((1, *size), 2.5), number), torch.full((1, *size), 2.5))
    row = torch.arange(6.0).reshape(1, 1, 1, 6)
    np.testing.assert_allclose(blur(row, [1.0, 0.5], -1).flatten(), [0.5, 2, 4, 6, 8, 7])
