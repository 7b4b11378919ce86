"""BioEngine, the server that runs models for the zoo's web pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import BLOCKS, DEGRADES, STYLE, Source, rule
from gap_bioimage.validation.consumers import consumer
from gap_bioimage.validation.rules import questions

if TYPE_CHECKING:
    from gap_bioimage.validation.model import Model

# fmt: off
_READS = (
    "torchscript",
    "onnx",
    "pytorch_state_dict",
    "keras_hdf5",
    "keras_v3",
    "tensorflow_saved_model_bundle",
)
_RUNTIME = Source("BioEngine", "apps/model-runner", "2026-08-22", "2026-11")
_THERE = questions.ALWAYS_THERE | {
    "torchvision",
    "onnxruntime",
    "tensorflow",
    "keras",
    "careamics",
    "cellpose",
    "stardist",
    "timm",
}
consumer("bioengine", "BioEngine",
         "BioEngine is the server that runs models for web pages, such as the zoo's daily tests: bioimageio.core "
         "0.10.4 with torch 2.5.1, on one core with 12 GiB, 300 s a test.", 9, reads=_READS)


@rule("bioengine.weights_format", BLOCKS, _RUNTIME,
      breaks="BioEngine runs torchscript, onnx, pytorch_state_dict, Keras and TensorFlow",
      fix="Add torchscript weights.")
def weights_format(model: Model) -> str | None:
    """Weights other than tensorflow_js."""
    return questions.lacks_weights(model, _READS)


rule("bioengine.format_version", BLOCKS, _RUNTIME, repair="lower_format",
     breaks="BioEngine's bioimageio.spec 0.5.10.2 does not read it", fix=questions.FORMAT_059)(questions.format_version)

rule("bioengine.plain_strings", BLOCKS, _RUNTIME, repair="plain_strings",
     breaks="BioEngine's bioimageio.spec 0.5.10.2 refuses it", fix=questions.PLAIN_STRINGS)(questions.plain_strings)


@rule("bioengine.imports", BLOCKS, _RUNTIME, weights=("pytorch_state_dict",),
      breaks="BioEngine has torch, torchvision, timm, careamics, cellpose, stardist, TensorFlow, and tests all weights",
      fix="Write the architecture with these, or leave the state_dict out and give torchscript.")
def imports(model: Model) -> str | None:
    """Architecture code that imports only what BioEngine has."""
    return questions.foreign_imports(model, _THERE)


@rule("bioengine.arguments", BLOCKS, _RUNTIME, weights=("pytorch_state_dict",),
      breaks="BioEngine hands over numbers, booleans and texts, and lists of them",
      fix="Build other objects inside the architecture's code.")
def arguments(model: Model) -> str | None:
    """Keyword arguments of the architecture that are plain values."""
    given = model.architecture.get("kwargs")
    odd = [name for name, value in given.items() if not _is_plain(value)] if isinstance(given, dict) else []
    return f"the argument {odd[0]!r} of the architecture is not plain" if odd else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


rule("bioengine.archive_ops", DEGRADES, _RUNTIME, weights=("torchscript",),
     breaks="BioEngine's torch 2.5.1 may not load it", fix=questions.OLDER_OPERATORS)(questions.unportable)

rule("bioengine.custom_ops", STYLE, _RUNTIME,
     breaks="BioEngine's bioimageio.core 0.10.4 runs it unasked, with the libraries that are there",
     fix="See that the code imports what BioEngine has, or put it into the graph.")(questions.custom_processing)
