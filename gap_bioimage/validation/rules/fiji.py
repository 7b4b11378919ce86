"""deepImageJ in Fiji, whose engine is JDLL."""

import math
import re

from gap_bioimage.validation import rules
from gap_bioimage.validation.check import BLOCKS, DEGRADES, NotApplicable, Outcome, consumer, rule
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.rules import JDLL, JDLL_SPEC, ZOO_REPORTS, first

# fmt: off
_NATIVE = ("torchscript", "onnx", "tensorflow_saved_model_bundle")
_READS = (*_NATIVE, "pytorch_state_dict")
consumer("fiji", "Fiji (deepImageJ)",
         "deepImageJ runs models in Fiji. It is written in Java; its engine, JDLL, reads the description by itself and "
         "runs TorchScript in libtorch 1.13 to 2.0, which is older than what most models are made with.", 5,
         reads=_READS)

_OPERATIONS = {
    "binarize", "clip", "scale_linear", "scale_range", "sigmoid", "zero_mean_unit_variance",
    "fixed_zero_mean_unit_variance", "ensure_dtype",
}
_FIXED = "fixed_zero_mean_unit_variance"
# number of values along an axis that JDLL cannot handle: it applies the first of several gains to all channels, has no
# threshold per channel, and reads beyond its arrays in the fixed normalisation of format 0.5
_TOO_MANY = {"scale_linear": 2, "binarize": 1, _FIXED: 1}
_DTYPES = "float32 float64 int8 uint8 int16 uint16 int32 uint32 int64".split()
_INSTALLED = rules.ALWAYS_INSTALLED | {  # installed by JDLL 0.6.4-SNAPSHOT, DLModelPytorchProtected
    "torchvision", "biapy", "careamics", "cellpose", "stardist", "timm", "torchmetrics", "pytorch_msssim", "einops",
    "skimage", "pandas", "torchinfo",
}
_MAX_TILE_VOXELS = 3 * 4096**2
_MAX_OPSET, _MAX_IR = 18, 8
_ENGINES = "JDLL 0.6.3, engine/DeepLearningVersion and the engines that it installs (2026-11)"

rules.reads_plain_strings("fiji", JDLL, "Fiji cannot open the model: JDLL reads no files written as {source, sha256}")
rule("fiji.id", BLOCKS, JDLL, versions="0.5", repair="fill_id", breaks="Fiji cannot open the model",
     asks="A non-empty id; in format 0.4 JDLL creates one itself.",
     fix="Give the model a non-empty id; remove it only for an upload to the zoo, which assigns ids itself.",
)(lambda model: None if model.rdf.get("id") else "id is empty")
rule("fiji.weights_format", BLOCKS, _ENGINES, asks="Weights other than Keras and tensorflow_js.",
     breaks="Fiji has no engine for the model's weights", fix=rules.ADD_TORCHSCRIPT,
)(lambda model: rules.lacks_weights(model, _READS))
rule("fiji.axis_ids", BLOCKS, JDLL_SPEC, fix=rules.NAMED_AXES, breaks="Fiji cannot open the model")(
     rules.axis_ids)
rule("fiji.channel_names", BLOCKS, JDLL_SPEC, repair="channel_names", fix="Add channel_names to every channel axis.",
     breaks="Fiji cannot run the model: JDLL counts the channels by these names")(rules.channel_names)
rule("fiji.archive_ops", BLOCKS, JDLL, weights=("torchscript",), fix=rules.OLDER_OPERATORS,
     breaks="Fiji's engines, libtorch 1.13 to 2.0, cannot load it")(rules.unportable)
rule("fiji.rdf_name", BLOCKS, JDLL, repair="rename_description", asks="A description named rdf.yaml.",
     breaks="Fiji does not find the model", fix="Rename it to rdf.yaml.",
)(lambda model: None if (name := model.need_files().rdf_name) == "rdf.yaml" else f"the description is named {name}")
rule("fiji.state_dict", BLOCKS, ZOO_REPORTS, weights=("pytorch_state_dict",), unless=_NATIVE,
     asks="If there is only a state_dict: one that needs only torch, BiaPy, CAREamics, Cellpose or StarDist.",
     breaks="Fiji cannot run the model: its own Python environment lacks this", fix=rules.ADD_TORCHSCRIPT,
)(lambda model: rules.foreign_imports(model, _INSTALLED))
rule("fiji.state_dict_file", BLOCKS, "JDLL 0.6.4-SNAPSHOT, model/python/DLModelPytorchProtected (2026-11)",
     weights=("pytorch_state_dict",), unless=_NATIVE, breaks="Fiji refuses the weights",
     asks="If there is only a state_dict: weights named *.pt or *.pth.", fix="Name the file *.pt or *.pth.",
)(lambda model: None if (source := str(model.weights["pytorch_state_dict"].get("source")).split("?")[0]).endswith(
    (".pt", ".pth")) else f"the weights are {source[-80:]!r}")
