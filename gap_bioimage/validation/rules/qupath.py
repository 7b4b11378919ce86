"""QuPath, which runs 2D models through Deep Java Library, tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.check import BLOCKS, DEGRADES, Source, rule
from gap_bioimage.validation.consumers import consumer
from gap_bioimage.validation.rules import questions

if TYPE_CHECKING:
    from gap_bioimage.validation.model import Model

# fmt: off
_READS = ("torchscript", "onnx", "tensorflow_saved_model_bundle")
_WHOLE_IMAGE = {"scale_range", "scale_mean_variance", "zero_mean_unit_variance"}
_DJL = Source("qupath-extension-djl", "qupath/ext/djl, its engines and bioimage.io reader", "head", "2026-11")
consumer("qupath", "QuPath",
         "QuPath analyses large 2D images, often of tissue. It is written in Java, and runs TorchScript, ONNX or "
         "TensorFlow through Deep Java Library.", 8, reads=_READS)


@rule("qupath.weights_format", BLOCKS, _DJL, breaks="QuPath runs torchscript, onnx and TensorFlow's saved models",
      fix="Add torchscript weights.")
def weights_format(model: Model) -> str | None:
    """Weights as torchscript, onnx or tensorflow_saved_model_bundle."""
    return questions.lacks_weights(model, _READS)


@rule("qupath.axes", BLOCKS, _DJL, breaks="QuPath's images are 2D", fix="Offer a 2D model for QuPath.")
def axes(model: Model) -> str | None:
    """Axes batch, channel, y, x only."""
    for tensor in model.tensors:
        if sorted(tensor.axis_ids) != ["batch", "channel", "x", "y"]:
            return f"{tensor.id!r} has axes {', '.join(tensor.axis_ids)} instead of batch, channel, y, x"
    return None


rule("qupath.single_io", BLOCKS, _DJL, breaks="QuPath takes one image and shows one",
     fix=questions.ONE_OF_EACH)(questions.single_io)


@rule("qupath.image_statistics", DEGRADES, _DJL,
      breaks="QuPath sees a tile at a time, so each tile is scaled by itself",
      fix="Normalise with fixed numbers, or inside the network from each pixel's neighbourhood.")
def image_statistics(model: Model) -> str | None:
    """Processing without statistics of the whole image."""
    used = sorted({str(step.get("id")) for step in model.steps} & _WHOLE_IMAGE)
    return f"processing uses {', '.join(used)}" if used else None


rule("qupath.custom_ops", BLOCKS, _DJL, breaks="QuPath runs no Python code",
     fix=questions.INTO_GRAPH)(questions.custom_processing)
