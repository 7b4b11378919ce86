"""The bioimage.io zoo, and the programs that run its models: bioimageio.core, the library, and BioEngine, the server.

The zoo itself refuses no model: the checks of the collection accept whatever bioimageio.spec accepts.
"""

import filecmp
import re
from datetime import date

from gap_bioimage.validation import rules
from gap_bioimage.validation.archive.rdf import is_url, walked
from gap_bioimage.validation.check import BLOCKS, DEGRADES, STYLE, NotApplicable, consumer, counted, rule
from gap_bioimage.validation.model import Model, source_of
from gap_bioimage.validation.rules import first

# fmt: off
_READS = ("torchscript", "onnx", "pytorch_state_dict", "keras_hdf5", "keras_v3", "tensorflow_saved_model_bundle")
_TENSORFLOW = ("keras_hdf5", "keras_v3", "tensorflow_saved_model_bundle", "tensorflow_js")
_BIOENGINE_INSTALLED = rules.ALWAYS_INSTALLED | {
    "torchvision", "onnxruntime", "tensorflow", "keras", "careamics", "cellpose", "stardist", "timm",
}
consumer("core", "bioimageio.core",
         "bioimageio.core is the Python library that most programs use to run models. It runs weights with the torch, "
         "ONNX Runtime or TensorFlow that is installed next to it.", 2, base=True)
consumer("zoo", "the bioimage.io zoo",
         "The bioimage.io model zoo presents models to users. It tests every upload with BioEngine and with the "
         "partners' own tests, and assigns a score.", 4)
consumer("bioengine", "BioEngine",
         "BioEngine is the server that runs models for web pages, such as the zoo's daily tests: bioimageio.core "
         "0.10.4 with torch 2.5.1, on one core with 12 GiB, 300 s a test.", 9, reads=_READS)
_SPEC = "bioimageio.spec 0.5.12, model/v0_5.py, ReproducibilityTolerance (2026-11)"
_SPEC_TENSORS = "bioimageio.spec 0.5.14, model/v0_5.py, validate_tensors (2026-11)"
_CORE = "bioimageio.core 0.9.6 to 0.11, run in several versions (2026-11)"
_GUIDE = "bioimage.io website 2026-08-20, its guide for authors and its upload form (2026-11)"
_UPLOAD = "bioimageio.spec 0.5.12, upload.py (2026-11)"
_RUNTIME = "BioEngine 2026-08-22, apps/model-runner (2026-11)"

_MAX_DESCRIPTION = 512
MAX_COVER_BYTES = 500_000
_MAX_FILES = 20
_MAX_README = 1_000_000
ASPECTS, _ASPECT_TOLERANCE = (1.0, 2.0), 0.02
HEADING = re.compile(r"^#+.*validation", re.MULTILINE | re.IGNORECASE)

rule("core.reproducibility_tolerance", DEGRADES, _SPEC,
     asks="A small tolerance of the test, if one is stated; bioimageio.spec itself refuses larger ones.",
     breaks="the test proves less than it should, and bioimageio.core 0.9 refuses the model",
     fix="State the smallest tolerance with which the test passes, in config.bioimageio.reproducibility_tolerance.",
)(lambda model: rules.tolerates(model, "mismatched_elements_per_million", 1000))


@rule("format.dtypes", DEGRADES, _SPEC_TENSORS, breaks="bioimageio.core converts them, other programs may not",
      fix="Store them with the declared data type (array.astype), or declare the data type that they have.")
def dtypes(model: Model) -> str | None:
    """Test tensors stored with the declared data type."""
    for tensor in model.tensors:
        array = model.test_array(tensor)
        if array is not None and tensor.data_type and array.dtype.name != tensor.data_type:
            return f"the test tensor of {tensor.id!r} is stored as {array.dtype.name}, not as {tensor.data_type}"
    return None


rule("core.output_channel", DEGRADES, _CORE, asks="An axis with the id channel on every output.",
     breaks="predicting large images block by block fails",
     fix="Keep an axis with the id channel on every output, also for a single channel.",
)(lambda model: first(f"{tensor.id!r} has no axis with the id channel"
                      for tensor in model.outputs if "channel" not in tensor.axis_ids))
