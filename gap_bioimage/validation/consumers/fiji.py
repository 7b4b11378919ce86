"""deepImageJ in Fiji, whose engine is JDLL 0.6."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.consumers import tensors
from gap_bioimage.validation.consumers.rule import NotApplicable, Rule
from gap_bioimage.validation.consumers.tensors import torchscript_code

if TYPE_CHECKING:
    from gap_bioimage.validation.facts import Facts

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
_ENGINE_MAJOR = "2"


def _model_id(facts: Facts) -> str | None:
    return None if facts.rdf.get("id") else "id is empty"


def _rdf_name(facts: Facts) -> str | None:
    return None if facts.package.rdf_name == "rdf.yaml" else f"the description is named {facts.package.rdf_name}"


def _weights_format(facts: Facts) -> str | None:
    if {"torchscript", "onnx"} & facts.weights.keys():
        return None
    return f"weights are given as {', '.join(facts.weights) or 'nothing'} only"


def _weights_root(facts: Facts) -> str | None:
    if "torchscript" not in facts.weights:
        raise NotApplicable("no torchscript weights in the package")
    source = str(facts.weights["torchscript"].get("source"))
    good = "/" not in source.removeprefix("./") and source.endswith(".pt")
    return None if good else f"torchscript weights are {source!r}"


def _pytorch_version(facts: Facts) -> str | None:
    if "torchscript" not in facts.weights:
        raise NotApplicable("no torchscript weights in the package")
    version = str(facts.weights["torchscript"].get("pytorch_version"))
    return None if version.split(".")[0] == _ENGINE_MAJOR else f"pytorch_version is {version}"


def _axis_scale(facts: Facts) -> str | None:
    scaled = [f"{axis.id} {axis.scale:g}" for tensor in facts.inputs for axis in tensor.axes if axis.scale != 1]
    return f"input axes have scale {', '.join(scaled)}" if scaled else None


def _min_of_step(facts: Facts) -> str | None:
    for tensor in facts.inputs:
        for axis in tensor.axes:
            size = axis.min_step
            if size and size[0] % size[1]:
                return f"{tensor.id!r} {axis.id}: min {size[0]} is no multiple of step {size[1]}"
    return None


def _min_halo(facts: Facts) -> str | None:
    for tensor in facts.inputs:
        for axis in tensor.axes:
            halo, size = facts.halo_of_input.get((tensor.id, axis.id), 0), axis.min_step
            if size and size[0] <= 2 * halo:
                return f"{tensor.id!r} {axis.id}: min {size[0]} is not above twice the halo {halo:g}"
    return None


def _operations(facts: Facts) -> str | None:
    used = [step for tensor in [*facts.inputs, *facts.outputs] for step in tensor.steps]
    strange = [str(step.get("id")) for step in used if step.get("id") not in _OPERATIONS]
    for step in used:
        kwargs = step.get("kwargs") or {}
        if step.get("id") == "clip" and (kwargs.get("min") is None or kwargs.get("max") is None):
            strange.append("clip with one bound")
        if step.get("id") == "scale_linear" and isinstance(kwargs.get("gain"), list) and len(kwargs["gain"]) > 1:
            strange.append("scale_linear with several gains")
    return f"processing uses {', '.join(strange)}" if strange else None


def _deepimagej_config(facts: Facts) -> str | None:
    section = (facts.rdf.get("config") or {}).get("deepimagej")
    if section is None or (isinstance(section, dict) and section.get("allow_tiling") is True):
        return None
    return "config.deepimagej is there without allow_tiling: true"


def _frozen(facts: Facts) -> str | None:
    code = torchscript_code(facts)
    return None if code.has_parameters or not code.n_constants else "the TorchScript module has no parameters"


def _devices(facts: Facts) -> str | None:
    devices = torchscript_code(facts).devices
    return f"the TorchScript code names the devices {', '.join(devices)}" if devices else None


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
    Rule("fiji.weights_format", "deepImageJ runs torchscript", "Add torchscript weights.", _weights_format),
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
        "Fiji shows several outputs, the zoo's deepImageJ check fails",
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
        "Put normalisation into the network's graph: float32 in, float32 out.",
        _operations,
        formats="0.5",
    ),
    Rule(
        "fiji.no_deepimagej_config",
        "deepImageJ then refuses to tile",
        "Remove config.deepimagej, or set allow_tiling: true.",
        _deepimagej_config,
    ),
    Rule(
        "fiji.archive_ops",
        "Fiji's libtorch 2.0 cannot load it",
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
        "Create tensors on the input's device, and script instead of tracing.",
        _devices,
    ),
)
"""What deepImageJ needs."""
