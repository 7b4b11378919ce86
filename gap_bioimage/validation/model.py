"""The model as rules see it: the description, as written and upgraded to format 0.5, and the packaged files."""

import math
import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gap_bioimage.validation.archive.description import Description
from gap_bioimage.validation.archive.files import read_array
from gap_bioimage.validation.archive.package import Package
from gap_bioimage.validation.archive.rdf import mappings
from gap_bioimage.validation.check import NotApplicable


@dataclass(frozen=True)
class Axis:
    """One axis; absent fields have the format's defaults."""

    written: dict[str, Any]
    kind: str  # batch, channel, space, time or index
    id: str
    size: int | None  # a fixed size, in pixels
    min_step: tuple[int, int] | None  # of a parameterized size, in pixels
    smallest: int  # the smallest declared size; 1 for a batch axis, and for a size that refers to another axis
    scale: float  # pixel size along the axis
    halo: int  # in output pixels

    @classmethod
    def of(cls, written: dict[str, Any]) -> Self:
        """Read an axis of format 0.5."""
        kind, declared = str(written.get("type", "")), written.get("size")
        size = declared if isinstance(declared, int) else None
        is_parameterized = isinstance(declared, dict) and {"min", "step"} <= declared.keys()
        min_step = (int(declared["min"]), int(declared["step"])) if is_parameterized and declared else None
        smallest = {"batch": 1, "channel": len(written.get("channel_names") or [""])}.get(kind)
        smallest = smallest or (min_step[0] if min_step else size or 1)
        name = str(written.get("id") or ("x" if kind == "space" else kind))
        name = "channel" if (kind, name) == ("channel", "c") else name  # as bioimageio.core reads it
        scale, halo = float(written.get("scale", 1.0)), int(written.get("halo") or 0)
        return cls(written, kind, name, size, min_step, smallest, scale, halo)


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    written: dict[str, Any]
    id: str
    axes: list[Axis]
    data_type: str  # empty if each channel has its own
    steps: list[dict[str, Any]]  # pre- or postprocessing

    @classmethod
    def of(cls, written: dict[str, Any], default_id: str = "") -> Self:
        """Read a tensor of format 0.5; ``default_id`` applies if it has no id."""
        data = written.get("data")
        data_type = str(data.get("type", "float32")) if isinstance(data, dict) else "" if data else "float32"
        steps = [step for key in ("preprocessing", "postprocessing") for step in mappings(written.get(key))]
        axes = [Axis.of(axis) for axis in mappings(written.get("axes"))]
        return cls(written, str(written.get("id") or default_id), axes, data_type, steps)

    @property
    def axis_ids(self) -> list[str]:
        """Ids of the axes, in order."""
        return [axis.id for axis in self.axes]


