"""deepImageJ in Fiji, whose engine is JDLL."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from gap_bioimage.validation.check import BLOCKS, DEGRADES, NotApplicable, Outcome, Source, rule
from gap_bioimage.validation.consumers import consumer
from gap_bioimage.validation.rules import questions
from gap_bioimage.validation.rules.questions import JDLL, JDLL_SPEC, ZOO_REPORTS

if TYPE_CHECKING:
    from gap_bioimage.validation.model import Model

# fmt: off
_READS = ("torchscript", "onnx", "tensorflow_saved_model_bundle", "pytorch_state_dict")
consumer("fiji", "Fiji (deepImageJ)",
         "deepImageJ runs models in Fiji. It is written in Java; its engine, JDLL, reads the description by itself and "
         "runs TorchScript in libtorch 1.13 to 2.0, which is older than what most models are made with.", 5,
         reads=_READS)

_OPERATIONS = {
    "binarize",
    "clip",
    "scale_linear",
    "scale_range",
    "sigmoid",
    "zero_mean_unit_variance",
    "fixed_zero_mean_unit_variance",
    "ensure_dtype",
}
_OPERATION_FIXES = {
    "custom": "Do what the custom Python code does inside the network's graph, or offer the model to users of "
    "bioimageio.core only.",
    "clip with one bound": "Give clip both a min and a max.",
    "scale_linear with several gains": "Use one gain for all channels, or scale them inside the network's graph.",
    "scale_mean_variance": "Match mean and variance inside the network's graph, per tile, or leave that step out.",
}
_PYTHON_HAS = questions.ALWAYS_THERE | {"torchvision", "biapy", "cellpose", "stardist", "timm", "einops", "skimage"}
_MAX_TILE_VOXELS = 3 * 4096**2
_MAX_OPSET, _MAX_IR = 18, 8
_ENGINES = Source("JDLL", "engine/DeepLearningVersion and the engines that it installs", "0.6.3", "2026-11")


rule("fiji.format_version", BLOCKS, JDLL, repair="lower_format",
     breaks="Fiji's JDLL does not read it: newer descriptions write files as {source, sha256}, which it casts to text",
     fix=questions.FORMAT_059)(questions.format_version)

rule("fiji.plain_strings", BLOCKS, JDLL, repair="plain_strings", breaks="JDLL ends with a ClassCastException",
     fix=questions.PLAIN_STRINGS)(questions.plain_strings)


@rule("fiji.id", BLOCKS, JDLL, versions="0.5", repair="fill_id", breaks="JDLL ends with a NullPointerException",
      fix="Give the model a non-empty id; only the upload to the zoo wants it removed, since the zoo gives one itself.")
def model_id(model: Model) -> str | None:
    """A non-empty id; of a description in format 0.4 JDLL makes one."""
    return None if model.rdf.get("id") else "id is empty"


@rule("fiji.rdf_name", BLOCKS, JDLL, repair="rename_description", breaks="JDLL looks for rdf.yaml",
      fix="Rename it to rdf.yaml.")
def rdf_name(model: Model) -> str | None:
    """A description named rdf.yaml."""
    if not model.with_files:
        raise NotApplicable("only the description was looked at")
    return None if model.package.rdf_name == "rdf.yaml" else f"the description is named {model.package.rdf_name}"


@rule("fiji.weights_format", BLOCKS, _ENGINES,
      breaks="deepImageJ runs torchscript, onnx, TensorFlow's saved models and state_dicts",
      fix="Add torchscript weights.")
def weights_format(model: Model) -> str | None:
    """Weights other than Keras's and tensorflow_js."""
    return questions.lacks_weights(model, _READS)


@rule("fiji.state_dict", BLOCKS, ZOO_REPORTS, weights=("pytorch_state_dict",),
      breaks="Fiji runs a state_dict in a Python environment of its own, which does not have it",
      fix="Add torchscript weights.")
def state_dict(model: Model) -> str | None:
    """Where a state_dict is all there is: an architecture that needs nothing but torch, BiaPy, Cellpose or StarDist."""
    _only_state_dict(model)
    return questions.foreign_imports(model, _PYTHON_HAS)


@rule("fiji.state_dict_values", BLOCKS, ZOO_REPORTS, weights=("pytorch_state_dict",),
      breaks="in all published reports such a model gave other values in Fiji than its test output says (22 of 22); "
             "only cubes agreed (4 of 4), and the cause is not known",
      fix="Add torchscript weights, which Fiji runs by itself.")
