"""All checks that a report may contain, in its order, and a page about them for authors of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gap_bioimage.validation.checks import CONSUMERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.old_rules.rule import Rule
    from gap_bioimage.validation.running.dynamic import DynamicCheck

WEIGHTS_FORMATS = (
    "pytorch_state_dict",
    "torchscript",
    "onnx",
    "keras_hdf5",
    "keras_v3",
    "tensorflow_js",
    "tensorflow_saved_model_bundle",
)
"""Formats of weights that a description may give."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One check.

    Parameters
    ----------
    id, consumer
        As in `Check`.
    how
        ``static`` if the files are looked at, ``run`` if the model is run.
    asks
        What is asked of the model, in one sentence.
    breaks
        What happens without it.
    fix
        What the author does about it; empty where that depends on what was found, and the report says it.
    """

    id: str
    consumer: str
    how: Literal["static", "run"]
    asks: str
    breaks: str
    fix: str = ""


def _static(check_id: str, asks: str, breaks: str, fix: str) -> Entry:
    return Entry(check_id, check_id.split(".", 1)[0], "static", asks, breaks, fix)


def _run(check_id: str, asks: str, breaks: str, fix: str) -> Entry:
    return Entry(check_id, check_id.split(".", 1)[0], "run", asks, breaks, fix)


_FEWER = "Keep the package to the files that the model needs."

_ARCHIVE = (
    _static("archive.paths", "Paths that stay inside the package.", "unpacking it would write elsewhere",
            "Zip plain files, by relative paths."),
    _static("archive.duplicates", "Every name once, also where upper and lower case count as one.",
            "programs take different files of one name", "Write every file once."),
    _static("archive.encrypted", "No password.", "nobody can read it", "Zip without a password."),
    _static("archive.compression", "Entries that are stored or deflated.",
            "Java programs such as Fiji cannot unpack it", "Zip with deflate, or without compression."),
    _static("archive.bomb", "A size that can be unpacked.", "it would fill a user's disk", _FEWER),
    _static("archive.intact", "A whole zip.", "it cannot be unpacked", "Write the zip again."),
    _static("archive.rdf", "A description that can be read.", "no program knows what the package is",
            "Correct the line that is named, or write the description again."),
    _static("archive.one_rdf", "One description.", "programs may read another description than the one checked here",
            "Keep one description, named rdf.yaml."),
    _static("archive.references", "References to files inside the package.", "programs would read other files",
            "Refer to files by their names inside the package."),
    _static("archive.files", "Every file that the description names.", "the model cannot be loaded",
            "Add the file, or correct its path."),
    _static("archive.hashes", "Files with the sha256 that the description states.", "programs refuse changed files",
            "Download it again; if you changed the file on purpose, write its own sha256 into the description."),
    _static("archive.remote", "Files in the package rather than on a server.", "it works with a network only",
            "Put the files into the package."),
    _static("archive.pickles", "Weights that are numbers, without code.", "loading the weights could run anything",
            "Save a plain state_dict with torch.save(model.state_dict(), ...), or TorchScript with torch.jit.save."),
    _static("archive.tensors", "Test tensors that are plain arrays of finite numbers, as large as they say.",
            "reading them fails or fills the memory, or they test nothing",
            "Write it again with numpy.save, as a plain array of numbers."),
)  # fmt: skip

_FORMAT = (
    _static("format.version", "A format_version that is in use.", "programs cannot read the description",
            "State format_version: 0.5.9 and follow it."),
    _static("format.github_user", "GitHub names that exist.", "the zoo refuses unknown ones",
            "See that https://github.com/NAME exists; nothing is looked up here."),
    _static("format.dtypes", "Test tensors stored with the data type that is declared.",
            "some programs refuse them, others convert them",
            "Store it with the declared data type, or declare the data type that it has."),
    _static("format.valid", "A valid description.", "bioimageio.core and all that use it refuse the model",
            "Correct what is named; the format is described at https://bioimage-io.github.io/spec-bioimage-io."),
    _static("format.recommended", "The fields that bioimageio.spec recommends.", "the zoo's score sinks",
            "Fill in or correct the named fields."),
)  # fmt: skip

_BEFORE_DYNAMIC = (
    _run("run.negative_control", "A test that a wrong output fails.", "the test proves nothing",
         "Export values on a larger scale (photons, not fractions), or a test image with structure."),
    *(
        _run(f"run.{name}", f"Weights in the format {name} that can be run here.",
             "nothing is known about these weights", "Allow it with --run-code, or install what the message names.")
        for name in WEIGHTS_FORMATS
    ),
    _run("core.test", "bioimageio.core's own test.", "bioimageio.core gives other results, or none",
         "Export the test outputs again with these weights, and see that the declared sizes are accepted."),
    _run("run.loads", "Weights that load.", "the model cannot be run", "See that the weights load."),
    _run("run.formats_agree", "Weights in several formats that compute the same.",
         "users of different programs get different images", "Convert the weights again."),
)  # fmt: skip

_AFTER_DYNAMIC = (
    _run("fiji.older_engine", "The same results in the older engines given with --engine.",
         "Fiji's engine is older than what models are made with",
         "Rewrite what the older engine does not know, e.g. F.interpolate, and save the TorchScript again."),
    _run("core.other_versions", "The same results in the versions of bioimageio.core given with --engine.",
         "users of these versions cannot run it", "Follow what the message says of that version."),
    _run("run.process", "A model that does not bring its process down.", "the program that runs it would end",
         "Correct the failed checks first."),
)  # fmt: skip

_EXPORT_AGAIN = "Export the test outputs again with these weights and this preprocessing."

_DYNAMIC = {
    "run.reproduces": ("users cannot tell whether it works for them", _EXPORT_AGAIN),
    "run.output_kind": ("programs find no image in what it returns", "Return a tensor, or a tuple of tensors."),
    "run.deterministic": (
        "nobody gets the same image twice",
        "Take random numbers from a hash of the pixel's position, not from torch's global generator.",
    ),
    "run.sizes": ("images of some sizes fail", "Correct min, step or the output's size in the description."),
    "run.odd_sizes": ("users have to crop their images", "Pad to a multiple of step in the network, and crop again."),
    "run.tiled": (
        "seams show between tiles",
        "Enlarge the halo, or keep whole-image statistics out of the network.",
    ),
    "run.padding": ("results depend on how a program pads", "Keep whole-image statistics out of the network."),
    "run.batch": ("an image's result depends on its neighbours", "Compute statistics per image, never over the batch."),
    "run.dtypes": ("images as cameras write them give other results, or none", "Convert to float32 in preprocessing."),
    "run.zero": (
        "empty images give no numbers",
        "Guard divisions and logarithms in the model with a small constant.",
    ),
    "run.single_photon": (
        "nearly empty images give no numbers",
        "Guard divisions and logarithms in the model with a small constant.",
    ),
    "run.conservation": (
        "the sums over regions that people measure are wrong",
        "Renormalise the rate by the local photon sum inside the model.",
    ),
    "run.cuda": ("users with a GPU get other results", "Create tensors on the input's device."),
    "run.cost": ("large images do not fit, or take too long", "Make the network smaller, or declare smaller tiles."),
    "fiji.below_min": ("small images fail in Fiji", "Make the network accept every multiple of step."),
    "fiji.dtypes": (
        "programs that hand over images as they are cannot run it",
        "Begin forward with x = x.float(), or declare ensure_dtype float32 as the first step.",
    ),
    "fiji.as_loaded": ("Fiji's results differ", "Call eval() before torch.jit.script or torch.jit.trace."),
    "zoo.deepimagej": ("the zoo's deepImageJ check fails", _EXPORT_AGAIN),
}
"""What happens without it, and what to do, for the checks of a running model."""

_INTRODUCTIONS = {
    "archive": "The zip itself, before anything in it is read: whether it is whole, and safe to unpack and to load.",
    "format": "The description, `rdf.yaml`, as the bioimage.io format defines it.",
    "core": "bioimageio.core is the Python library that most programs use to run models. It runs weights with the "
    "torch, ONNX Runtime or TensorFlow that is installed next to it.",
    "run": "What everybody expects of a model: gap-bioimage loads each of its weights and runs them on several images.",
    "zoo": "The bioimage.io model zoo shows models to their users. It runs bioimageio.core and the partners' own tests "
    "on every upload, and gives a score.",
    "fiji": "deepImageJ runs models in Fiji. It is written in Java; its engine, JDLL, reads the description by itself "
    "and runs TorchScript in libtorch 1.13 to 2.0, which is older than what most models are made with.",
    "ilastik": "ilastik runs models as one step of a workflow, on a server that holds bioimageio.core 0.10.2 and torch "
    "2.7.",
    "biapy": "BiaPy trains and runs networks from a form or a notebook. It builds the network from its Python source "
    "and loads the state_dict, with the torch that is installed next to it.",
    "qupath": "QuPath analyses large 2D images, often of tissue. It is written in Java, and runs TorchScript or ONNX "
    "through Deep Java Library.",
    "bioengine": "BioEngine is the server that runs models for web pages, such as the zoo's test runs.",
}


def catalogue() -> tuple[Entry, ...]:
    """Every check that a report may contain, in the order of the report."""
    from gap_bioimage.validation.old_rules import all_rules
    from gap_bioimage.validation.running.dynamic import DYNAMIC_CHECKS

    dynamic = tuple(_of_dynamic(check) for check in DYNAMIC_CHECKS)
    rules = tuple(_of_rule(rule) for rule in all_rules())
    return (*_ARCHIVE, *_FORMAT, *_BEFORE_DYNAMIC, *dynamic, *_AFTER_DYNAMIC, *rules)


def _of_rule(rule: Rule) -> Entry:
    asks = f"{rule.asks} (Advice.)" if rule.advice else rule.asks
    return Entry(rule.id, rule.consumer, "static", asks, rule.breaks, rule.fix)


def _of_dynamic(check: DynamicCheck) -> Entry:
    asks = (check.judge.__doc__ or "").strip().splitlines()[0]
    breaks, fix = _DYNAMIC.get(check.id, ("the model does not behave as its description says", ""))
    return Entry(check.id, check.id.split(".", 1)[0], "run", asks, breaks, fix)


def as_markdown() -> str:
    """The page ``docs/checks.md``: every check, grouped by who needs it."""
    return "\n".join([*_head(), *(line for consumer in CONSUMERS for line in _section(consumer))]) + "\n"


def _head() -> list[str]:
    return [
        "# What `gap-bioimage validate` checks",
        "",
        "<!-- written by: gap-bioimage validate --list --markdown > docs/checks.md -->",
        "",
        "A model zip that works in Python may still fail in Fiji. Each check below stands for something that breaks",
        "in a program that reads such zips. What concerns the zip itself, its format, bioimageio.core and running the",
        "model must hold; what concerns one program is a warning, and must hold where you ask for that program, e.g.",
        "with `--consumer fiji`. Advice never fails: the program works without it, only worse.",
        "",
        "Checks marked *run* run the model; the others look at its files.",
    ]


def _section(consumer: str) -> Iterator[str]:
    yield from ("", f"## {consumer}", "", _INTRODUCTIONS[consumer], "")
    yield from ("| check | it asks for | without it | what to do |", "|---|---|---|---|")
    for entry in catalogue():
        if entry.consumer == consumer:
            mark = " *run*" if entry.how == "run" else ""
            cells = (f"`{entry.id}`{mark}", *map(_cell, (entry.asks, entry.breaks, entry.fix)))
            yield f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """A text inside a table's cell, where a bar would begin the next one."""
    return text.replace("|", "\\|").replace("<", "&lt;")
