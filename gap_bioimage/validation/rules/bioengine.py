"""BioEngine, the server that runs models for the zoo's web pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import Severity, Source, rule
from gap_bioimage.validation.consumers import Consumer, consumer
from gap_bioimage.validation.rules import questions

if TYPE_CHECKING:
    from gap_bioimage.validation.model import Model

_READS = (
    "torchscript", "onnx", "pytorch_state_dict", "keras_hdf5", "keras_v3", "tensorflow_saved_model_bundle",
)  # fmt: skip
_RUNTIME = Source("BioEngine", "apps/model-runner", "2026-08-22", "2026-11")
_THERE = questions.ALWAYS_THERE | {
    "torchvision", "onnxruntime", "tensorflow", "keras", "careamics", "cellpose", "stardist", "timm",
}  # fmt: skip
consumer(
    Consumer(
        "bioengine",
        "BioEngine",
        "BioEngine is the server that runs models for web pages, such as the zoo's daily tests: bioimageio.core 0.10.4 "
        "with torch 2.5.1, on one core with 12 GiB, 300 s a test.",
        9,
        reads=_READS,
    )
)


@rule(
    "bioengine.weights_format",
    Severity.BLOCKS,
    breaks="BioEngine runs torchscript, onnx, pytorch_state_dict, Keras and TensorFlow",
    fix="Add torchscript weights.",
    source=_RUNTIME,
)
def weights_format(model: Model) -> str | None:
    """Weights other than tensorflow_js."""
    return questions.lacks_weights(model, _READS)


@rule(
    "bioengine.format_version",
    Severity.BLOCKS,
    breaks="BioEngine's bioimageio.spec 0.5.10.2 does not read it",
    fix=questions.FORMAT_059,
    source=_RUNTIME,
    repair="lower_format",
)
def format_version(model: Model) -> str | None:
    """A format_version of at most 0.5.10."""
    return questions.format_version(model)


@rule(
    "bioengine.plain_strings",
    Severity.BLOCKS,
    breaks="BioEngine's bioimageio.spec 0.5.10.2 refuses it",
    fix=questions.PLAIN_STRINGS,
    source=_RUNTIME,
    repair="plain_strings",
)
def plain_strings(model: Model) -> str | None:
    """Documentation, covers and licence as plain strings."""
    return questions.plain_strings(model)


@rule(
    "bioengine.imports",
    Severity.BLOCKS,
    breaks="BioEngine has torch, torchvision, timm, careamics, cellpose, stardist, TensorFlow, and tests all weights",
    fix="Write the architecture with these, or leave the state_dict out and give torchscript.",
    source=_RUNTIME,
    weights=("pytorch_state_dict",),
)
def imports(model: Model) -> str | None:
    """Architecture code that imports only what BioEngine has."""
    return questions.foreign_imports(model, _THERE)


@rule(
    "bioengine.arguments",
    Severity.BLOCKS,
    breaks="BioEngine hands over numbers, booleans and texts, and lists of them",
    fix="Build other objects inside the architecture's code.",
    source=_RUNTIME,
    weights=("pytorch_state_dict",),
)
def arguments(model: Model) -> str | None:
    """Keyword arguments of the architecture that are plain values."""
    given = model.architecture.get("kwargs")
    odd = [name for name, value in given.items() if not _is_plain(value)] if isinstance(given, dict) else []
    return f"the argument {odd[0]!r} of the architecture is not plain" if odd else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


@rule(
    "bioengine.archive_ops",
    Severity.DEGRADES,
    breaks="BioEngine's torch 2.5.1 may not load it",
    fix=questions.OLDER_OPERATORS,
    source=_RUNTIME,
    weights=("torchscript",),
)
def archive_ops(model: Model) -> str | None:
    """TorchScript code that the oldest engine (libtorch 1.13) knows."""
    return questions.unportable(model)


@rule(
    "bioengine.custom_ops",
    Severity.STYLE,
    breaks="BioEngine's bioimageio.core 0.10.4 runs it unasked, with the libraries that are there",
    fix="See that the code imports only what BioEngine has, or put the step into the network's graph.",
    source=_RUNTIME,
)
def custom_ops(model: Model) -> str | None:
    """No processing by Python code of the package, or one that needs nothing that is not there."""
    return questions.custom_processing(model)