def state_dict_values(model: Model) -> str | None:
    """Where a state_dict is all there is: cubic images of one size."""
    _only_state_dict(model)
    sizes = [axis.size for tensor in model.inputs[:1] for axis in tensor.axes if axis.kind == "space"]
    if len(sizes) == 3 and len(set(sizes)) == 1 and sizes[0]:
        return None
    return f"the weights are a state_dict alone, for images in {len(sizes)}D that are no cubes"


def _only_state_dict(model: Model) -> None:
    if set(model.weights) & set(_READS) != {"pytorch_state_dict"}:
        raise NotApplicable("there are weights that Fiji runs by itself")


@rule("fiji.weights_root", BLOCKS, JDLL, weights=("torchscript",), repair="flatten",
      breaks="JDLL finds weights at the package's top level only", fix="Put the weights at the top level.")
def weights_root(model: Model) -> str | None:
    """TorchScript weights at the top level."""
    source = str(model.weights["torchscript"].get("source"))
    is_inside = "/" in source.removeprefix("./") and "://" not in source
    return f"torchscript weights are {source!r}" if is_inside else None


@rule("fiji.pytorch_version", BLOCKS, _ENGINES, weights=("torchscript",),
      breaks="JDLL picks an engine of that major version, and has 1.5 to 2.0",
      fix="State the pytorch_version that the weights were saved with, 1.5 to 2.x; without one 1.13.1 is taken.")
def pytorch_version(model: Model) -> str | None:
    """A pytorch_version 1.5 to 2.x, or none."""
    written = model.weights["torchscript"].get("pytorch_version")
    parts = re.match(r"(\d{1,6})(?:\.(\d{1,6}))?", str(written))
    if written is None or (parts and (1, 5) <= (int(parts[1]), int(parts[2] or 99)) < (3, 0)):
        return None
    return f"pytorch_version is {written}"


@rule("fiji.axis_scale", BLOCKS, JDLL, repair="axis_scale",
      breaks="JDLL takes an input's scale for a change of size and crops the output",
      fix="Leave scale out of the input axes; keep pixel sizes in the documentation.")
def axis_scale(model: Model) -> str | None:
    """Input axes without a scale."""
    scaled = [f"{axis.id} {axis.scale:g}" for tensor in model.inputs for axis in tensor.axes if axis.scale != 1]
    return f"input axes have scale {', '.join(scaled)}" if scaled else None


rule("fiji.axis_ids", BLOCKS, JDLL_SPEC, breaks="JDLL knows no other axes",
     fix=questions.NAMED_AXES)(questions.axis_ids)


@rule("fiji.explicit_axis_ids", BLOCKS, JDLL, versions="0.5", repair="axis_ids",
      breaks="JDLL throws 'Invalid axis configuration' while it reads the description",
      fix="Write id: x on that axis, although it is the default.")
def explicit_axis_ids(model: Model) -> str | None:
    """An id written on every space axis."""
    for tensor in model.tensors:
        if any(axis.kind == "space" and not axis.written.get("id") for axis in tensor.axes):
            return f"a space axis of {tensor.id!r} has no id"
    return None


@rule("fiji.axis_order", BLOCKS, JDLL_SPEC, breaks="JDLL keeps one order", fix="Use one axis order.")
def axis_order(model: Model) -> str | None:
    """The same order of axes in and out."""
    orders = {tuple(tensor.axis_ids) for tensor in model.tensors}
    return None if len(orders) <= 1 else f"axis orders differ: {' and '.join(', '.join(o) for o in sorted(orders))}"


rule("fiji.channel_names", BLOCKS, JDLL_SPEC, repair="channel_names", breaks="JDLL sizes the channel axis by its names",
     fix="Add channel_names to every channel axis.")(questions.channel_names)


@rule("fiji.single_io", BLOCKS,
      Source("bioimage.io collection", "scripts/check_compatibility_deepimagej.py", "2026-05-20", "2026-11"),
      breaks="deepImageJ takes one image", fix="Put several images into channels of one input.")
def single_io(model: Model) -> str | Outcome | None:
    """One input; several outputs open as images of their own."""
    n_inputs, n_outputs = len(model.inputs), len(model.outputs)
    if n_inputs == 1 and n_outputs > 1:
        return Outcome("warning", f"{n_outputs} outputs open as so many images", questions.ONE_OF_EACH)
    return None if n_inputs == 1 else f"there are {n_inputs} inputs"


