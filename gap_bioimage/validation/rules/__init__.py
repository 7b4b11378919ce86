"""Rules of the programs that read bioimage.io models, one module per program; shared predicates are here."""

from __future__ import annotations

import ast
import functools
import keyword
import math
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gap_bioimage.validation.archive.rdf import mappings
from gap_bioimage.validation.archive.torchscript import TorchScriptCode, read_code
from gap_bioimage.validation.check import BLOCKS, NotApplicable, counted, one_sentence, rule
from gap_bioimage.validation.model import Model, Tensor

JDLL = "JDLL 0.6.3, run with libtorch 1.13.1 and 2.0.1 (2026-11)"
JDLL_SPEC = "JDLL 0.6.4-SNAPSHOT, bioimageio/description/ModelDescriptorV05.java (2026-11)"
TIKTORCH = "tiktorch 26.5, run as ilastik's server, with bioimageio.core 0.10.2 and torch 2.7 (2026-11)"
ZOO_REPORTS = "bioimage.io collection 2026-05-20, its published test reports (2026-11)"
ZOO_TEST = "bioimage.io collection 2026-05-20, scripts/check_compatibility_deepimagej.py (2026-11)"
ONE_OF_EACH = "Use one input and one output; put several results into channels."
ONE_INPUT = "Put several images into channels of one input."
OLDER_OPERATORS = "Rewrite it with older operators, e.g. torch._C._nn.upsample_nearest2d or ConvTranspose."
INTO_GRAPH = "Move the step into the network's graph."
NAMED_AXES = "Name the axes batch, channel, (z,) y, x; put time into batch."
ADD_TORCHSCRIPT = "Add torchscript weights."

# installed with bioimageio.core and torch
ALWAYS_INSTALLED = frozenset("torch numpy bioimageio xarray typing_extensions pydantic scipy tqdm".split())
# processing steps that only Python can run, and the package that each needs
PYTHON_STEPS = {"custom": "", "stardist_postprocessing": "stardist", "cellpose_flow_dynamics": "cellpose"}
AXIS_ORDERS = (["batch", "channel", "y", "x"], ["batch", "channel", "z", "y", "x"])

_NEWEST_READ = (0, 5, 10)
_MAX_SHOWN = 3
_TILE_SHARE = 0.9  # ilastik's tiles are efficient from this fraction of the target size on
_MAX_SOURCE = 2_000_000


def first(problems: Iterable[str]) -> str | None:
    """Return the first problem, or None."""
    return next(iter(problems), None)


def single_io(model: Model) -> str | None:
    """One input and one output."""
    n_in, n_out = counted(len(model.inputs), "input"), counted(len(model.outputs), "output")
    return None if (n_in, n_out) == ("1 input", "1 output") else f"{n_in} and {n_out} instead of one each"


def single_input(model: Model) -> str | None:
    """One input."""
    return None if (n_inputs := len(model.mappings("inputs"))) == 1 else f"there are {n_inputs} inputs"


def axis_ids(model: Model) -> str | None:
    """Axes named batch, channel, (z,) y, x on every input and output."""
    known = [sorted(order) for order in AXIS_ORDERS]
    wrong = [tensor for tensor in model.tensors if sorted(tensor.axis_ids) not in known]
    return first(f"{t.id!r} has axes {', '.join(t.axis_ids)} instead of batch, channel, (z,) y, x" for t in wrong)


def channel_names(model: Model) -> str | None:
    """A channel axis with channel_names on every input and output."""
    for tensor in model.tensors:
        if not any(axis.kind == "channel" and axis.written.get("channel_names") for axis in tensor.axes):
            return f"{tensor.id!r} has no channel axis with channel_names"
    return None


def identifiers(model: Model) -> str | None:
    """Channel names that are Python identifiers."""
    axes = [axis.written for tensor in model.tensors for axis in tensor.axes]
    names = [str(name) for axis in axes for name in axis.get("channel_names") or []]
    return first(f"the channel name {name!r} is not an identifier" for name in names if not is_identifier(name))


def is_identifier(name: str) -> bool:
    """Whether a name is a Python identifier, as formats before 0.5.11 require of channel names."""
    return name.isidentifier() and not keyword.iskeyword(name)


def custom_processing(model: Model, ids: Collection[str] = ("custom",)) -> str | None:
    """No processing by Python code from the package."""
    return first(f"a processing step has the id {step['id']}" for step in model.steps if step.get("id") in ids)


def python_processing(model: Model) -> str | None:
    """No processing by Python code from the package, StarDist or Cellpose."""
    return custom_processing(model, PYTHON_STEPS)


def steps_of_04(model: Model) -> list[tuple[str, dict[str, Any]]]:
    """Return names and arguments of all processing steps, as written in a description of format 0.4."""
    tensors = [*model.mappings("inputs"), *model.mappings("outputs")]
    steps = [step for tensor in tensors for step in Tensor.of(tensor).steps]
    return [(str(step.get("name")), step.get("kwargs") or {}) for step in steps]


def section(rdf: Mapping[str, Any], name: str) -> Any:
    """Return a section of a description's ``config``; None if there is none."""
    config = rdf.get("config")
    return config.get(name) if isinstance(config, dict) else None