rule("fiji.axis_scale", BLOCKS, JDLL, repair="axis_scale", asks="Input axes without a scale.",
     breaks="Fiji crops the result: JDLL mistakes an input's scale for a change of size",
     fix="Leave scale out of the input axes; keep pixel sizes in the documentation.",
)(lambda model: first(f"the input axis {axis.id} of {tensor.id!r} has scale {axis.scale:g}"
                      for tensor in model.inputs for axis in tensor.axes if axis.scale not in (0, 1)))
rule("fiji.output_size", BLOCKS, "JDLL 0.6.4-SNAPSHOT, TileMaker.getOutputTiles (2026-11)", versions="0.5",
     asks="Outputs as large as the input that their sizes refer to; JDLL reads others correctly only in format 0.4.",
     breaks="Fiji's results have a wrong size: JDLL multiplies by the scale, and adds the offset twice",
     fix="State the sizes of input and output as numbers, or enlarge (crop, pad) the output in the network.",
)(lambda model: first(f"the output axis {axis.id} of {tensor.id!r} has scale {axis.scale:g} and offset {offset}"
                      for tensor in model.outputs for axis in tensor.axes
                      if isinstance(size := axis.written.get("size"), dict) and "axis_id" in size
                      and ((offset := size.get("offset") or 0) or axis.scale not in (0, 1))))
rule("fiji.explicit_axis_ids", BLOCKS, JDLL, versions="0.5", repair="axis_ids",
     asks="An explicit id on every space axis.", fix="Write id: x on that axis, although it is the default.",
     breaks="Fiji cannot open the model: JDLL throws 'Invalid axis configuration'",
)(lambda model: first(f"a space axis of {tensor.id!r} has no id" for tensor in model.tensors for axis in tensor.axes
                      if axis.kind == "space" and not axis.written.get("id")))
rule("fiji.explicit_tensor_ids", BLOCKS, "JDLL 0.6.4-SNAPSHOT, findInputTensor and TileCalculator (2026-11)",
     versions="0.5", repair="tensor_ids", asks="An explicit id on every input and output.",
     breaks="Fiji cannot run the model: JDLL looks tensors up by their ids",
     fix="Write id: input or id: output on that tensor, although it is the default.",
)(lambda model: first(f"the {tensor.id} has no id" for tensor in model.tensors if not tensor.written.get("id")))
rule("fiji.axis_order", BLOCKS, JDLL_SPEC, asks="The same axis order in and out.", fix="Use one axis order.",
     breaks="Fiji mixes up the axes of the result",
)(lambda model: first(f"axis orders differ: {', '.join(model.tensors[0].axis_ids)} and {', '.join(tensor.axis_ids)}"
                      for tensor in model.tensors if tensor.axis_ids != model.tensors[0].axis_ids))
rule("fiji.frozen", DEGRADES, JDLL, weights=("torchscript",), asks="TorchScript weights that were not frozen.",
     breaks="a frozen module cannot be moved to a GPU", fix="Save it without torch.jit.freeze.",
)(lambda model: "the TorchScript module has no parameters"
  if (code := rules.torchscript_code(model)).n_constants and not code.has_parameters else None)
rule("fiji.norms", DEGRADES, JDLL, weights=("torchscript",), asks="A network that does not normalise over all pixels.",
     breaks="results change with padding and tile size",
     fix="Train with batch normalisation or none; run.tiled measures the effect.",
)(lambda model: first(f"the TorchScript code uses {norm}, which normalises over all pixels"
                      for norm in rules.torchscript_code(model).norms))
rule("fiji.weights_root", BLOCKS, JDLL, weights=("torchscript",), repair="flatten",
     asks="TorchScript weights at the top level.", fix="Put the weights at the top level.",
     breaks="Fiji does not find the weights",
)(lambda model: f"torchscript weights are {source!r}"
  if "/" in (source := str(model.weights["torchscript"].get("source"))).removeprefix("./") and "://" not in source
  else None)


@rule("fiji.state_dict_values", BLOCKS, ZOO_REPORTS, weights=("pytorch_state_dict",), unless=_NATIVE,
      breaks="Fiji's Python environment then gives other values, as the zoo's tests show; the cause is unknown",
      fix="Add torchscript weights, which Fiji runs natively.")