@rule("fiji.test_tensors", BLOCKS, ZOO_REPORTS, breaks="JDLL throws while it reads them",
      fix="Store test tensors as .npy files of numbers, e.g. uint8 instead of bool.")
def test_tensors(model: Model) -> str | None:
    """Test tensors in .npy files, of numbers rather than bool."""
    for tensor in model.tensors:
        test = tensor.written.get("test_tensor")
        source = str(test.get("source")) if isinstance(test, dict) else str(test or "")
        if source and not source.split("?")[0].endswith(".npy"):
            return f"the test tensor of {tensor.id!r} is {source[:80]!r}"
        if tensor.data_type == "bool":
            return f"the test tensor of {tensor.id!r} is of type bool"
    return None


@rule("fiji.min_of_step", BLOCKS, JDLL, repair="min_of_step", breaks="JDLL rounds tiles to multiples of step",
      fix="Choose min as a multiple of step.")
def min_of_step(model: Model) -> str | None:
    """Smallest sizes that are multiples of step."""
    for tensor in model.inputs:
        for axis in tensor.axes:
            size = axis.min_step
            if size and size[1] and size[0] % size[1]:
                return f"{tensor.id!r} {axis.id}: min {size[0]} is not a multiple of step {size[1]}"
    return None


@rule("fiji.min_halo", BLOCKS, JDLL, repair="min_halo", breaks="a tile would be all halo",
      fix="Choose min above twice the halo.")
def min_halo(model: Model) -> str | None:
    """Smallest sizes above twice the halo."""
    for tensor in model.inputs:
        for axis in tensor.axes:
            halo, size = model.halo_of_input.get((tensor.id, axis.id), 0), axis.min_step
            if size and size[0] <= 2 * halo:
                return f"{tensor.id!r} {axis.id}: min {size[0]} is not above twice the halo {halo:g}"
    return None


@rule("fiji.off_grid", DEGRADES, JDLL, weights=("torchscript",),
      breaks="JDLL makes two tiles of an image whose size plus halo is not on that grid, the second off the "
             "network's own pooling grid: several times slower, and up to 8 % off",
      fix="Let the network pad by itself and declare step: 1, or tell users which sizes are on the grid.")
def off_grid(model: Model) -> str | None:
    """Sizes in steps of 1, or no halo."""
    for tensor in model.inputs:
        for axis in tensor.axes:
            size = axis.min_step
            if axis.kind == "space" and size and size[1] > 1 and model.halo_of_input.get((tensor.id, axis.id)):
                return f"{tensor.id!r} grows in steps of {size[1]} along {axis.id}"
    return None


def _strange_operations(model: Model) -> list[str]:
    """The steps that JDLL lacks, as people call them."""
    strange = []
    for step in model.steps:
        name, kwargs = str(step.get("id")), step.get("kwargs") or {}
        if name not in _OPERATIONS:
            strange.append(name)
        elif name == "clip" and (kwargs.get("min") is None or kwargs.get("max") is None):
            strange.append("clip with one bound")
        elif name == "scale_linear" and isinstance(kwargs.get("gain"), list) and len(kwargs["gain"]) > 1:
            strange.append("scale_linear with several gains")
    return strange


def _operations_fix(model: Model) -> str:
    names = _strange_operations(model)
    fixes = [_OPERATION_FIXES.get(name, f"Compute {name} inside the network's graph.") for name in names]
    return " ".join(dict.fromkeys(fixes))


@rule("fiji.processing_ops", BLOCKS, JDLL, breaks="JDLL does not have these operations", fix=_operations_fix)
def processing_ops(model: Model) -> str | None:
    """Only processing steps that JDLL has: binarize, clip, scale_linear, scale_range, sigmoid, normalisation."""
    strange = _strange_operations(model)
    return f"processing uses {', '.join(strange)}" if strange else None


@rule("fiji.no_deepimagej_config", BLOCKS, JDLL, repair="deepimagej_config", breaks="deepImageJ then refuses to tile",
      fix="Remove config.deepimagej, or set allow_tiling: true.")
