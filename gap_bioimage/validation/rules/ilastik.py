"""ilastik, whose server tiktorch runs bioimageio.core on torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.check import BLOCKS, DEGRADES, NotApplicable, rule
from gap_bioimage.validation.consumers import consumer
from gap_bioimage.validation.rules import questions
from gap_bioimage.validation.rules.questions import TIKTORCH, ZOO_REPORTS

if TYPE_CHECKING:
    from gap_bioimage.validation.model import Model

# fmt: off
_READS = ("torchscript", "pytorch_state_dict")
_THERE = questions.ALWAYS_THERE | {"torchvision", "skimage"}
consumer("ilastik", "ilastik",
         "ilastik runs models as one step of a workflow, on a server (tiktorch) that holds bioimageio.core 0.10.2 and "
         "torch 2.7, and neither ONNX Runtime nor TensorFlow.", 6, reads=_READS)


rule("ilastik.format_version", BLOCKS, TIKTORCH, repair="lower_format",
     breaks="ilastik's bioimageio.core 0.10.2 refuses it", fix=questions.FORMAT_059)(questions.format_version)

rule("ilastik.plain_strings", BLOCKS, TIKTORCH, repair="plain_strings",
     breaks="ilastik's bioimageio.core 0.10.2 refuses it", fix=questions.PLAIN_STRINGS)(questions.plain_strings)


@rule("ilastik.weights_format", BLOCKS, ZOO_REPORTS,
      breaks="ilastik has torch only, neither ONNX Runtime nor TensorFlow", fix="Add torchscript weights.")
def weights_format(model: Model) -> str | None:
    """Weights as torchscript or pytorch_state_dict."""
    return questions.lacks_weights(model, _READS)


@rule("ilastik.dependencies", BLOCKS, ZOO_REPORTS, weights=("pytorch_state_dict",),
      breaks="ilastik installs nothing for a model, so that its architecture cannot be imported",
      fix="Add torchscript weights, or an architecture that needs nothing but torch and numpy.")
def dependencies(model: Model) -> str | None:
    """Where a state_dict is all there is: an architecture without dependencies of its own."""
    if "torchscript" in model.weights:
        raise NotApplicable("there are torchscript weights")
    if model.weights["pytorch_state_dict"].get("dependencies"):
        return "the weights have dependencies of their own"
    return questions.foreign_imports(model, _THERE)


@rule("ilastik.conversion", BLOCKS, TIKTORCH, versions="0.4",
      breaks="ilastik converts older descriptions to format 0.5 before it loads them, and cannot convert this one",
      fix="Write the description in format 0.5; an output of fixed size has no halo, and scale_linear names no axes.")
def conversion(model: Model) -> str | None:
    """A description of format 0.4 that can be converted to 0.5."""
    if not model.is_valid:
        return "the conversion to format 0.5 fails"
    if any(axis.halo and axis.size for tensor in model.outputs for axis in tensor.axes):
        return "an output axis has a halo and a fixed size"
    for tensor in [*model.mappings("inputs"), *model.mappings("outputs")]:
        for step in [*(tensor.get("preprocessing") or []), *(tensor.get("postprocessing") or [])]:
            if step.get("name") == "scale_linear" and (step.get("kwargs") or {}).get("axes"):
                return "scale_linear names axes"
    return None


rule("ilastik.single_io", BLOCKS, ZOO_REPORTS, breaks="ilastik takes one image and shows one",
     fix=questions.ONE_OF_EACH)(questions.single_io)

rule("ilastik.axis_ids", BLOCKS, TIKTORCH, breaks="ilastik knows no other axes",
     fix=questions.NAMED_AXES)(questions.axis_ids)

rule("ilastik.channel_names", BLOCKS, TIKTORCH, repair="channel_names",
     breaks="ilastik needs a channel axis on both sides",
     fix="Add a channel axis with channel_names.")(questions.channel_names)

rule("ilastik.custom_ops", BLOCKS, TIKTORCH, breaks="bioimageio.core before 0.10.3 refuses the whole model",
     fix=questions.INTO_GRAPH)(questions.custom_processing)

rule("ilastik.grid", DEGRADES, TIKTORCH, repair="grid",
     breaks="ilastik uses the smallest n for all axes, so its tiles shrink and overlap",
     fix="Choose min and step so that n agrees.")(questions.uneven_grid)

rule("ilastik.archive_ops", DEGRADES, TIKTORCH, weights=("torchscript",), breaks="ilastik's torch 2.7 may not load it",
     fix=questions.OLDER_OPERATORS)(questions.unportable)