rule("core.scale_linear", BLOCKS, _CORE, versions="0.4", asks="In format 0.4: scale_linear without axes.",
     breaks="bioimageio.core cannot run it", fix="Update the description to format 0.5, or leave the axes out.",
)(lambda model: first("scale_linear has axes" for name, kwargs in rules.steps_of_04(model)
                      if name == "scale_linear" and kwargs.get("axes")))
rule("core.custom_ops", DEGRADES, _CORE, breaks="bioimageio.core before 0.10.3 refuses the whole model",
     fix="Move the step into the network's graph, or tell users which version they need.")(rules.custom_processing)
rule("core.dependencies", DEGRADES, _CORE, weights=("pytorch_state_dict",),
     unless=("torchscript", "onnx", *_TENSORFLOW),
     asks="If there is only a state_dict: an architecture without further dependencies.",
     breaks="it runs only where these are installed",
     fix="Add torchscript weights, or an architecture that needs nothing but torch and numpy.",
)(lambda model: _by_running(model, rules.own_dependencies(model, rules.ALWAYS_INSTALLED)))


@rule("core.tensorflow", DEGRADES, rules.ZOO_REPORTS, fix="Add onnx weights.",
      breaks="some versions of TensorFlow and Keras run it and others refuse it")
def tensorflow(model: Model) -> str | None:
    """Weights that do not need TensorFlow."""
    is_only = model.weights and {*_TENSORFLOW}.issuperset(model.weights)
    return _by_running(model, f"the only weights are {', '.join(model.weights)}" if is_only else None)


def _by_running(model: Model, problem: str | None) -> str | None:
    """Return the problem; raise `NotApplicable` if there are no files to run, since only a run can confirm it."""
    if problem and not model.with_files:
        raise NotApplicable(f"{problem}: only a run can show whether it works", "Validate the whole model.")
    return problem


@rule("zoo.name", STYLE, _GUIDE, breaks="people find it less easily",
      fix="Choose a name of 5 to 128 letters, digits, spaces or _+-().")
def name(model: Model) -> str | None:
    """A name of 5 to 128 plain characters."""
    written = str(model.rdf.get("name") or "")
    if not 5 <= len(written) <= 128:
        return f"the name has {counted(len(written), 'character')}, 5 to 128 are expected"
    return None if re.fullmatch(r"[A-Za-z0-9_+\- ()]*", written) else "the name contains unusual characters"


rule("zoo.description", STYLE, _GUIDE, asks="A description of 1 to 512 characters; 1024 is the limit.",
     breaks="the website truncates it", fix=f"Describe the model in at most {_MAX_DESCRIPTION} characters.",
)(lambda model: None if 0 < (length := len(str(model.rdf.get("description") or ""))) <= _MAX_DESCRIPTION
  else f"the description has {length} characters, 1 to {_MAX_DESCRIPTION} are expected")
rule("zoo.authors", STYLE, _GUIDE, asks="Authors, each with a name.", breaks="nobody knows whom to credit",
     fix="List the authors with their names.",
)(lambda model: None if (people := model.mappings("authors")) and all(person.get("name") for person in people)
  else "authors without names")
rule("zoo.cite", STYLE, _GUIDE, asks="A citation with text and a DOI or URL.", breaks="nobody knows what to cite",
     fix="Add a citation with text and doi or url.",
)(lambda model: None if (citations := model.mappings("cite")) and all(
    entry.get("text") and (entry.get("doi") or entry.get("url")) for entry in citations)
  else "no citation, or one without text and doi or url")
rule("zoo.tags", STYLE, _GUIDE, asks="Tags.", breaks="nobody finds the model",
     fix="Add tags, e.g. denoising, 2d, fluorescence.",
)(lambda model: None if model.texts("tags") else "there are no tags")
rule("zoo.maintainers", STYLE, _GUIDE, asks="A maintainer with a GitHub name.", breaks="the zoo has nobody to contact",
     fix="List a person with a github_user as maintainer.",
)(lambda model: None if any(person.get("github_user")
                            for person in model.mappings("maintainers") or model.mappings("authors"))
  else "no author or maintainer has a github_user")