def no_deepimagej_config(model: Model) -> str | None:
    """No config.deepimagej, or one that allows tiles."""
    section = (model.rdf.get("config") or {}).get("deepimagej")
    if section is None or (isinstance(section, dict) and section.get("allow_tiling") is True):
        return None
    return "config.deepimagej is there without allow_tiling: true"


rule("fiji.archive_ops", BLOCKS, JDLL, weights=("torchscript",),
     breaks="Fiji's engines, libtorch 1.13 to 2.0, cannot load it", fix=questions.OLDER_OPERATORS)(questions.unportable)


@rule("fiji.frozen", DEGRADES, JDLL, weights=("torchscript",), breaks="if it was frozen, it cannot be moved to a GPU",
      fix="Save it without torch.jit.freeze.")
def frozen(model: Model) -> str | None:
    """TorchScript weights that were not frozen."""
    code = questions.torchscript_code(model)
    return None if code.has_parameters or not code.n_constants else "the TorchScript module has no parameters"


@rule("fiji.devices", DEGRADES, JDLL, weights=("torchscript",), breaks="it fails on other devices",
      fix="Create tensors on the input's device, script instead of tracing, and save from the CPU.")
def devices(model: Model) -> str | None:
    """TorchScript weights that live on no particular device."""
    code = questions.torchscript_code(model)
    if code.devices:
        return f"the TorchScript code names the devices {', '.join(code.devices)}"
    return f"the TorchScript weights were saved on {', '.join(code.saved_on)}" if code.saved_on else None


@rule("fiji.eval_mode", DEGRADES, JDLL, weights=("torchscript",),
      breaks="Fiji's engine runs it as saved, so that it drops and normalises as in training",
      fix="Call eval() before torch.jit.script or torch.jit.trace.")
def eval_mode(model: Model) -> str | None:
    """TorchScript weights that were saved in evaluation mode."""
    code = questions.torchscript_code(model)
    is_wrong = code.in_training_mode and code.depends_on_mode
    return "the TorchScript module was saved in training mode" if is_wrong else None


@rule("fiji.norms", DEGRADES, JDLL, weights=("torchscript",),
      breaks="results change with padding and with the size of tiles",
      fix="Train with batch normalisation or none; run.tiled and run.padding say how much it matters here.")
def norms(model: Model) -> str | None:
    """A network without norms over all pixels."""
    found = questions.torchscript_code(model).norms
    return f"the TorchScript code uses {', '.join(found)}, over all pixels at once" if found else None


@rule("fiji.tile_voxels", DEGRADES, JDLL, breaks="JDLL looks for a smaller tile for ever",
      fix="Offer a fixed-size zip, or lower min.")
def tile_voxels(model: Model) -> str | None:
    """A smallest tile of at most 50 million voxels, where sizes are a choice."""
    for tensor in model.inputs:
        voxels = math.prod(axis.smallest for axis in tensor.axes)
        if voxels > _MAX_TILE_VOXELS and any(axis.min_step for axis in tensor.axes):
            return f"the smallest tile of {tensor.id!r} has {voxels / 1e6:.0f} million voxels, 50 million at most work"
    return None


@rule("fiji.onnx", BLOCKS, _ENGINES, weights=("onnx",), breaks="Fiji's ONNX engine cannot load it",
      fix="Export with the legacy exporter: opset 18, IR version 8, one file; or keep torchscript next to it.")
def onnx(model: Model) -> str | Outcome | None:
    """ONNX weights of opset 18 and IR version 8 at most, in one file; advice where Fiji can take other weights."""
    found = _onnx_problem(model)
    others = set(_READS) & set(model.weights) - {"onnx"}
    return Outcome("warning", f"{found}, so that Fiji takes {', '.join(others)}") if found and others else found


def _onnx_problem(model: Model) -> str | None:
    entry = model.weights["onnx"]
    opset = entry.get("opset_version")
    if isinstance(opset, int) and opset > _MAX_OPSET:
        return f"the ONNX opset is {opset}, {_MAX_OPSET} at most"
    if entry.get("external_data"):
        return "the ONNX weights lie in a second file"
    path = model.file_of(entry)
    if path is None:
        raise NotApplicable("the ONNX weights are not in the package")
    with path.open("rb") as file:
        head = file.read(2)  # a model starts with field 1, its IR version: a small number, so one byte
    if len(head) == 2 and head[0] == 8 and head[1] > _MAX_IR:
        return f"the ONNX IR version is {head[1]}, {_MAX_IR} at most"
    return None