def tolerances(rdf: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the reproducibility tolerances that a description states for bioimageio.core's test."""
    config = section(rdf, "bioimageio")
    return mappings(config.get("reproducibility_tolerance")) if isinstance(config, dict) else []


def tolerates(model: Model, name: str, limit: float) -> str | None:
    """Return the problem with a stated test tolerance that exceeds a limit, or None."""
    stated = (float(entry.get(name) or 0) for entry in tolerances(model.rdf))
    return first(f"{name} is {value:g}, at most {limit:g} is allowed" for value in stated if value > limit)


def lacks_weights(model: Model, formats: Collection[str]) -> str | None:
    """Return the problem if no weights are in one of these formats, or None."""
    if set(formats) & model.weights.keys():
        return None
    return f"weights are given as {', '.join(model.weights)} only" if model.weights else "no weights are given"


def plain_strings(model: Model) -> str | None:
    """Documentation, covers and licence as plain strings."""
    values = [("documentation", model.rdf.get("documentation")), ("license", model.rdf.get("license"))]
    values += [("covers", cover) for cover in model.rdf.get("covers") or []]
    objects = sorted({name for name, value in values if isinstance(value, dict)})
    return f"{', '.join(objects)} written as {{source, sha256}}" if objects else None


def format_version(model: Model) -> str | None:
    """A format_version of at most 0.5.10."""
    if not model.version:
        raise NotApplicable("the description states no format_version")
    return f"format_version is {model.version}" if model.version_numbers > _NEWEST_READ else None


def reads_plain_strings(name: str, source: str, refuses: str) -> None:
    """Declare the two rules of a program that reads no files written as {source, sha256}."""
    old, plain = "Write format_version 0.5.9.", "Write file names as plain strings, as format 0.5.9 does."
    rule(f"{name}.format_version", BLOCKS, source, repair="lower_format", fix=old, breaks=refuses)(format_version)
    rule(f"{name}.plain_strings", BLOCKS, source, repair="plain_strings", fix=plain, breaks=refuses)(plain_strings)


def uneven_grid(model: Model) -> str | None:
    """Sizes min + n step that reach 512 pixels (64 in 3D) with the same n on all axes."""
    for tensor in model.inputs:
        target = 64 if "z" in tensor.axis_ids else 512
        grid = {axis.id: axis.min_step for axis in tensor.axes if axis.kind == "space"}
        sizes = {name: size for name, size in grid.items() if size and size[1]}
        ns = {name: max(0, math.ceil((target - smallest) / step)) for name, (smallest, step) in sizes.items()}
        if any(smallest + min(ns.values()) * step < _TILE_SHARE * target for smallest, step in sizes.values()):
            text = ", ".join(f"{name} {n}" for name, n in ns.items())
            return f"the number of steps n to {target} pixels differs between the axes of {tensor.id!r} ({text})"
    return None


def imported(model: Model) -> set[str] | None:
    """Return the packages that the architecture imports, the standard library excluded; None without its source."""
    architecture = model.architecture
    if isinstance(named := architecture.get("import_from"), str):
        return {named.split(".")[0]}
    path = model.file_of(architecture["source"]) if architecture.get("source") and model.with_files else None
    return None if path is None else _imports(path, str(architecture.get("callable")))


def foreign_imports(model: Model, installed: Collection[str]) -> str | None:
    """Architecture code that imports installed packages only."""
    foreign = sorted((imported(model) or set()) - set(installed))
    return f"the architecture imports {one_sentence(', '.join(foreign[:_MAX_SHOWN]), 80)}" if foreign else None


def own_dependencies(model: Model, installed: Collection[str]) -> str | None:
    """If there is only a state_dict: an architecture that imports installed packages only."""
    if imported(model) is None and model.weights["pytorch_state_dict"].get("dependencies"):
        return "the weights list further dependencies"
    return foreign_imports(model, installed)


def _imports(path: Path, network: str) -> set[str]:
    """Return a network's imports from outside Python and from files next to this one, which core does not copy."""
    called, n_called = {network, "forward"}, 0
    try:
        tree = ast.parse(path.read_bytes()[:_MAX_SOURCE])
        while len(called) > n_called:  # until the code that runs mentions no further function
            n_called, nodes = len(called), list(_running(tree, called))
            called |= {node.id for node in nodes if isinstance(node, ast.Name)}
            called |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    except (SyntaxError, ValueError, RecursionError):
        raise NotApplicable(f"{path.name} is not valid Python") from None
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or "").split(".")[0])
    return names - sys.stdlib_module_names


def _running(tree: ast.AST, called: Collection[str]) -> Iterator[ast.AST]:
    """Yield what runs on import and in these functions, without ``__main__`` and ``TYPE_CHECKING`` blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and re.search(r"__main__|\bTYPE_CHECKING\b", ast.unparse(node.test)):
            yield from (child for branch in node.orelse for child in (branch, *_running(branch, called)))
        elif isinstance(node, ast.Try):  # the file can do without imports that it tries
            yield from (child for child in _running(node, called) if not isinstance(child, ast.Import | ast.ImportFrom))
        elif not isinstance(node, ast.FunctionDef) or node.name in called or node.name.startswith("__"):
            yield node
            yield from _running(node, called)


def unportable(model: Model) -> str | None:
    """TorchScript code that the oldest engine (libtorch 1.13) supports."""
    problems = list(torchscript_code(model).unportable.values())
    more = f" and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
    return "; ".join(problems[:_MAX_SHOWN]) + more if problems else None


def torchscript_code(model: Model) -> TorchScriptCode:
    """Return the code of the packaged TorchScript weights; `NotApplicable` if there are none or they are unreadable."""
    path = model.file_of(model.weights.get("torchscript"))
    if path is None:
        raise NotApplicable("no torchscript weights in the package")
    try:
        return _read_once(path, path.stat().st_mtime_ns)
    except ValueError as error:
        raise NotApplicable(str(error)) from error


_read_once = functools.lru_cache(maxsize=1)(lambda path, _changed: read_code(path))  # several rules read it
