"""Masks, labels and one-bit frames, which few values tell from images."""

import numpy as np
import pytest
from made_images import image
from scipy import ndimage
from test_inspection import Values, judged, light

from gap_bioimage.inspection import inspect
from gap_bioimage.judging import judge_image


def regions(count: int, size: int = 128) -> Values:
    y, x = np.mgrid[:size, :size]
    seeds = np.random.default_rng(3).uniform(0, size, (count, 2))
    return np.asarray(np.argmin([(y - row) ** 2 + (x - column) ** 2 for row, column in seeds], axis=0))


def spots(reach: int = 3, count: int = 20) -> Values:
    labels = np.zeros((64, 64), np.int32)
    for number, (y, x) in enumerate(np.random.default_rng(2).integers(5, 59, (count, 2))):
        labels[y - reach : y + reach + 1, x - reach : x + reach + 1] = number + 1
    return labels


MASK = light(1.0) > np.quantile(light(1.0), 0.7)
MASKS = {
    "true": MASK,
    "outlines": (MASK ^ ndimage.binary_erosion(MASK)).astype(np.uint8) * 255,
    **{f"0 and {top}": MASK.astype(np.uint8) * top for top in (1, 255, 7)},
    "0, 128 and 255": np.array([0, 128, 255], np.uint8)[np.uint8(MASK) + ndimage.binary_dilation(MASK, iterations=4)],
    "labels": ndimage.label(MASK)[0],
    "small labels": spots(),
    "small classes": 1 + spots(1, 60) % 3,
    "no background": 7 * (regions(12) + 1),
    **{f"{classes} classes": regions(40) % classes + 1 for classes in (2, 3, 5)},
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_labels_and_classes_are_to_be_left_out(name: str) -> None:
    finding = judged(MASKS[name])
    assert (finding.verdict, finding.kind, finding.refused) == ("not usable", "mask", True)
    beside = np.stack([np.random.default_rng(0).poisson(5, MASKS[name].shape), MASKS[name]])
    assert judge_image(image(beside, "cyx"), "x")[1].message.startswith("channel 1 of x holds a mask or labels")


@pytest.mark.parametrize("one", [1, 255])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_bit_frames_are_no_masks(one: int, share: float) -> None:
    bits = (np.random.default_rng(0).random((16, 64, 64)) < share * light(1.0, 64) / light(1.0, 64).max()) * one
    finding = judged(bits.astype(np.uint8), "tyx")
    assert (finding.verdict, finding.kind) == ("photon counts", "one-bit frames")


def test_single_photons_of_255_are_not_saturated() -> None:
    finding = judged((np.random.default_rng(0).random((16, 64, 64)) < 0.003) * np.uint8(255), "tyx")
    assert (finding.verdict, finding.factor) == ("counts times k", 255)


@pytest.mark.parametrize(("one", "verdict", "factor"), [(1, "photon counts", 1), (255, "counts times k", 255)])
def test_frames_of_a_single_one_bit_frame_are_not_summed(one: int, verdict: str, factor: float) -> None:
    bit = ((np.random.default_rng(0).random((64, 64)) < 0.3) * one).astype(np.uint8)
    finding, report = judged(bit), inspect(image(bit))
    assert (finding.verdict, finding.kind, finding.factor) == (verdict, "one-bit frames", factor)
    assert finding.refused == (one != 1)
    assert "sum" not in report.message + report.next
    assert f"gain: {one}," in report.next or one == 1
