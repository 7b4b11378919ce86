"""ilastik, whose server, tiktorch, runs models with bioimageio.core and torch."""

from gap_bioimage.validation import rules
from gap_bioimage.validation.check import BLOCKS, DEGRADES, NotApplicable, consumer, rule
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.rules import TIKTORCH, ZOO_REPORTS, first

# fmt: off
_READS = ("torchscript", "pytorch_state_dict")
# arguments of format 0.4 that bioimageio.core cannot run, or that its conversion to 0.5 loses
_LOST = {"scale_linear": "axes", "scale_range": "reference_tensor"}
_INSTALLED = rules.ALWAYS_INSTALLED | {"torchvision", "skimage"}
consumer("ilastik", "ilastik",
         "ilastik runs models as one step of a workflow, on a server (tiktorch) that has bioimageio.core 0.10.2 and "
         "torch 2.7, but neither ONNX Runtime nor TensorFlow.", 6, reads=_READS)

rules.reads_plain_strings("ilastik", TIKTORCH, "ilastik's bioimageio.core 0.10.2 refuses it")
rule("ilastik.weights_format", BLOCKS, ZOO_REPORTS, asks="Weights as torchscript or pytorch_state_dict.",
     breaks="ilastik cannot run the model: it has torch only", fix=rules.ADD_TORCHSCRIPT,
)(lambda model: rules.lacks_weights(model, _READS))
rule("ilastik.single_io", BLOCKS, ZOO_REPORTS, fix=rules.ONE_OF_EACH,
     breaks="ilastik refuses the model")(rules.single_io)
rule("ilastik.axis_ids", BLOCKS, TIKTORCH, fix=rules.NAMED_AXES,
     breaks="ilastik refuses the model")(rules.axis_ids)
rule("ilastik.channel_names", BLOCKS, TIKTORCH, repair="channel_names",
     asks="A channel axis on every input and output, with channel_names that are identifiers.",
     fix="Add a channel axis whose channel_names are identifiers, such as channel0.",
     breaks="ilastik refuses the model",
)(lambda model: rules.channel_names(model) or rules.identifiers(model))
rule("ilastik.custom_ops", BLOCKS, TIKTORCH, fix=rules.INTO_GRAPH,
     breaks="ilastik cannot run the model: it supports no custom steps, and has neither StarDist nor Cellpose",
)(rules.python_processing)
rule("ilastik.grid", DEGRADES, TIKTORCH, fix="Choose min and step so that n is the same on all axes.",
     breaks="ilastik uses the smallest n for all axes, so its tiles shrink and overlap")(rules.uneven_grid)
rule("ilastik.archive_ops", DEGRADES, TIKTORCH, weights=("torchscript",), fix=rules.OLDER_OPERATORS,
     breaks="ilastik's torch 2.7 may not load it")(rules.unportable)
rule("ilastik.dependencies", BLOCKS, ZOO_REPORTS, weights=("pytorch_state_dict",), unless=("torchscript",),
     breaks="ilastik cannot build the network, since it installs no packages for a model",
     fix="Add torchscript weights, or an architecture that needs nothing but torch and numpy.",
     asks="If there is only a state_dict: an architecture without further dependencies.",
)(lambda model: rules.own_dependencies(model, _INSTALLED))


@rule("ilastik.conversion", BLOCKS, TIKTORCH, versions="0.4",
      breaks="ilastik cannot load the model, since it first converts it to format 0.5",
      fix="Write the description in format 0.5, without what the conversion refuses.")
def conversion(model: Model) -> str | None:
    """A description of format 0.4 that can be converted to 0.5."""
    if model.valid is None:
        raise NotApplicable("the description is invalid, see format.valid")
    if model.valid.upgraded is None:
        return f"the conversion to format 0.5 fails, because {model.valid.not_upgraded}"
    return first(f"{name} names {_LOST[name]}" for name, kwargs in rules.steps_of_04(model)
                 if name in _LOST and kwargs.get(_LOST[name]))


@rule("ilastik.newer_fields", BLOCKS, TIKTORCH, breaks="ilastik's bioimageio.core 0.10.2 refuses it",
      fix="Leave strict out, and state at most 1000 mismatched elements per million.")
def newer_fields(model: Model) -> str | None:
    """No fields or values that were added after format 0.5.9."""
    if "strict" in model.weights.get("pytorch_state_dict", {}):
        return "weights.pytorch_state_dict.strict is given"
    return rules.tolerates(model, "mismatched_elements_per_million", 1000)
