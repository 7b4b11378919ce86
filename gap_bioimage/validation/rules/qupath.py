"""QuPath, which runs 2D models through Deep Java Library, tile by tile."""

from gap_bioimage.validation import rules
from gap_bioimage.validation.check import BLOCKS, DEGRADES, consumer, rule
from gap_bioimage.validation.rules import first

# fmt: off
_READS = ("torchscript", "onnx", "tensorflow_saved_model_bundle")
_WHOLE_IMAGE = {"scale_range", "scale_mean_variance", "zero_mean_unit_variance"}
_DJL = "qupath-extension-djl head, qupath/ext/djl, its engines and bioimage.io reader (2026-11)"
consumer("qupath", "QuPath",
         "QuPath analyses large 2D images, often of tissue. It is written in Java, and runs TorchScript, ONNX or "
         "TensorFlow through Deep Java Library.", 8, reads=_READS)

rule("qupath.weights_format", BLOCKS, _DJL, asks="Weights as torchscript, onnx or tensorflow_saved_model_bundle.",
     breaks="QuPath has no engine for the model's weights", fix=rules.ADD_TORCHSCRIPT,
)(lambda model: rules.lacks_weights(model, _READS))
rule("qupath.single_io", BLOCKS, _DJL, fix=rules.ONE_OF_EACH,
     breaks="QuPath cannot run the model, which gets one image and gives one")(rules.single_io)
rule("qupath.custom_ops", BLOCKS, _DJL, fix=rules.INTO_GRAPH,
     breaks="QuPath cannot run the model: it runs no Python code")(rules.python_processing)
rule("qupath.axes", BLOCKS, _DJL, asks="Axes batch, channel, y, x only.", fix="Offer a 2D model for QuPath.",
     breaks="QuPath cannot run the model on its images, which are 2D",
)(lambda model: first(f"{tensor.id!r} has axes {', '.join(tensor.axis_ids)} instead of batch, channel, y, x"
                      for tensor in model.tensors if sorted(tensor.axis_ids) != ["batch", "channel", "x", "y"]))
rule("qupath.image_statistics", DEGRADES, _DJL, asks="Processing without statistics of the whole image.",
     breaks="QuPath's results change from tile to tile, since each is scaled separately",
     fix="Normalise with fixed numbers, or inside the network from each pixel's neighbourhood.",
)(lambda model: first(f"processing uses {step['id']}" for step in model.steps if step.get("id") in _WHOLE_IMAGE))
