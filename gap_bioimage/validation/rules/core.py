"""bioimageio.core, the Python library: what it does with a model beyond its own test, and what older ones refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import DEGRADES, NotApplicable, Source, rule
from gap_bioimage.validation.consumers import consumer
from gap_bioimage.validation.rules import questions

if TYPE_CHECKING:
    from gap_bioimage.validation.model import Model

# fmt: off
consumer("core", "bioimageio.core",
         "bioimageio.core is the Python library that most programs use to run models. It runs weights with the torch, "
         "ONNX Runtime or TensorFlow that is installed next to it.", 2, base=True)
_SPEC = Source("bioimageio.spec", "model/v0_5.py, ReproducibilityTolerance", "0.5.12", "2026-11")
_CORE = Source("bioimageio.core", "run in several versions", "0.9.6 to 0.11", "2026-11")
_MAX_RTOL = 0.01
_MAX_ATOL_SHARE = 0.01
_MAX_PPM = 5000
_MAX_PPM_0_9 = 1000


def tolerances(model: Model) -> list[dict[str, Any]]:
    """The tolerances of the test that a description states."""
    section = (model.rdf.get("config") or {}).get("bioimageio") or {}
    listed = section.get("reproducibility_tolerance") or []
    return [entry for entry in listed if isinstance(entry, dict)]


def number(entry: dict[str, Any], key: str) -> float:
    """A number of a tolerance; 0 if it is not stated."""
    return float(entry.get(key) or 0)


@rule("core.reproducibility_tolerance", DEGRADES, _SPEC,
      breaks="the test proves less than it should, and some versions of bioimageio.core refuse the model",
      fix="State the smallest tolerance with which the test passes, in config.bioimageio.reproducibility_tolerance.")
def reproducibility_tolerance(model: Model) -> str | None:
    """A tolerance of the test, if one is stated, that is small."""
    for entry in tolerances(model):
        rtol, ppm = number(entry, "relative_tolerance"), number(entry, "mismatched_elements_per_million")
        if rtol > _MAX_RTOL:
            return f"relative_tolerance is {rtol:g}, at most {_MAX_RTOL:g} is allowed"
        if ppm > _MAX_PPM_0_9:
            limits = f"at most {_MAX_PPM_0_9} are allowed by bioimageio.core 0.9 and {_MAX_PPM} by newer ones"
            return f"mismatched_elements_per_million is {ppm:g}, {limits}"
        if model.with_files and (problem := _absolute(model, entry)):
            return problem
    return None


def _absolute(model: Model, entry: dict[str, Any]) -> str | None:
    """Compare an absolute tolerance with the outputs that it is for."""
    import numpy as np

    atol, ids = number(entry, "absolute_tolerance"), entry.get("output_ids") or []
    for tensor in model.outputs:
        path = model.file_of(tensor.written.get("test_tensor"))
        if not atol or path is None or path.suffix != ".npy" or (ids and tensor.id not in ids):
            continue
        largest = float(np.abs(np.load(path, mmap_mode="r", allow_pickle=False)).max())
        if atol > _MAX_ATOL_SHARE * largest:
            return f"absolute_tolerance is {atol:g}, above 1 % of the largest value {largest:g} of {tensor.id!r}"
    return None


@rule("core.output_channel", DEGRADES, _CORE, breaks="predicting large images block by block fails",
      fix="Keep an axis with the id channel on every output, also for a single channel.")
def output_channel(model: Model) -> str | None:
    """An axis with the id channel on every output."""
    without = [repr(tensor.id) for tensor in model.outputs if "channel" not in tensor.axis_ids]
    return f"{', '.join(without)} has no axis with the id channel" if without else None


rule("core.custom_ops", DEGRADES, _CORE, breaks="bioimageio.core before 0.10.3 refuses the whole model",
     fix="Put the step into the network's graph, or tell users which version they need.")(questions.custom_processing)


@rule("core.dependencies", DEGRADES, _CORE, weights=("pytorch_state_dict",),
      breaks="it runs only where these are installed",
      fix="Add torchscript weights, or an architecture that needs nothing but torch and numpy.")
def dependencies(model: Model) -> str | None:
    """Where a state_dict is all there is: an architecture without dependencies of its own."""
    if len(model.weights) > 1:
        raise NotApplicable("there are weights in other formats")
    if model.weights["pytorch_state_dict"].get("dependencies"):
        return "the weights have dependencies of their own"
    return questions.foreign_imports(model, questions.ALWAYS_THERE)
