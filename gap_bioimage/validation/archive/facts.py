"""A forgiving view of a description as written: what the consumer rules ask, without bioimageio.spec."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.archive.package import Package

_DEFAULT_IDS = {"batch": "batch", "channel": "channel", "time": "time", "space": "x", "index": "index"}


@dataclass(frozen=True)
class Axis:
    """One axis as written; absent fields have the format's defaults."""

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
    def min_step(self) -> tuple[int, int] | None:
        """``(min, step)`` of a size that is a choice, in pixels; None for other sizes."""
        size = self.written.get("size")
        if isinstance(size, dict) and "min" in size and "step" in size:
            return int(size["min"]), int(size["step"])
        return None

    @property
    def scale(self) -> float:
        """Pixel size along the axis."""
        return float(self.written.get("scale", 1.0))

    @property
    def halo(self) -> int:
        """Halo in output pixels."""
        return int(self.written.get("halo", 0))


@dataclass(frozen=True)
class TensorFacts:
    """One input or output as written in format 0.5."""

    written: dict[str, Any]

    @property
    def id(self) -> str:
        """The tensor id."""
        return str(self.written.get("id", ""))

    @cached_property
    def axes(self) -> list[Axis]:
        """The axes, in order."""
        listed = self.written.get("axes")
        return [Axis(axis) for axis in listed if isinstance(axis, dict)] if isinstance(listed, list) else []

    @property
    def axis_ids(self) -> list[str]:
        """Ids of the axes, in order."""
        return [axis.id for axis in self.axes]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The processing steps."""
        lists = [self.written.get(key) for key in ("preprocessing", "postprocessing")]
        return [step for listed in lists if isinstance(listed, list) for step in listed if isinstance(step, dict)]


@dataclass(frozen=True)
class Facts:
    """What a rule may ask of a package."""

    package: Package

    @property
    def rdf(self) -> dict[str, Any]:
        """The description as parsed."""
        return self.package.rdf

    @cached_property
    def version(self) -> tuple[int, ...]:
        """``format_version`` as numbers; empty if it has none."""
        written = self.rdf.get("format_version")
        text = written if isinstance(written, str) else repr(written) if isinstance(written, int | float) else ""
        parts = text.split(".")
        # int() also takes other scripts' digits, but not all that isdigit() takes, nor endless ones
        is_version = all(re.fullmatch("[0-9]{1,9}", part) for part in parts)
        return tuple(int(part) for part in parts) if is_version else ()

    @property
    def is_05(self) -> bool:
        """Whether it is written in format 0.5."""
        return self.version[:2] == (0, 5)

    @cached_property
    def inputs(self) -> list[TensorFacts]:
        """The inputs (format 0.5)."""
        return _tensors(self.rdf.get("inputs"))

    @cached_property
    def outputs(self) -> list[TensorFacts]:
        """The outputs (format 0.5)."""
        return _tensors(self.rdf.get("outputs"))

    @property
    def weights(self) -> dict[str, dict[str, Any]]:
        """The weights entries by format."""
        found = self.rdf.get("weights")
        if not isinstance(found, dict):
            return {}
        return {key: entry for key, entry in found.items() if isinstance(key, str) and isinstance(entry, dict)}

    def texts(self, key: str) -> list[str]:
        """The strings in a list field."""
        found = self.rdf.get(key)
        return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []

    def mappings(self, key: str) -> list[dict[str, Any]]:
        """The mappings in a list field."""
        found = self.rdf.get(key)
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    def file_of(self, value: object) -> Path | None:
        """The packaged file behind a path or a ``{source, sha256}`` entry."""
        return self.package.file(value.get("source") if isinstance(value, dict) else value)

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


def _tensors(listed: Any) -> list[TensorFacts]:
    return [TensorFacts(item) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
