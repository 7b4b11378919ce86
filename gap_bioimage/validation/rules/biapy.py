"""BiaPy, which accepts a model by its description alone, before it builds the network."""

from typing import Any

from gap_bioimage.validation import rules
from gap_bioimage.validation.archive.rdf import mappings
from gap_bioimage.validation.check import BLOCKS, consumer, rule
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.rules import first

# fmt: off
consumer("biapy", "BiaPy",
         "BiaPy trains and runs networks from a form or a notebook. It builds the network from its Python source and "
         "loads the state_dict, with the torch that is installed next to it.", 7, reads=("pytorch_state_dict",))
_CHECK = "BiaPy 3.6.8, biapy/models/__init__.py, check_bmz_model_compatibility (2026-11)"
_FORMAT = "pytorch_state_dict"
_PREPROCESSING = {"zero_mean_unit_variance", "fixed_zero_mean_unit_variance", "scale_range", "scale_linear"}
_TAGS = (
    "semantic-segmentation", "segmentation", "instance-segmentation", "detection", "denoising", "super-resolution",
    "superresolution", "self-supervision", "classification", "pix2pix", "image-reconstruction", "image-to-image",
    "image-restoration",
)
_CLASSES = ("n_classes", "out_channels", "output_channels", "classes")
# BiaPy's own networks, which it assumes to have one class by default
_NETWORKS = (
    "unet resunet resunet++ seunet attention_unet resunet_se unetr multiresunet unext_v1 unext_v2 hrnet".split()
)

rule("biapy.state_dict", BLOCKS, _CHECK, asks="Weights as pytorch_state_dict.", breaks="BiaPy cannot load the model",
     fix="Add pytorch_state_dict weights.",
)(lambda model: None if _FORMAT in model.weights else "no pytorch_state_dict weights are given")

rule("biapy.single_input", BLOCKS, _CHECK, breaks="BiaPy refuses the model", fix=rules.ONE_INPUT)(rules.single_input)
rule("biapy.tag", BLOCKS, _CHECK, weights=(_FORMAT,), fix=f"Tag it with one of {', '.join(_TAGS)}.",
     asks="A tag that names one of BiaPy's workflows, in exact spelling.",
     breaks="BiaPy refuses the model, since it reads the workflow from the tags",
)(lambda model: None if set(_TAGS) & set(tags := model.texts("tags"))
  else f"no workflow is among the tags {', '.join(tags) or '(none)'}")
rule("biapy.axes", BLOCKS, _CHECK, asks="Input axes in the order batch, channel, (z,) y, x, space axes with ids.",
     breaks="BiaPy refuses the model", fix="Order the input's axes batch, channel, (z,) y, x, and write their ids.",
)(lambda model: first(f"{tensor.id!r} has axes {', '.join(tensor.axis_ids)}{', one without id' if unnamed else ''}"
                      for tensor in model.inputs[:1]
                      if (unnamed := [a for a in tensor.axes if a.kind == "space" and not a.written.get("id")])
                      or tensor.axis_ids not in rules.AXIS_ORDERS))
rule("biapy.fixed_shape", BLOCKS, _CHECK, weights=(_FORMAT,), versions="0.4",
     asks="In format 0.4: an input whose shape is given as min and step.",
     breaks="BiaPy cannot open the model: it ends with an AttributeError",
     fix="Write the description in format 0.5, or the input's shape as min and step.",
)(lambda model: first(f"the input's shape is the list {tensor['shape']}"
                      for tensor in model.mappings("inputs")[:1] if isinstance(tensor.get("shape"), list)))


@rule("biapy.kwargs", BLOCKS, _CHECK, weights=(_FORMAT,), breaks="BiaPy refuses the model",
      fix="State the architecture's kwargs, {} if it has none; declare processing in the description instead.")
def kwargs(model: Model) -> str | None:
    """Keyword arguments of the architecture, possibly empty, that name no postprocessing."""
    arguments = _kwargs(model)
    if arguments is None:
        return "the architecture's kwargs are missing"
    step = arguments.get("postprocessing") if isinstance(arguments, dict) else None
    return None if step is None else f"the architecture's kwargs name the postprocessing {str(step)[:60]!r}"


def _kwargs(model: Model) -> Any:
    entry = model.weights[_FORMAT]
    return entry["kwargs"] if "kwargs" in entry else model.architecture.get("kwargs")


@rule("biapy.classes", BLOCKS, _CHECK, weights=(_FORMAT,), breaks="BiaPy cannot build the network",
      fix="Write out_channels into the architecture's kwargs, as a number; for BiaPy's own networks as a list.")
def classes(model: Model) -> str | None:
    """The number of output channels in the kwargs of a segmentation network."""
    tags, arguments, source = {*model.texts("tags")}, _kwargs(model) or {}, model.weights[_FORMAT].get("architecture")
    is_instance = "instance-segmentation" in tags and "semantic-segmentation" not in tags
    if not is_instance and tags.isdisjoint(("semantic-segmentation", "segmentation")):
        return None
    names_of_it = [source.get("callable"), source.get("source")] if isinstance(source, dict) else []
    is_own = any(str(name).lower().replace(".py", "") in _NETWORKS for name in names_of_it)
    default, names = (2, _CLASSES[1:3]) if is_instance else (1 if is_own else None, _CLASSES)
    n_classes = next((arguments[name] for name in names if name in arguments), default)
    is_first = is_instance and "biapy" in tags
    if is_first and not isinstance(n_classes, list):
        return "a model tagged biapy has no list of output_channels in its kwargs"
    n_classes = n_classes[0 if is_first else -1] if isinstance(n_classes, list) and n_classes else n_classes
    if not isinstance(n_classes, int) or (n_classes == -1 and not is_instance and not is_own):
        return f"none of {', '.join(names)} is a number in the architecture's kwargs"
    return None


@rule("biapy.preprocessing", BLOCKS, _CHECK, breaks="BiaPy refuses the model",
      fix="Keep one step, with both percentiles if it is scale_range, and compute the rest inside the network.")
def preprocessing(model: Model) -> str | None:
    """At most one preprocessing step besides ensure_dtype to a float, out of four that BiaPy supports."""
    key = "id" if model.version_numbers > (0, 5, 0) else "name"  # BiaPy therefore finds none in 0.5.0
    steps = [step for tensor in model.mappings("inputs")[:1] for step in mappings(tensor.get("preprocessing"))]
    named = [(str(step[key]), step.get("kwargs") or {}) for step in steps if key in step]
    named = [pair for pair in named if pair[0] != "ensure_dtype" or "float" not in str(pair[1].get("dtype", "float"))]
    if len(named) > 1:
        return f"there are {len(named)} preprocessing steps: {', '.join(name for name, _ in named)}"
    for name, kwargs in named:
        if name not in _PREPROCESSING:
            return f"BiaPy does not support the preprocessing {name}"
        if name == "scale_range" and not {"min_percentile", "max_percentile"} <= kwargs.keys():
            return "scale_range lacks min_percentile or max_percentile"
    return None