@dataclass(frozen=True)
class Model:
    """The subject of rules: a package with its description as bioimageio.spec reads it."""

    package: Package
    valid: Description | None = None  # the description as bioimageio.spec reads it; None if invalid
    with_files: bool = True  # if False, no question about files applies

    @property
    def rdf(self) -> dict[str, Any]:
        """The description as written."""
        return self.package.rdf

    @cached_property
    def version(self) -> str:
        """``format_version`` as written; empty if it is not a version number."""
        written = self.rdf.get("format_version")
        text = written if isinstance(written, str) else repr(written) if isinstance(written, int | float) else ""
        return text if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})*", text) else ""

    @property
    def version_numbers(self) -> tuple[int, ...]:
        """``format_version`` as numbers."""
        return tuple(map(int, self.version.split("."))) if self.version else ()

    @cached_property
    def descr(self) -> dict[str, Any]:
        """The description in format 0.5; `NotApplicable` if it is written in another format and invalid."""
        if self.version_numbers[:2] == (0, 5):  # as written, without the defaults that bioimageio.spec would add
            return self.rdf
        if self.valid is None or self.valid.plain is None:
            raise NotApplicable("the description cannot be read as format 0.5, see format.valid")
        read = dict(self.valid.plain.model_dump(mode="json"))
        for key in ("inputs", "outputs") if self.valid.upgraded is None else ():  # what the upgrade refuses, as written
            for tensor, old in zip(read[key], self.rdf[key], strict=True):
                steps = [*(old.get("preprocessing") or []), *(old.get("postprocessing") or [])]
                tensor["preprocessing"] = [{"id": step["name"], "kwargs": step.get("kwargs")} for step in steps]
                for axis, halo in zip(tensor["axes"], old.get("halo") or (), strict=False):
                    axis["halo"] = halo
        return read

    @cached_property
    def inputs(self) -> list[Tensor]:
        """The inputs."""
        return [Tensor.of(tensor, "input") for tensor in mappings(self.descr.get("inputs"))]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """The outputs."""
        return [Tensor.of(tensor, "output") for tensor in mappings(self.descr.get("outputs"))]

    @property
    def tensors(self) -> list[Tensor]:
        """Inputs, then outputs."""
        return [*self.inputs, *self.outputs]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """All processing steps."""
        return [step for tensor in self.tensors for step in tensor.steps]

    @property
    def weights(self) -> dict[str, dict[str, Any]]:
        """The entries of the weights, by format."""
        written = self.rdf.get("weights")
        entries = written.items() if isinstance(written, dict) else ()
        return {key: entry for key, entry in entries if isinstance(key, str) and isinstance(entry, dict)}

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """The state_dict's ``callable``, ``source`` or ``import_from``, and ``kwargs``; empty if there is none."""
        entry = self.weights.get("pytorch_state_dict", {})
        written = entry.get("architecture")
        if not isinstance(written, str):
            return written if isinstance(written, dict) else {}
        # format 0.4: unet.py:UNet2d or plantseg.model.UNet3D
        where, _, name = written.rpartition(":" if ":" in written else ".")
        return {"callable": name, "source" if ":" in written else "import_from": where, "kwargs": entry.get("kwargs")}

    def texts(self, key: str) -> list[str]:
        """Return the strings in a list field."""
        items = self.rdf.get(key)
        return [item for item in items if isinstance(item, str)] if isinstance(items, list) else []

    def mappings(self, key: str) -> list[dict[str, Any]]:
        """Return the mappings in a list field."""
        return mappings(self.rdf.get(key))

    def need_files(self) -> Package:
        """Return the package; `NotApplicable` if only the description is validated."""
        if not self.with_files:
            raise NotApplicable("only the description was validated")
        return self.package

    def file_of(self, value: object) -> Path | None:
        """Return the packaged file for a path or a ``{source, sha256}`` entry; None if it is absent."""
        return self.need_files().file(source_of(value))

    def test_array(self, tensor: Tensor) -> Any:
        """Return a tensor's test array, memory-mapped; None if it is not an .npy file in the package."""
        path = self.file_of(tensor.written.get("test_tensor"))
        if path is None or path.suffix != ".npy":
            return None
        try:
            return read_array(path)
        except (ValueError, OSError):
            raise NotApplicable(f"{path.name} cannot be read, see archive.tensors") from None

    @cached_property
    def halo_of_input(self) -> dict[tuple[str, str], float]:
        """Halo in input pixels by (input id, axis id), from the outputs that refer to it."""
        scales = {(tensor.id, axis.id): axis.scale for tensor in self.inputs for axis in tensor.axes}
        halos: dict[tuple[str, str], float] = {}
        for axis in (axis for tensor in self.outputs for axis in tensor.axes):
            size = axis.written.get("size")
            if axis.halo and isinstance(size, dict) and "axis_id" in size:
                key = (str(size.get("tensor_id")), str(size["axis_id"]))
                halos[key] = max(halos.get(key, 0.0), axis.halo * axis.scale / scales.get(key, 1.0))
        return halos


def with_infinities(rdf: dict[str, Any]) -> dict[str, Any]:
    """Restore the infinities of ``data_range`` (format 0.4), which descriptions lose when they pass through JSON."""
    restored = deepcopy(rdf)
    for tensor in (*mappings(restored.get("inputs")), *mappings(restored.get("outputs"))):
        match tensor.get("data_range"):
            case [low, high]:
                tensor["data_range"] = [-math.inf if low is None else low, math.inf if high is None else high]
    return restored


def source_of(value: object) -> object:
    """Return the path in a file's entry, which is the path alone or ``{source, sha256}``."""
    return value.get("source") if isinstance(value, dict) else value
