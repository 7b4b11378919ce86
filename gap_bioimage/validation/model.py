"""The model as rules see it: the description as written, the same upgraded to format 0.5, and the files beside it."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import NotApplicable

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.package.archive import Package

_DEFAULT_IDS = {"batch": "batch", "channel": "channel", "time": "time", "space": "x", "index": "index"}


@dataclass(frozen=True)
class Axis:
    """One axis; absent fields have the format's defaults."""

    written: dict[str, Any]

    @property
    def kind(self) -> str:
        """``batch``, ``channel``, ``space``, ``time`` or ``index``."""
        return str(self.written.get("type", ""))

    @property
    def id(self) -> str:
        """The axis id."""
        return str(self.written.get("id") or _DEFAULT_IDS.get(self.kind, ""))

    @property
    def size(self) -> int | None:
        """A fixed size, in pixels."""
        size = self.written.get("size")
        return size if isinstance(size, int) else None

    @property
    def min_step(self) -> tuple[int, int] | None:
        """``(min, step)`` of a size that is a choice, in pixels; None for other sizes."""
        size = self.written.get("size")
        if isinstance(size, dict) and "min" in size and "step" in size:
            return int(size["min"]), int(size["step"])
        return None

    @property
    def smallest(self) -> int:
        """The smallest declared size; 1 for a batch, and where it follows another axis."""
        if self.kind == "batch":
            return 1
        if self.kind == "channel":
            return len(self.written.get("channel_names") or [""])
        return self.min_step[0] if self.min_step else self.size or 1

    @property
    def scale(self) -> float:
        """Pixel size along the axis."""
        return float(self.written.get("scale", 1.0))

    @property
    def halo(self) -> int:
        """Halo in output pixels."""
        return int(self.written.get("halo") or 0)


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    written: dict[str, Any]

    @property
    def id(self) -> str:
        """The tensor id."""
        return str(self.written.get("id", ""))

    @cached_property
    def axes(self) -> list[Axis]:
        """The axes, in order."""
        return [Axis(axis) for axis in _mappings(self.written.get("axes"))]

    @property
    def axis_ids(self) -> list[str]:
        """Ids of the axes, in order."""
        return [axis.id for axis in self.axes]

    @property
    def data_type(self) -> str:
        """The declared data type; empty for several channels of their own."""
        data = self.written.get("data")
        return str(data.get("type", "float32")) if isinstance(data, dict) else "" if data else "float32"

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The processing steps."""
        return [step for key in ("preprocessing", "postprocessing") for step in _mappings(self.written.get(key))]


@dataclass(frozen=True)
class Model:
    """What a rule may ask.

    Parameters
    ----------
    package
        The opened package.
    upgraded
        bioimageio.spec's description object in format 0.5; None where the description is invalid or cannot be upgraded.
    with_files
        Whether there is more than the description; without, every question about a file does not apply.
    """

    package: Package
    upgraded: Any = None
    with_files: bool = True

    @property
    def is_valid(self) -> bool:
        """Whether bioimageio.spec accepts the description."""
        return self.upgraded is not None

    @property
    def rdf(self) -> dict[str, Any]:
        """The description as written."""
        return self.package.rdf

    @cached_property
    def version(self) -> str:
        """``format_version`` as written; empty if it is none."""
        written = self.rdf.get("format_version")
        text = written if isinstance(written, str) else repr(written) if isinstance(written, int | float) else ""
        return text if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})*", text) else ""

    @property
    def version_numbers(self) -> tuple[int, ...]:
        """``format_version`` as numbers."""
        return tuple(map(int, self.version.split("."))) if self.version else ()

    @cached_property
    def descr(self) -> dict[str, Any]:
        """The description in format 0.5.

        Raises
        ------
        NotApplicable
            If it is written in another format and cannot be upgraded.
        """
        if self.version_numbers[:2] == (0, 5):  # as written: what is a default is not what the author said
            return self.rdf
        if self.upgraded is None:
            raise NotApplicable("the description cannot be read as format 0.5, see format.valid")
        return dict(self.upgraded.model_dump(mode="json"))

    @cached_property
    def inputs(self) -> list[Tensor]:
        """The inputs."""
        return [Tensor(tensor) for tensor in _mappings(self.descr.get("inputs"))]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """The outputs."""
        return [Tensor(tensor) for tensor in _mappings(self.descr.get("outputs"))]

    @property
    def tensors(self) -> list[Tensor]:
        """Inputs, then outputs."""
        return [*self.inputs, *self.outputs]

    @property
    def n_dims(self) -> int:
        """Number of space axes of the first input."""
        return sum(axis.kind == "space" for axis in self.inputs[0].axes) if self.inputs else 0

    @property
    def steps(self) -> list[dict[str, Any]]:
        """All processing steps."""
        return [step for tensor in self.tensors for step in tensor.steps]

    @property
    def weights(self) -> dict[str, dict[str, Any]]:
        """The weights that are given, by format."""
        found = self.rdf.get("weights")
        given = found if isinstance(found, dict) else {}
        return {key: entry for key, entry in given.items() if isinstance(key, str) and isinstance(entry, dict)}

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """Of a state_dict: ``callable``, ``source`` or ``import_from``, and ``kwargs``; empty if there is none."""
        entry = self.weights.get("pytorch_state_dict", {})
        found = entry.get("architecture")
        if isinstance(found, dict):
            return found
        if not isinstance(found, str):
            return {}
        # format 0.4: unet.py:UNet2d or plantseg.model.UNet3D
        where, _, name = found.rpartition(":" if ":" in found else ".")
        return {"callable": name, "source" if ":" in found else "import_from": where, "kwargs": entry.get("kwargs")}

    def texts(self, key: str) -> list[str]:
        """The strings in a list field."""
        found = self.rdf.get(key)
        return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []

    def mappings(self, key: str) -> list[dict[str, Any]]:
        """The mappings in a list field."""
        return _mappings(self.rdf.get(key))

    def file_of(self, value: object) -> Path | None:
        """The packaged file behind a path or a ``{source, sha256}`` entry; None if it is not there.

        Raises
        ------
        NotApplicable
            If there is the description only.
        """
        if not self.with_files:
            raise NotApplicable("only the description was looked at")
        return self.package.file(value.get("source") if isinstance(value, dict) else value)

    def test_shape(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Shape of a tensor's test array; None where it is no .npy file in the package."""
        import numpy as np

        path = self.file_of(tensor.written.get("test_tensor"))
        if path is None or path.suffix != ".npy":
            return None
        return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)

    @cached_property
    def halo_of_input(self) -> dict[tuple[str, str], float]:
        """Halo in input pixels by (input id, axis id), from the outputs that refer to it."""
        scales = {(tensor.id, axis.id): axis.scale for tensor in self.inputs for axis in tensor.axes}
        found: dict[tuple[str, str], float] = {}
        for tensor in self.outputs:
            for axis in tensor.axes:
                size = axis.written.get("size")
                if axis.halo and isinstance(size, dict) and "axis_id" in size:
                    key = (str(size.get("tensor_id")), str(size["axis_id"]))
                    halo = axis.halo * axis.scale / scales.get(key, 1.0)
                    found[key] = max(found.get(key, 0.0), halo)
        return found


def with_infinities(rdf: dict[str, Any]) -> dict[str, Any]:
    """The description with the infinities of ``data_range`` (format 0.4) that it lost on its way through JSON."""
    restored = deepcopy(rdf)
    for key in ("inputs", "outputs"):
        for tensor in _mappings(restored.get(key)):
            limits = tensor.get("data_range")
            if isinstance(limits, list) and len(limits) == 2:
                ends = zip(limits, (float("-inf"), float("inf")), strict=True)
                tensor["data_range"] = [end if limit is None else limit for limit, end in ends]
    return restored


def _mappings(listed: object) -> list[dict[str, Any]]:
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