rule("zoo.id", STYLE, _UPLOAD, versions="0.5", asks="No id in an uploaded description.",
     breaks="bioimageio.spec's own upload refuses it, since the zoo assigns ids",
     fix="Remove the id for the upload only; Fiji needs one in a zip that is passed from person to person.",
)(lambda model: "id is given" if model.rdf.get("id") else None)
rule("zoo.single_io", DEGRADES, rules.ZOO_TEST, asks="One input; several outputs are fine.", fix=rules.ONE_INPUT,
     breaks="the zoo reports the model as failing in deepImageJ")(rules.single_input)
rule("zoo.tolerance", DEGRADES, rules.ZOO_TEST,
     asks="A test that needs no tolerance beyond that of the zoo's deepImageJ check.",
     breaks="the zoo reports the model as failing in deepImageJ, which allows 1.5e-4 + 1e-4 of the value",
     fix="Write test outputs that the weights reproduce more closely, computed on a CPU.",
)(lambda model: rules.tolerates(model, "absolute_tolerance", 1.5e-4))
rule("zoo.custom_ops", STYLE, _GUIDE, breaks="publishing takes longer: the zoo's reviewers read the code first",
     fix="Move the step into the network's graph, or tell users what the model needs.")(rules.custom_processing)


@rule("zoo.license", STYLE, _GUIDE, fix="State e.g. license: CC-BY-4.0.",
      breaks="users cannot tell what they may do with the model")
def license_id(model: Model) -> str | None:
    """A licence by its SPDX identifier."""
    from bioimageio.spec.utils import get_spdx_licenses

    written, known = model.rdf.get("license"), get_spdx_licenses()["licenses"]
    stated = "no license is stated" if written is None else f"license is {written!r}"
    return None if written in [entry["licenseId"] for entry in known] else stated


@rule("zoo.documentation", STYLE, _GUIDE, repair="readme", breaks="readers do not learn how far to trust the model",
      fix="Add a README.md with the sections Description, Intended Use, Validation and Citation.")
def documentation(model: Model) -> str | None:
    """A README with a heading about validation."""
    path = model.file_of(entry := model.rdf.get("documentation"))
    if is_url(str(source_of(entry))):
        raise NotApplicable("the documentation is on a server")
    if path is None:
        return "there is no documentation file"
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_MAX_README)
    return None if HEADING.search(text) else f"{path.name} has no heading about validation"


@rule("zoo.cover", STYLE, _GUIDE, breaks="the zoo draws a test image, or crops a cover of another shape",
      fix="Add a cover of 2:1 or 1:1, below 500 kB.")
def cover(model: Model) -> str | None:
    """A cover with an aspect ratio of 2:1 or 1:1, below 500 kB."""
    from PIL import Image

    covers = model.rdf.get("covers")
    if not isinstance(covers, list) or not covers:
        return "there is no cover"
    for path in map(model.file_of, covers):
        if path is None:
            raise NotApplicable("a cover is not in the package")
        if path.stat().st_size > MAX_COVER_BYTES:
            return f"{path.name} has {path.stat().st_size // 1000} kB, at most 500 are expected"
        try:
            with Image.open(path) as image:  # reads the header only
                size = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            return f"{path.name} is not an image of a reasonable size"
        if not has_good_aspect(size):
            return f"{path.name} is {size[0]} x {size[1]}, 2:1 or 1:1 is expected"
    return None


def has_good_aspect(size: tuple[int, int]) -> bool:
    """Whether the zoo shows a cover of this size uncropped."""
    return any(abs(size[0] / size[1] / aspect - 1) <= _ASPECT_TOLERANCE for aspect in ASPECTS)


rule("zoo.test_hashes", STYLE, _GUIDE, versions="0.5", repair="hashes", asks="Test tensors with their sha256.",
     breaks="changes to them go unnoticed", fix="State the sha256 of every test_tensor.",
)(lambda model: first(f"the test tensor of {tensor.id!r} has no sha256" for tensor in model.tensors
                      if isinstance(test := tensor.written.get("test_tensor"), dict) and not test.get("sha256")
                      and not is_url(str(test.get("source")))))