def state_dict_values(model: Model) -> str | None:
    """If there is only a state_dict: cubic images of a fixed size."""
    sizes = [axis.size for tensor in model.inputs[:1] for axis in tensor.axes if axis.kind == "space"]
    is_cube = len(sizes) == 3 and len(set(sizes)) == 1 and bool(sizes[0])
    return None if is_cube else f"the only weights are a state_dict, for {len(sizes)}D images that are not fixed cubes"


@rule("fiji.stardist", BLOCKS, "JDLL 0.6.4-SNAPSHOT, bioimageio/description/stardist (2026-11)",
      breaks="Fiji cannot open the model: JDLL reads these arrays with a StarDist description (3 of 3 reports)",
      fix="Keep the test tensors in the package.")
def stardist(model: Model) -> str | None:
    """The test tensors of a StarDist model, in its package."""
    if "stardist" not in str(model.rdf.get("name")).lower() or rules.section(model.rdf, "stardist") is None:
        raise NotApplicable("it is not a StarDist model")
    if not model.with_files:
        raise NotApplicable("JDLL needs the test tensors of a StarDist model", "Validate the whole model.")
    missing = [tensor.id for tensor in model.tensors if model.test_array(tensor) is None]
    return f"the test tensor of {missing[0]!r} is missing" if missing else None


@rule("fiji.pytorch_version", BLOCKS, _ENGINES, weights=("torchscript",),
      breaks="Fiji has no engine for the weights: it has torch 1.5 to 2.0",
      fix="State the pytorch_version that the weights were saved with, 1.5 to 2.x; without one 1.13.1 is used.")
def pytorch_version(model: Model) -> str | None:
    """A pytorch_version of 1.5 to 2.x, or none; 1.10 without quotes is the number 1.1."""
    written = model.weights["torchscript"].get("pytorch_version")
    parts = re.match(r"(\d{1,6})(?:\.(\d{1,6}))?", str(written))
    if written in (None, 1.1) or (parts and (1, 5) <= (int(parts[1]), int(parts[2] or 99)) < (3, 0)):
        return None
    return f"pytorch_version is {written}"


@rule("fiji.single_io", BLOCKS, rules.ZOO_TEST, breaks="Fiji does not run the model", fix=rules.ONE_INPUT)
def single_io(model: Model) -> str | Outcome | None:
    """One input; several outputs open as separate images."""
    if (problem := rules.single_input(model)) is None and len(model.outputs) > 1:
        return Outcome("warning", f"the {len(model.outputs)} outputs open as separate images", rules.ONE_OF_EACH)
    return problem


@rule("fiji.test_tensors", BLOCKS, ZOO_REPORTS, breaks="Fiji cannot test the model: JDLL throws",
      fix="Store test tensors as .npy files of a dtype that Java has, e.g. uint8 instead of bool.")
def test_tensors(model: Model) -> str | None:
    """Test tensors in .npy files, of a dtype that JDLL reads: not bool, float16 or uint64."""
    for tensor in model.tensors:
        test = tensor.written.get("test_tensor")
        source = str(test.get("source")) if isinstance(test, dict) else str(test or "")
        if source and not source.split("?")[0].endswith(".npy"):
            return f"the test tensor of {tensor.id!r} is {source[:80]!r}"
        array = model.test_array(tensor) if model.with_files else None
        dtypes = [tensor.data_type] if array is None else [tensor.data_type, array.dtype.name]
        if unsupported := [name for name in dtypes if name and name not in _DTYPES]:
            return f"the test tensor of {tensor.id!r} is of type {unsupported[0]}"
    return None


def _parameterized(model: Model) -> list[tuple[str, str, int, int, float]]:
    """Return input, axis, min, step and halo of every parameterized size."""
    axes = [(tensor.id, axis.id, axis.min_step) for tensor in model.inputs for axis in tensor.axes]
    return [(name, axis, *size, model.halo_of_input.get((name, axis), 0.0)) for name, axis, size in axes if size]


rule("fiji.min_of_step", BLOCKS, JDLL, asks="Smallest sizes that are multiples of step.",
     breaks="Fiji cuts tiles of other sizes, multiples of step", fix="Choose min as a multiple of step.",
)(lambda model: first(f"{name!r} {axis}: min {smallest} is not a multiple of step {step}"
                      for name, axis, smallest, step, _ in _parameterized(model) if step and smallest % step))
rule("fiji.min_halo", BLOCKS, JDLL, asks="Smallest sizes above twice the halo.",
     breaks="Fiji cannot join tiles that are all halo", fix="Choose min above twice the halo.",
)(lambda model: first(f"{name!r} {axis}: min {smallest} is not above twice the halo {halo:g}"
                      for name, axis, smallest, _, halo in _parameterized(model) if smallest <= 2 * halo))
