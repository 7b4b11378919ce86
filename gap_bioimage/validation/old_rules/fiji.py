"""deepImageJ in Fiji, whose engine is JDLL 0.6."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gap_bioimage.validation.old_rules import tensors
from gap_bioimage.validation.old_rules.rule import NotApplicable, Rule
from gap_bioimage.validation.old_rules.tensors import torchscript_code

if TYPE_CHECKING:
    from gap_bioimage.validation.archive.facts import Axis, Facts

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
_INTO_GRAPH = "Compute {} inside the network's graph."
_OPERATION_FIXES = {
    "custom": "Do what the custom Python code does inside the network's graph, or offer the model to users of "
    "bioimageio.core only.",
    "clip with one bound": "Give clip both a min and a max.",
    "scale_linear with several gains": "Use one gain for all channels, or scale them inside the network's graph.",
    "scale_mean_variance": "Match mean and variance inside the network's graph, per tile, or leave that step out.",
}
_ENGINE_MAJOR = "2"
_MAX_TILE_VOXELS = 3 * 4096**2
_MAX_OPSET = 18
_MAX_IR = 8


def _model_id(facts: Facts) -> str | None:
    """A non-empty id."""
    return None if facts.rdf.get("id") else "id is empty"


def _rdf_name(facts: Facts) -> str | None:
    """A description named rdf.yaml."""
    return None if facts.package.rdf_name == "rdf.yaml" else f"the description is named {facts.package.rdf_name}"


def _weights_root(facts: Facts) -> str | None:
    """TorchScript weights at the top level, named *.pt."""
    if "torchscript" not in facts.weights:
        raise NotApplicable("no torchscript weights in the package")
    source = str(facts.weights["torchscript"].get("source"))
    good = "/" not in source.removeprefix("./") and source.endswith(".pt")
    return None if good else f"torchscript weights are {source!r}"


def _pytorch_version(facts: Facts) -> str | None:
    """A pytorch_version 2.x."""
    if "torchscript" not in facts.weights:
        raise NotApplicable("no torchscript weights in the package")
    version = str(facts.weights["torchscript"].get("pytorch_version"))
    return None if version.split(".")[0] == _ENGINE_MAJOR else f"pytorch_version is {version}"


def _axis_scale(facts: Facts) -> str | None:
    """Input axes without a scale."""
    scaled = [f"{axis.id} {axis.scale:g}" for tensor in facts.inputs for axis in tensor.axes if axis.scale != 1]
    return f"input axes have scale {', '.join(scaled)}" if scaled else None


def _min_of_step(facts: Facts) -> str | None:
    """Smallest sizes that are multiples of step."""
    for tensor in facts.inputs:
        for axis in tensor.axes:
            size = axis.min_step
            if size and size[0] % size[1]:
                return f"{tensor.id!r} {axis.id}: min {size[0]} is no multiple of step {size[1]}"
    return None


def _min_halo(facts: Facts) -> str | None:
    """Smallest sizes above twice the halo."""
    for tensor in facts.inputs:
        for axis in tensor.axes:
            halo, size = facts.halo_of_input.get((tensor.id, axis.id), 0), axis.min_step
            if size and size[0] <= 2 * halo:
                return f"{tensor.id!r} {axis.id}: min {size[0]} is not above twice the halo {halo:g}"
    return None


def _tile_voxels(facts: Facts) -> str | None:
    """A smallest tile of at most 50 million voxels, where sizes are a choice."""
    for tensor in facts.inputs:
        voxels = math.prod(_smallest(axis) for axis in tensor.axes)
        if voxels > _MAX_TILE_VOXELS and any(axis.min_step for axis in tensor.axes):
            return f"the smallest tile of {tensor.id!r} has {voxels / 1e6:.0f} million voxels, 50 million at most work"
    return None


def _smallest(axis: Axis) -> int:
    """The smallest declared size along an axis; one image of a batch."""
    if axis.kind == "batch":
        return 1
    if axis.kind == "channel":
        return len(axis.written.get("channel_names") or [""])
    size = axis.written.get("size")
    return axis.min_step[0] if axis.min_step else size if isinstance(size, int) else 1


def _onnx(facts: Facts) -> str | None:
    """ONNX weights of opset 18 and IR version 8 at most, in one file."""
    entry = facts.weights.get("onnx")
    if entry is None:
        return None
    opset, path = entry.get("opset_version"), facts.file_of(entry)
    if isinstance(opset, int) and opset > _MAX_OPSET:
        return f"the ONNX opset is {opset}, {_MAX_OPSET} at most"
    if entry.get("external_data"):
        return "the ONNX weights lie in a second file"
    if path is None:
        raise NotApplicable("the ONNX weights are not in the package")
    with path.open("rb") as file:
        field, version = file.read(2)  # a model starts with field 1, its IR version: a small number, so one byte
    return f"the ONNX IR version is {version}, {_MAX_IR} at most" if field == 8 and version > _MAX_IR else None


def _operations(facts: Facts) -> str | None:
    """Only processing steps that JDLL has."""
    strange = _strange_operations(facts)
    return f"processing uses {', '.join(strange)}" if strange else None


def _strange_operations(facts: Facts) -> list[str]:
    """The steps that JDLL lacks, as people call them."""
    strange = []
    for step in tensors.processing(facts):
        name, kwargs = str(step.get("id")), step.get("kwargs") or {}
        if name not in _OPERATIONS:
            strange.append(name)
        elif name == "clip" and (kwargs.get("min") is None or kwargs.get("max") is None):
            strange.append("clip with one bound")
        elif name == "scale_linear" and isinstance(kwargs.get("gain"), list) and len(kwargs["gain"]) > 1:
            strange.append("scale_linear with several gains")
    return strange


def _operations_fix(facts: Facts) -> str:
    """What to do about each step that JDLL lacks."""
    fixes = dict.fromkeys(_OPERATION_FIXES.get(name, _INTO_GRAPH.format(name)) for name in _strange_operations(facts))
    return " ".join(fixes)


def _deepimagej_config(facts: Facts) -> str | None:
    """No config.deepimagej, or one that allows tiles."""
    section = (facts.rdf.get("config") or {}).get("deepimagej")
    if section is None or (isinstance(section, dict) and section.get("allow_tiling") is True):
        return None
    return "config.deepimagej is there without allow_tiling: true"


def _frozen(facts: Facts) -> str | None:
    """TorchScript weights that were not frozen."""
    code = torchscript_code(facts)
    return None if code.has_parameters or not code.n_constants else "the TorchScript module has no parameters"


def _devices(facts: Facts) -> str | None:
    """TorchScript weights that live on no particular device."""
    code = torchscript_code(facts)
    if code.devices:
        return f"the TorchScript code names the devices {', '.join(code.devices)}"
    return f"the TorchScript weights were saved on {', '.join(code.saved_on)}" if code.saved_on else None


def _mode(facts: Facts) -> str | None:
    """TorchScript weights that were saved in evaluation mode."""
    code = torchscript_code(facts)
    is_wrong = code.in_training_mode and code.depends_on_mode
    return "the TorchScript module was saved in training mode" if is_wrong else None


def _norms(facts: Facts) -> str | None:
    """A network without norms over all pixels."""
    norms = torchscript_code(facts).norms
    return f"the TorchScript code uses {', '.join(norms)}, over all pixels at once" if norms else None


_PORTABLE_FIX = "Rewrite it with older operators, e.g. torch._C._nn.upsample_nearest2d or ConvTranspose."

RULES = (
    Rule(
        "fiji.format_version",
        "Fiji's JDLL does not read it",
        "Write format_version 0.5.9.",
        tensors.format_version,
    ),
    Rule(
        "fiji.plain_strings",
        "JDLL ends with a ClassCastException",
        "Write file names as plain strings, as format 0.5.9 does.",
        tensors.plain_strings,
    ),
    Rule("fiji.id", "JDLL ends with a NullPointerException", "Give the model a non-empty id.", _model_id),
    Rule("fiji.rdf_name", "JDLL looks for rdf.yaml", "Rename it to rdf.yaml.", _rdf_name),
    Rule(
        "fiji.weights_format",
        "deepImageJ runs torchscript and onnx",
        "Add torchscript weights.",
        tensors.needs_weights({"torchscript", "onnx"}),
    ),
    Rule(
        "fiji.weights_root",
        "JDLL finds a .pt file at the package's top level only",
        "Put the weights at the top level, named *.pt.",
        _weights_root,
    ),
    Rule(
        "fiji.pytorch_version",
        "JDLL picks an engine of that major version, and has 2.0 at most",
        "State the pytorch_version 2.x that the weights were saved with.",
        _pytorch_version,
    ),
    Rule(
        "fiji.axis_scale",
        "JDLL takes an input's scale for a change of size and crops the output",
        "Leave scale out of the input axes; keep pixel sizes in the documentation.",
        _axis_scale,
        formats="0.5",
    ),
    Rule(
        "fiji.axis_ids",
        "JDLL knows no other axes",
        "Name the axes batch, channel, (z,) y, x; time goes into batch.",
        tensors.axis_ids,
        formats="0.5",
    ),
    Rule("fiji.axis_order", "JDLL keeps one order", "Use one axis order.", tensors.axis_order, formats="0.5"),
    Rule(
        "fiji.channel_names",
        "JDLL sizes the channel axis by its names",
        "Add channel_names to every channel axis.",
        tensors.channel_names,
        formats="0.5",
    ),
    Rule(
        "fiji.single_io",
        "deepImageJ opens each output as an image of its own",
        "Use one input and one output; put several results into channels.",
        tensors.single_io,
        advice=True,
    ),
    Rule(
        "fiji.min_of_step",
        "JDLL rounds tiles to multiples of step",
        "Choose min as a multiple of step.",
        _min_of_step,
        formats="0.5",
    ),
    Rule(
        "fiji.min_halo",
        "a tile would be all halo",
        "Choose min above twice the halo.",
        _min_halo,
        formats="0.5",
    ),
    Rule(
        "fiji.processing_ops",
        "JDLL does not have these operations",
        "Compute these steps inside the network's graph, float32 in and out.",
        _operations,
        formats="0.5",
        fix_of=_operations_fix,
    ),
    Rule(
        "fiji.no_deepimagej_config",
        "deepImageJ then refuses to tile",
        "Remove config.deepimagej, or set allow_tiling: true.",
        _deepimagej_config,
    ),
    Rule(
        "fiji.archive_ops",
        "Fiji's engines, libtorch 1.13 to 2.0, cannot load it",
        _PORTABLE_FIX,
        tensors.torchscript_portability,
    ),
    Rule(
        "fiji.frozen",
        "it cannot be moved to a GPU",
        "Save it without torch.jit.freeze.",
        _frozen,
    ),
    Rule(
        "fiji.devices",
        "it fails on other devices",
        "Create tensors on the input's device, script instead of tracing, and save from the CPU.",
        _devices,
    ),
    Rule(
        "fiji.eval_mode",
        "Fiji's engine runs it as saved, so that it drops and normalises as in training",
        "Call eval() before torch.jit.script or torch.jit.trace.",
        _mode,
        advice=True,
    ),
    Rule(
        "fiji.norms",
        "results change with padding and with the size of tiles",
        "Train with batch normalisation or none; run.tiled and run.padding say how much it matters here.",
        _norms,
        advice=True,
    ),
    Rule(
        "fiji.tile_voxels",
        "JDLL looks for a smaller tile for ever",
        "Offer a fixed-size zip, or lower min.",
        _tile_voxels,
        advice=True,
        formats="0.5",
    ),
    Rule(
        "fiji.onnx",
        "Fiji's ONNX engine cannot load it",
        "Export with the legacy exporter: opset 18, IR version 8, one file; or keep torchscript next to it.",
        _onnx,
        advice=True,
    ),
)
"""What deepImageJ needs."""