@rule("zoo.sample_tensor", DEGRADES, rules.ZOO_TEST, repair="sample_tensors",
      breaks="the zoo reports the model as failing in deepImageJ", fix="Leave sample_tensor out.")
def sample_tensor(model: Model) -> str | None:
    """No sample_tensor that differs from its test_tensor."""
    for tensor in model.tensors:
        if (sample := tensor.written.get("sample_tensor")) is not None:
            files = model.file_of(sample), model.file_of(tensor.written.get("test_tensor"))
            if files[0] is None or files[1] is None or not filecmp.cmp(files[0], files[1], shallow=False):
                return f"the sample_tensor of {tensor.id!r} is not its test_tensor"
    return None


@rule("zoo.test_of_step", DEGRADES, rules.ZOO_TEST, fix="Crop the test input to a multiple of step.",
      breaks="the zoo reports the model as failing in deepImageJ, which pads it")
def test_of_step(model: Model) -> str | None:
    """A test input whose sizes are multiples of step."""
    for tensor in model.inputs:
        array = model.test_array(tensor)
        if array is None or array.ndim != len(tensor.axes):
            raise NotApplicable(f"the test input of {tensor.id!r} is not an .npy file in the package with its axes")
        for axis, size in zip(tensor.axes, array.shape, strict=True):
            if axis.min_step and axis.min_step[1] and size % axis.min_step[1]:
                return f"the test input is {size} along {axis.id}, not a multiple of step {axis.min_step[1]}"
    return None


@rule("zoo.few_files", STYLE, _GUIDE, breaks="downloads are larger, and programs may miss files in subfolders",
      fix="Leave out files that the model does not need, and put the others at the top level.")
def few_files(model: Model) -> str | None:
    """At most 20 files, none of them in a subfolder."""
    names = model.need_files().names
    nested = [name for name in names if "/" in name]
    if len(names) > _MAX_FILES:
        return f"the package holds {len(names)} files"
    return f"{counted(len(nested), 'file')} in subfolders, such as {nested[0][:80]}" if nested else None


rule("bioengine.weights_format", BLOCKS, _RUNTIME, asks="Weights other than tensorflow_js.", fix=rules.ADD_TORCHSCRIPT,
     breaks="BioEngine cannot run the model",
)(lambda model: rules.lacks_weights(model, _READS))
rules.reads_plain_strings("bioengine", _RUNTIME, "BioEngine's bioimageio.spec 0.5.10.2 refuses it")
rule("bioengine.channel_names", BLOCKS, _RUNTIME, repair="channel_names",
     fix="Name channels by identifiers, such as channel0.",
     breaks="BioEngine's bioimageio.spec 0.5.10.2 refuses it")(rules.identifiers)
rule("bioengine.imports", BLOCKS, _RUNTIME, weights=("pytorch_state_dict",),
     asks="Architecture code that imports only packages of BioEngine.",
     breaks="BioEngine cannot build the network, and its test of the model fails",
     fix="Import only torch, torchvision, timm, careamics, cellpose, stardist, TensorFlow, or give only torchscript.",
)(lambda model: rules.foreign_imports(model, _BIOENGINE_INSTALLED))
rule("bioengine.archive_ops", DEGRADES, _RUNTIME, weights=("torchscript",), fix=rules.OLDER_OPERATORS,
     breaks="BioEngine's torch 2.5.1 may not load it")(rules.unportable)
rule("bioengine.custom_ops", STYLE, _RUNTIME,
     fix="Import only packages of BioEngine, or move the step into the network's graph.",
     breaks="BioEngine's bioimageio.core 0.10.4 runs it without asking, with the installed libraries",
)(rules.custom_processing)


@rule("bioengine.arguments", BLOCKS, _RUNTIME, weights=("pytorch_state_dict",),
      breaks="BioEngine cannot build the network",
      fix="Build other objects inside the architecture's code.")
def arguments(model: Model) -> str | None:
    """Keyword arguments of the architecture that are plain values."""
    kwargs = model.architecture.get("kwargs")
    pairs = kwargs.items() if isinstance(kwargs, dict) else ()
    objects = (name for name, value in pairs if any(isinstance(inner, dict | date) for inner in walked(value)))
    return first(f"the argument {name!r} of the architecture is not a plain value" for name in objects)
