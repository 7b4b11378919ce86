"""What a zip is given: photon counts, raw images of a camera, or sums of one-bit frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import ExportError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gap_bioimage.camera.camera import Detector
    from gap_bioimage.model import CameraLike, Model


@dataclass(frozen=True)
class Intake:
    """How the input of a zip becomes counts, and what its modules have to know of it.

    Attributes
    ----------
    detector
        The camera, without maps: ``scale_linear`` has one gain and one offset.
    ceiling
        Number of one-bit frames in each image.
    """

    detector: Detector | None = None
    ceiling: int | None = None

    @classmethod
    def of(cls, model: Model, camera: CameraLike = "model") -> Intake:
        """Return what a zip of the model is given: what the model was trained on, or images of another camera.

        Raises
        ------
        ExportError
            If a camera is given to a model of one-bit frames.
        """
        ceiling = model.n_frames
        detector = model.camera_for(camera)
        if ceiling is not None and detector is not None:
            raise ExportError("the model was trained on one-bit frames, which need no camera; leave --camera out")
        return cls(None if detector is None else detector.scalar, ceiling)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the zip's module."""
        if self.detector is not None:
            return {"rounded": True, "background": self.detector.background()}
        return {} if self.ceiling is None else {"ceiling": self.ceiling}

    @property
    def facts(self) -> dict[str, Any]:
        """For ``config.gap_bioimage``: where the numbers of the preprocessing come from."""
        if self.detector is not None:
            camera = self.detector.camera.model_dump(mode="json", exclude={"maps"})
            return {"camera": {**camera, "shift": self.detector.shift(), "background": self.detector.background()}}
        return {} if self.ceiling is None else {"ceiling": self.ceiling}

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Preprocessing of the RDF: camera values to electrons, with the variance of the read noise added."""
        if self.detector is None:
            return []
        gain, offset = self._scale()
        return [{"id": "scale_linear", "kwargs": {"gain": gain, "offset": offset}}]

    @property
    def description(self) -> str:
        """What the input is."""
        if self.detector is not None:
            return "raw camera image (ADU), as recorded; offset and gain of the camera are taken care of"
        if self.ceiling is not None:
            return f"sum of {self.ceiling} one-bit frames, 0 to {self.ceiling} per pixel; no normalisation is needed"
        return "photon counts per pixel, as recorded; no normalisation is needed"

    @property
    def noun(self) -> str:
        """What the input is, in two words."""
        return "raw camera images" if self.detector is not None else "the counts"

    def counts(self, values: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Return the counts of input values; ``rng`` spreads them as in training."""
        return values if self.detector is None else self.detector.counts(values, rng)

    def preprocess(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the preprocessing as programs do."""
        if self.detector is None:
            return values
        gain, offset = self._scale()
        return (values * np.float32(gain) + np.float32(offset)).astype(np.float32)

    def values_of(self, counts: NDArray[Any]) -> NDArray[Any]:
        """Return input values that the preprocessing turns into these counts."""
        if self.detector is None:
            return counts
        gain, offset = self._scale()
        return (counts - offset) / gain

    def _scale(self) -> tuple[float, float]:
        """Gain and offset of ``scale_linear``."""
        assert self.detector is not None  # noqa: S101
        camera, shift = self.detector.camera, self.detector.shift()
        assert isinstance(shift, float)  # noqa: S101
        return 1 / camera.gain, shift - camera.offset / camera.gain