rule("fiji.off_grid", DEGRADES, JDLL, weights=("torchscript",), asks="Sizes in steps of 1, or no halo.",
     breaks="JDLL splits an image whose size plus halo is not on that grid into two tiles, the second off the "
            "network's pooling grid: several times slower, with errors of up to 8 %",
     fix="Let the network pad by itself and declare step: 1, or tell users which sizes are on the grid.",
)(lambda model: first(f"{name!r} grows in steps of {step} along {axis}"
                      for name, axis, _, step, halo in _parameterized(model) if step > 1 and halo))


@rule("fiji.processing_ops", BLOCKS, JDLL, breaks="Fiji cannot run the model: JDLL does not implement these operations",
      fix="Compute them inside the network's graph; give clip both a min and a max, and the others single numbers.")
def processing_ops(model: Model) -> str | None:
    """Only processing steps of JDLL: binarize, clip, scale_linear, scale_range, sigmoid, normalisation."""
    unsupported = []
    for step in model.steps:
        name, kwargs = str(step.get("id")), step.get("kwargs") or {}
        several = [kwargs[key] for key in ("gain", "offset", "threshold", "mean") if isinstance(kwargs.get(key), list)]
        n_along = max(map(len, several), default=0)
        if name not in _OPERATIONS:
            unsupported.append(name)
        elif name == "clip" and (kwargs.get("min") is None or kwargs.get("max") is None):
            unsupported.append("clip with one bound")
        elif n_along >= _TOO_MANY.get(name, math.inf) and (name != _FIXED or model.version.startswith("0.5")):
            unsupported.append(f"{name} along an axis")
    return f"processing uses {', '.join(unsupported)}" if unsupported else None


@rule("fiji.no_deepimagej_config", BLOCKS, JDLL, repair="deepimagej_config", breaks="Fiji refuses larger images",
      fix="Remove config.deepimagej, or set allow_tiling: true.")
def keeps_from_tiling(model: Model) -> str | None:
    """No config.deepimagej, or one that allows tiling."""
    config = rules.section(model.rdf, "deepimagej")
    allows = config is None or (isinstance(config, dict) and config.get("allow_tiling") is True)
    return None if allows else "config.deepimagej is given without allow_tiling: true"


@rule("fiji.devices", DEGRADES, JDLL, weights=("torchscript",), breaks="the model fails on other devices",
      fix="Create tensors on the input's device, script instead of tracing, and save from the CPU.")
def devices(model: Model) -> str | None:
    """TorchScript weights that are not bound to a device."""
    code = rules.torchscript_code(model)
    if code.devices:
        return f"the TorchScript code names the devices {', '.join(code.devices)}"
    return f"the TorchScript weights were saved on {', '.join(code.saved_on)}" if code.saved_on else None


@rule("fiji.tile_voxels", DEGRADES, JDLL, breaks="Fiji hangs: JDLL searches endlessly for a smaller tile",
      fix="Offer a fixed-size zip, or lower min.")
def tile_voxels(model: Model) -> str | None:
    """A smallest tile of at most 50 million voxels, if sizes are parameterized."""
    flexible = [tensor for tensor in model.inputs if any(axis.min_step for axis in tensor.axes)]
    voxels = max((math.prod(axis.smallest for axis in tensor.axes) for tensor in flexible), default=0)
    if voxels <= _MAX_TILE_VOXELS:
        return None
    return f"the smallest tile has {voxels / 1e6:.0f} million voxels, at most 50 million work"


@rule("fiji.onnx", BLOCKS, _ENGINES, weights=("onnx",), breaks="Fiji's ONNX engine cannot load it",
      fix="Export with the legacy exporter: opset 18, IR version 8, one file; or keep torchscript next to it.")
def onnx(model: Model) -> str | Outcome | None:
    """ONNX weights of at most opset 18 and IR version 8, in one file; a warning if Fiji can run other weights."""
    entry, problem = model.weights["onnx"], ""
    opset = entry.get("opset_version")
    if isinstance(opset, int) and opset > _MAX_OPSET:
        problem = f"the ONNX opset is {opset}, expected at most {_MAX_OPSET}"
    elif entry.get("external_data"):
        problem = "the ONNX weights are split into two files"
    elif (path := model.file_of(entry)) is None:
        raise NotApplicable("the ONNX weights are not in the package")
    else:
        with path.open("rb") as file:
            head = file.read(2)  # a model starts with field 1, its IR version, a number of one byte
        if len(head) == 2 and head[0] == 8 and head[1] > _MAX_IR:
            problem = f"the ONNX IR version is {head[1]}, expected at most {_MAX_IR}"
    others = sorted(set(_READS) & set(model.weights) - {"onnx"}) if problem else []
    return Outcome("warning", f"{problem}, so Fiji runs {', '.join(others)}") if others else problem or None
