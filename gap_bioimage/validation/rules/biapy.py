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
_NEEDS = "pytorch_state_dict"
_STEPS = {"zero_mean_unit_variance", "fixed_zero_mean_unit_variance", "scale_range", "scale_linear"}
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

rule("biapy.state_dict", BLOCKS, _CHECK, asks="Weights as pytorch_state_dict.", breaks="BiaPy loads nothing else",
     fix="Add pytorch_state_dict weights.",
)(lambda model: None if _NEEDS in model.weights else "no pytorch_state_dict weights are given")

rule("biapy.single_input", BLOCKS, _CHECK, breaks="BiaPy takes one", fix=rules.ONE_INPUT)(rules.single_input)
rule("biapy.tag", BLOCKS, _CHECK, weights=(_NEEDS,), fix=f"Tag it with one of {', '.join(_TAGS)}.",
     asks="A tag that names one of BiaPy's workflows, in its very spelling.",
     breaks="BiaPy takes the workflow from the tags, and refuses a model with none",
)(lambda model: None if set(_TAGS) & set(tags := model.texts("tags"))
  else f"no workflow is among the tags {', '.join(tags) or '(none)'}")
rule("biapy.axes", BLOCKS, _CHECK, asks="Input axes in the order batch, channel, (z,) y, x, space axes by their ids.",
     breaks="BiaPy reads bcyx and bczyx", fix="Order the input's axes batch, channel, (z,) y, x, and write their ids.",
)(lambda model: first(f"{tensor.id!r} has axes {', '.join(tensor.axis_ids)}{', one without id' if unnamed else ''}"
                      for tensor in model.inputs[:1]
                      if (unnamed := [a for a in tensor.axes if a.kind == "space" and not a.written.get("id")])
                      or tensor.axis_ids not in rules.ORDERS))
rule("biapy.fixed_shape", BLOCKS, _CHECK, weights=(_NEEDS,), versions="0.4",
     asks="In format 0.4: an input whose shape is given as min and step.",
     breaks="BiaPy ends with an AttributeError while it reads the description",
     fix="Write the description in format 0.5, or the input's shape as min and step.",
)(lambda model: first(f"the input's shape is the list {tensor['shape']}"
                      for tensor in model.mappings("inputs")[:1] if isinstance(tensor.get("shape"), list)))


@rule("biapy.kwargs", BLOCKS, _CHECK, weights=(_NEEDS,), breaks="BiaPy refuses the model",
      fix="Write kwargs of the architecture, {} where it has none; processing belongs into the description.")
def kwargs(model: Model) -> str | None:
    """Keyword arguments of the architecture, possibly empty, that name no postprocessing."""
    given = _kwargs(model)
    if given is None:
        return "the architecture's kwargs are missing"
    step = given.get("postprocessing") if isinstance(given, dict) else None
    return None if step is None else f"the architecture's kwargs name the postprocessing {str(step)[:60]!r}"


def _kwargs(model: Model) -> Any:
    entry = model.weights[_NEEDS]
    return entry["kwargs"] if "kwargs" in entry else model.architecture.get("kwargs")


@rule("biapy.classes", BLOCKS, _CHECK, weights=(_NEEDS,), breaks="BiaPy cannot tell how many classes it segments",
      fix="Write out_channels into the architecture's kwargs, as a number; for BiaPy's own networks as a list.")
def classes(model: Model) -> str | None:
    """The number of output channels in the kwargs of a segmentation network."""
    tags, given, is_own = set(model.texts("tags")), _kwargs(model) or {}, False
    names: tuple[str, ...] = _CLASSES
    if "semantic-segmentation" in tags or ("segmentation" in tags and "instance-segmentation" not in tags):
        found, place = -1, -1
        architecture = model.weights[_NEEDS].get("architecture")
        called = architecture if isinstance(architecture, dict) else {}
        is_own = any(str(called.get(key)).lower().replace(".py", "") in _NETWORKS for key in ("callable", "source"))
    elif "instance-segmentation" in tags:
        names, found, place = _CLASSES[1:3], 2, 0 if "biapy" in tags else -1
    else:
        return None
    found = next((given[name] for name in names if name in given), found)
    if place == 0 and not isinstance(found, list):
        return "a model tagged biapy has no list of output_channels in its kwargs"
    found = found[place] if isinstance(found, list) and found else found
    if not isinstance(found, int) or (found == -1 and names == _CLASSES and not is_own):
        return f"none of {', '.join(names)} is a number in the architecture's kwargs"
    return None


@rule("biapy.preprocessing", BLOCKS, _CHECK, breaks="BiaPy refuses the model",
      fix="Keep one step, with both percentiles if it is scale_range, and compute the rest inside the network.")
def preprocessing(model: Model) -> str | None:
    """At most one preprocessing step besides ensure_dtype to a float, out of four that BiaPy supports."""
    key = "id" if model.version_numbers > (0, 5, 0) else "name"  # BiaPy therefore finds none in 0.5.0
    steps = [step for tensor in model.mappings("inputs")[:1] for step in mappings(tensor.get("preprocessing"))]
    given = [(str(step[key]), step.get("kwargs") or {}) for step in steps if key in step]
    given = [pair for pair in given if pair[0] != "ensure_dtype" or "float" not in str(pair[1].get("dtype", "float"))]
    if len(given) > 1:
        return f"there are {len(given)} steps of preprocessing: {', '.join(name for name, _ in given)}"
    for name, kwargs in given:
        if name not in _STEPS:
            return f"BiaPy does not know the preprocessing {name}"
        if name == "scale_range" and not {"min_percentile", "max_percentile"} <= kwargs.keys():
            return "scale_range states no min_percentile and max_percentile"
    return None
