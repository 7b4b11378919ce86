"""ilastik, whose server tiktorch runs bioimageio.core on torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.check import NotApplicable, Severity, rule
from gap_bioimage.validation.consumers import Consumer, consumer
from gap_bioimage.validation.rules import questions
from gap_bioimage.validation.rules.questions import TIKTORCH, ZOO_REPORTS

if TYPE_CHECKING:
    from gap_bioimage.validation.model import Model

_READS = ("torchscript", "pytorch_state_dict")
_THERE = questions.ALWAYS_THERE | {"torchvision", "skimage"}
consumer(
    Consumer(
        "ilastik",
        "ilastik",
        "ilastik runs models as one step of a workflow, on a server (tiktorch) that holds bioimageio.core 0.10.2 and "
        "torch 2.7, and neither ONNX Runtime nor TensorFlow.",
        6,
        reads=_READS,
    )
)


@rule(
    "ilastik.format_version",
    Severity.BLOCKS,
    breaks="ilastik's bioimageio.core 0.10.2 refuses it",
    fix=questions.FORMAT_059,
    source=TIKTORCH,
    repair="lower_format",
)
def format_version(model: Model) -> str | None:
    """A format_version of at most 0.5.10."""
    return questions.format_version(model)


@rule(
    "ilastik.plain_strings",
    Severity.BLOCKS,
    breaks="ilastik's bioimageio.core 0.10.2 refuses it",
    fix=questions.PLAIN_STRINGS,
    source=TIKTORCH,
    repair="plain_strings",
)
def plain_strings(model: Model) -> str | None:
    """Documentation, covers and licence as plain strings."""
    return questions.plain_strings(model)


@rule(
    "ilastik.weights_format",
    Severity.BLOCKS,
    breaks="ilastik has torch only, neither ONNX Runtime nor TensorFlow",
    fix="Add torchscript weights.",
    source=ZOO_REPORTS,
)
def weights_format(model: Model) -> str | None:
    """Weights as torchscript or pytorch_state_dict."""
    return questions.lacks_weights(model, _READS)


@rule(
    "ilastik.dependencies",
    Severity.BLOCKS,
    breaks="ilastik installs nothing for a model, so that its architecture cannot be imported",
    fix="Add torchscript weights, or an architecture that needs nothing but torch and numpy.",
    source=ZOO_REPORTS,
    weights=("pytorch_state_dict",),
)
def dependencies(model: Model) -> str | None:
    """Where a state_dict is all there is: an architecture without dependencies of its own."""
    if "torchscript" in model.weights:
        raise NotApplicable("there are torchscript weights")
    if model.weights["pytorch_state_dict"].get("dependencies"):
        return "the weights have dependencies of their own"
    return questions.foreign_imports(model, _THERE)


@rule(
    "ilastik.conversion",
    Severity.BLOCKS,
    breaks="ilastik converts older descriptions to format 0.5 before it loads them, and cannot convert this one",
    fix="Write the description in format 0.5; an output of fixed size has no halo, and scale_linear names no axes.",
    source=TIKTORCH,
    versions="0.4",
)
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


@rule(
    "ilastik.single_io",
    Severity.BLOCKS,
    breaks="ilastik takes one image and shows one",
    fix=questions.ONE_OF_EACH,
    source=ZOO_REPORTS,
)
def single_io(model: Model) -> str | None:
    """One input and one output."""
    return questions.single_io(model)


@rule(
    "ilastik.axis_ids",
    Severity.BLOCKS,
    breaks="ilastik knows no other axes",
    fix=questions.NAMED_AXES,
    source=TIKTORCH,
)
def axis_ids(model: Model) -> str | None:
    """Axes named batch, channel, (z,) y, x on every input and output."""
    return questions.axis_ids(model)


@rule(
    "ilastik.channel_names",
    Severity.BLOCKS,
    breaks="ilastik needs a channel axis on both sides",
    fix="Add a channel axis with channel_names.",
    source=TIKTORCH,
    repair="channel_names",
)
def channel_names(model: Model) -> str | None:
    """A channel axis with channel_names on every input and output."""
    return questions.channel_names(model)


@rule(
    "ilastik.custom_ops",
    Severity.BLOCKS,
    breaks="bioimageio.core before 0.10.3 refuses the whole model",
    fix=questions.INTO_GRAPH,
    source=TIKTORCH,
)
def custom_ops(model: Model) -> str | None:
    """No processing by Python code of the package."""
    return questions.custom_processing(model)


@rule(
    "ilastik.grid",
    Severity.DEGRADES,
    breaks="ilastik uses the smallest n for all axes, so its tiles shrink and overlap",
    fix="Choose min and step so that n agrees.",
    source=TIKTORCH,
    repair="grid",
)
def grid(model: Model) -> str | None:
    """Sizes min + n step that reach 512 pixels (64 in 3D) with the same n on all axes."""
    return questions.uneven_grid(model)


@rule(
    "ilastik.archive_ops",
    Severity.DEGRADES,
    breaks="ilastik's torch 2.7 may not load it",
    fix=questions.OLDER_OPERATORS,
    source=TIKTORCH,
    weights=("torchscript",),
)
def archive_ops(model: Model) -> str | None:
    """TorchScript code that the oldest engine (libtorch 1.13) knows."""
    return questions.unportable(model)
