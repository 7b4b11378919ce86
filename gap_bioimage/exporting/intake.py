"""The input of a zip: photon counts, raw camera images or sums of one-bit frames; and examples of it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from gap_bioimage.camera.camera import Detector, check_camera_image
from gap_bioimage.counts import check_whole_numbers, thin
from gap_bioimage.errors import ExportError
from gap_bioimage.io import read_photons
from gap_bioimage.model import CameraLike, Model
from gap_bioimage.validation.archive.files import read_array

_REGION_PX = {2: (8, 8), 3: (4, 8, 8)}
_TOTAL_PHOTONS, _PHOTONS_PER_SAMPLE = 100, 20  # in total over all samples, and per sample
_MIN_RATE = 0.02  # tests allow differences of 0.001

Examples = tuple[NDArray[Any], NDArray[Any] | None]
"""Values for the test tensors, and held-out ones or None, (c, [z,] y, x)."""


@dataclass(frozen=True)
class Intake:
    """How the input of a zip becomes counts: by a camera (without maps), or as sums of ``ceiling`` one-bit frames."""

    detector: Detector | None = None
    ceiling: int | None = None

    @classmethod
    def of(cls, model: Model, camera: CameraLike = "model") -> Self:
        """Return the intake of the training, or of another camera; `ExportError` for one-bit frames with a camera."""
        detector = model.camera_for(camera)
        if model.n_frames is not None and detector is not None:
            raise ExportError("the model was trained on one-bit frames, which need no camera; leave the camera out")
        return cls(None if detector is None else detector.scalar, model.n_frames)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the zip's module."""
        if self.detector is not None:
            noise = {"shift": self.detector.shift()} if self.detector.moved else {"rounded": True}
            return {"background": self.detector.background(), **noise}
        return {} if self.ceiling is None else {"ceiling": self.ceiling}

    @property
    def facts(self) -> dict[str, Any]:
        """For ``config.gap_bioimage``: the source of the numbers in the preprocessing."""
        if self.detector is None:
            return self.arguments
        camera = self.detector.camera.model_dump(mode="json", exclude={"maps"})
        return {"camera": {**camera, "shift": self.detector.shift(), "background": self.detector.background()}}

    @property
    def scale(self) -> dict[str, Any] | None:
        """Arguments of ``scale_linear``: camera values to electrons, with the variance of other noise added."""
        if self.detector is None:
            return None
        camera = self.detector.camera
        return {"gain": 1 / camera.gain, "offset": self.detector.shift() - camera.offset / camera.gain}

    @property
    def noun(self) -> str:
        """A short name of the input."""
        if self.detector is not None:
            return "raw camera images"
        return "photon counts" if self.ceiling is None else f"sums of {self.ceiling} one-bit frames"

    @property
    def description(self) -> str:
        """The description of the input in the RDF."""
        if self.detector is not None:
            return "raw camera image (ADU), as recorded; the model accounts for the offset and gain of the camera"
        if self.ceiling is not None:
            return f"sum of {self.ceiling} one-bit frames, 0 to {self.ceiling} per pixel; no normalisation is needed"
        return "photon counts per pixel, as recorded; no normalisation is needed"

    def counts(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Return the counts of input values, spread by ``rng`` as in training."""
        return values if self.detector is None else self.detector.counts(values, rng)

    def preprocess(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the preprocessing as other programs do."""
        if (scale := self.scale) is None:
            return values
        return (values * np.float32(scale["gain"]) + np.float32(scale["offset"])).astype(np.float32)

    def values_of(self, counts: NDArray[Any]) -> NDArray[Any]:
        """Return input values that the preprocessing turns into these counts."""
        scale = self.scale
        return counts if scale is None else (counts - scale["offset"]) / scale["gain"]


def example_values(model: Model, intake: Intake, test_image: xr.DataArray | str | Path | None) -> Examples:
    """Return input values of a test image, or else of the model's run folder; `ExportError` if there are none."""
    if test_image is not None:
        return _largest_stack(model, intake, test_image), None
    folder = model.source.parent
    if not (folder / "example.npy").is_file():
        raise ExportError(
            f"{model.source} contains no counts for the test tensors; give an image of real counts with test_image "
            "(--test-image)"
        )
    try:
        example, held_out = (np.array(read_array(folder / name)) for name in ("example.npy", "held_out.npy"))
    except (ValueError, OSError) as error:
        raise ExportError(f"an example in {folder} is damaged ({error}); give a test_image (--test-image)") from None
    own = Intake.of(model)
    if own == intake:
        return example, held_out
    # the zip is for another camera: the values that it would have recorded
    return intake.values_of(own.counts(example)), intake.values_of(own.counts(held_out))


def _largest_stack(model: Model, intake: Intake, test_image: xr.DataArray | str | Path) -> np.ndarray:
    from gap_bioimage.training.patches import as_stacks

    is_counts = intake == Intake()
    image = read_photons(test_image, check=is_counts) if isinstance(test_image, (str, Path)) else test_image
    stacks = [stack.values for stack in as_stacks([image], model.config.dim)]
    if len(stacks[0]) != model.config.channels:
        raise ExportError(f"the test image has {len(stacks[0])} channels, the model expects {model.config.channels}")
    if intake.detector is None:
        check_whole_numbers(image, name="the test image")
    else:
        check_camera_image(image, intake.detector, name="the test image")
    largest = np.asarray(max(stacks, key=lambda values: float(values.mean())))
    if intake.ceiling is not None and (highest := float(image.max())) > intake.ceiling:
        raise ExportError(f"the test image contains up to {highest:g} photons in a pixel, expected {intake.noun}")
    if not intake.counts(largest).any():
        raise ExportError("the test image contains no photons, so it cannot test anything; give an image of a sample")
    return largest


def brightest_piece(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the piece (c, [z,] y, x) with the most photons, pieces overlapping by half; mirrored up if too small."""
    padding = [(0, max(0, width - length)) for width, length in zip(size, image.shape[1:], strict=True)]
    image = np.pad(image, [(0, 0), *padding], mode="symmetric")
    lengths = zip(image.shape[1:], size, strict=True)
    starts = itertools.product(*(range(0, length - width + 1, max(1, width // 2)) for length, width in lengths))
    cuts = [tuple(slice(s, s + width) for s, width in zip(start, size, strict=True)) for start in starts]
    return max((image[(slice(None), *cut)] for cut in cuts), key=lambda piece: float(piece.sum(dtype=np.float64)))


def sparse_counts(counts: np.ndarray, n_samples: int, denoise: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Keep few photons of counts (c, [z,] y, x), close together: a test input with reproducible samples.

    A sampler adds photons by the hundred. For each there is a chance of about 1e-6 that the rounding of another
    processor, number of threads or engine moves it, and the samples differ from there on: those of whole images cannot
    be reproduced elsewhere. Those of some tens of photons can.

    Enough photons are kept for ``denoise`` to return rates well above the absolute tolerance of tests.
    """
    size = counts.shape[1:]
    region = brightest_piece(counts, [min(*pair) for pair in zip(_REGION_PX[len(size)], size, strict=True)])
    # off centre, so that a mirrored output fails the test
    starts = [min(s // 4, s - r) for s, r in zip(size, region.shape[1:], strict=True)]
    index = (slice(None), *(slice(start, start + r) for start, r in zip(starts, region.shape[1:], strict=True)))
    sparse, total = np.zeros_like(counts, dtype=np.int64), int(region.sum(dtype=np.int64))
    n_photons = max(_PHOTONS_PER_SAMPLE, _TOTAL_PHOTONS // n_samples)
    while True:
        fraction = min(1.0, n_photons / max(total, 1))
        sparse[index] = thin(region.astype(np.int64), fraction, 0)[0]
        with torch.inference_mode():
            brightest = float(denoise(torch.from_numpy(sparse.astype(np.float32))[None]).max())
        if fraction == 1.0 or brightest >= _MIN_RATE:
            return sparse
        n_photons *= 2
