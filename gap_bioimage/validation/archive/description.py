"""Load the description with bioimageio.spec, without a network, and put its findings in the author's terms."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from gap_bioimage.validation import quiet
from gap_bioimage.validation.archive.package import Package, few
from gap_bioimage.validation.archive.rdf import is_url, mappings, references, texts, walked
from gap_bioimage.validation.check import BLOCKS, STYLE, Check, declare, one_sentence

_SHOWN = 5
_MOST_PX = 1_000_000
_WARNING_SEVERITY = 30  # bioimageio.spec's severities: 20 and below is information
_REFUSED = ("halo", "preprocessing", "postprocessing")  # parts of tensors that may keep format 0.4 from being upgraded
_NOT_NEEDED = ("covers", "sample_inputs", "sample_outputs", "attachments")  # files that format 0.4 may lack
# errors that format 0.5 raises and 0.4 leaves to programs: all about test tensors, and those about their sizes
OF_TESTS = re.compile(r"test_tensor|Dimension mismatch|batch size mismatch")
_OF_SIZES = re.compile(r"test_tensor\b.*\bsize|Dimension mismatch|batch size mismatch")

_VALID = declare(
    "format.valid", "archive", BLOCKS, order=3, asks="A valid description.",
    breaks="bioimageio.core and all programs that use it refuse the model",
    fix="Correct the named fields; the format is described at https://bioimage-io.github.io/spec-bioimage-io.",
)  # fmt: skip
_RECOMMENDED = declare(
    "format.recommended", "archive", STYLE, order=4, asks="The fields that bioimageio.spec recommends.",
    breaks="the score in the zoo is lower", fix="Fill in or correct the named fields.",
)  # fmt: skip


@dataclass(frozen=True)
class Description:
    """A valid description."""

    as_written: Any  # bioimageio.spec's object in the format that the author wrote (0.4 or 0.5)
    upgraded: Any | None  # the same in format 0.5; None if it cannot be upgraded
    not_upgraded: str  # why it cannot be upgraded; empty if it can
    plain: Any | None  # upgraded, if need be without halos and processing; None if even that is impossible
    weights: tuple[str, ...]  # formats of the weights inside the package


def people(rdf: dict[str, Any]) -> list[str]:
    """Return the GitHub names of the people in a description."""
    people = [person for key in ("authors", "maintainers", "packaged_by") for person in mappings(rdf.get(key))]
    return list(dict.fromkeys(name for p in people if isinstance(name := p.get("github_user"), str)))


def format_checks(package: Package, *, with_files: bool = True) -> tuple[Description | None, list[Check]]:
    """Return the description, None if it is invalid in its stated format, and the checks of its format."""
    rdf = package.rdf
    written = upgraded = plain = load_offline(package, rdf, "discover", with_files=with_files)
    problems = _missed_by_spec(rdf) or problems_of(package, written)
    if not problems and not str(rdf["format_version"]).startswith("0.5"):
        upgraded = plain = load_offline(package, rdf, "latest", with_files=with_files)
        problems = problems_of(package, upgraded, _OF_SIZES)  # older formats do not check these
        if not problems and isinstance(upgraded, Exception):  # a halo on a fixed size hides further errors
            bare = {key: [{k: t[k] for k in t if k not in _REFUSED} for t in rdf[key]] for key in ("inputs", "outputs")}
            plain = load_offline(package, rdf | bare, "latest", with_files=with_files)
            problems = problems_of(package, plain, _OF_SIZES)
    if problems:
        return None, [_VALID.violated(few(problems, _SHOWN))]
    why_not = "; ".join(problems_of(package, upgraded))
    warnings = [f"programs that read it as format 0.5 refuse it: {why_not}"] if why_not else []
    warnings += [text for text in _warnings(package, written) if text not in why_not]
    names = [str(getattr(output, "id", i)) for i, output in enumerate(written.outputs)]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    warnings += [f"outputs: several are called {name!r}, and programs return one; rename the others" for name in twice]
    checks = [_VALID.passed(f"a valid model description of format {rdf['format_version']}")]
    if warnings:
        checks.append(_RECOMMENDED.violated(few(warnings, _SHOWN)))
    local = (name for name, entry in written.weights if entry is not None and name not in package.remote_weights)
    plain = None if isinstance(plain, Exception) else plain
    return Description(written, None if why_not else upgraded, why_not, plain, tuple(local)), checks


def _missed_by_spec(rdf: dict[str, Any]) -> list[str]:
    """Return problems that bioimageio.spec misses, splits into pieces or crashes on, and steps that core lacks."""
    problems, is_05 = list[str](), str(rdf["format_version"]) >= "0.5"
    tensors = [(f"{key}[{i}]", t) for key in ("inputs", "outputs") for i, t in enumerate(mappings(rdf.get(key)))]
    for where, tensor in tensors:
        axes, shape = tensor.get("axes"), tensor.get("shape")
        if isinstance(axes, str if is_05 else list):
            written = "a text, as in format 0.4" if is_05 else "a list, as in format 0.5"
            return [f"format_version is {rdf['format_version']}, but {where}.axes is {written}: change one of the two"]
        if isinstance(axes, str) and isinstance(shape, list) and len(shape) != len(axes):
            problems.append(f"{where}.axes: is {axes!r}, but the shape has {len(shape)} sizes")
        for j, step in enumerate(mappings(tensor.get("postprocessing"))):
            problems += _not_in_core(f"{where}.postprocessing[{j}]", step)
    for key in ("inputs", "outputs"):
        described, tested = rdf.get(key), rdf.get(f"test_{key}")
        if not is_05 and isinstance(described, list) and isinstance(tested, list) and 0 < len(tested) < len(described):
            problems.append(f"test_{key}: {len(described)} {key} are described, and {len(tested)} tested")
    return problems


def _not_in_core(where: str, step: dict[str, Any]) -> Iterator[str]:
    name = step.get("id") or step.get("name")
    kwargs = step["kwargs"] if isinstance(step.get("kwargs"), dict) else {}
    normalises = name in ("zero_mean_unit_variance", "scale_mean_variance") and kwargs.get("mode") != "fixed"
    if name == "scale_range" and not kwargs.get("reference_tensor"):
        yield f"{where}.kwargs.reference_tensor: is missing; scale_range takes percentiles of an input"
    elif normalises or (name == "clip" and {"min_percentile", "max_percentile"} & kwargs.keys()):
        yield f"{where}: {name} needs statistics of the output, which bioimageio.core does not compute"


class _Known(dict[str, Any]):
    """Contains every URL, since bioimageio.spec does not request known files."""

    def __contains__(self, name: object) -> bool:
        return is_url(str(name)) or super().__contains__(name)


def load_offline(package: Package, rdf: dict[str, Any], version: str, *, with_files: bool = False) -> Any:
    """Load a description in a format with bioimageio.spec, without a network; return its exception if it raises one."""
    from bioimageio.spec import ValidationContext, build_description
    from bioimageio.spec._internal.constants import KNOWN_GITHUB_USERS
    from bioimageio.spec.model import v0_5

    for tensor in (*mappings(rdf.get("inputs")), *mappings(rdf.get("outputs"))):
        # spec's conversion of 0.4 names every channel, which would fill the memory
        if any(isinstance(size, int | float) and abs(size) > _MOST_PX for size in walked(tensor.get("shape"))):
            return ValueError(f"the shape of {one_sentence(tensor.get('name'), 60)!r} has a size above {_MOST_PX}")
    if with_files and any(map(is_url, texts(rdf.get("training_data")))):  # spec would request its files
        if isinstance(loaded := load_offline(package, rdf, version), Exception):
            return loaded
        rdf = {key: value for key, value in rdf.items() if key != "training_data"}
    content = _without_urls(package, rdf, with_files=with_files)
    context = ValidationContext(
        root=package.root, file_name=package.rdf_name, perform_io_checks=with_files, known_files=_Known(),
        log_warnings=False, progressbar=False, raise_errors=True,
    )  # fmt: skip
    users = {name.lower() for name in people(rdf)} - KNOWN_GITHUB_USERS  # unlisted names are invalid offline
    KNOWN_GITHUB_USERS.update(users)
    vars(v0_5)["try_all_raise_last"] = _first_that_works
    try:
        with quiet():
            return _with_references(rdf, build_description(content, context=context, format_version=version))
    except Exception as error:  # spec's validators may raise anything
        return error
    finally:
        KNOWN_GITHUB_USERS.difference_update(users)


def _without_urls(package: Package, rdf: dict[str, Any], *, with_files: bool) -> dict[str, Any]:
    """Return a copy that bioimageio.spec can load without a network and without files that are not needed."""
    content = deepcopy(rdf)
    for reference in references(content) if with_files else ():
        if reference.is_remote:  # a local file with the same suffix replaces it
            suffix = re.search(r"\.\w{1,10}$", reference.path)
            placeholder = package.scratch / f"remote{suffix[0] if suffix else ''}"
            placeholder.write_text("# Validation\n")
            reference.point_to(str(placeholder))
            if reference.hash_key:
                reference.holder.pop(reference.hash_key, None)
        elif reference.where.startswith(_NOT_NEEDED) and package.file(reference.path) is None:
            content.pop(re.split(r"\W", reference.where)[0], None)  # archive.files warns
    if content.get("covers", []) == [] and str(content.get("format_version", "")) >= "0.4":
        # Without covers, spec would draw one in a temp folder that it never removes. Of this one, it checks the suffix.
        cover = package.scratch / "cover.png"
        cover.touch()
        content["covers"] = [str(cover)]
    for tensor in mappings(content.get("inputs")):
        tensor.pop("output_of", None)  # the name of another model, which spec would download
    return content


def _with_references(rdf: dict[str, Any], built: Any) -> Any:
    """Restore the reference tensors of scale_range, which bioimageio.spec's conversion of 0.4 loses."""
    for tensors, steps in (("inputs", "preprocessing"), ("outputs", "postprocessing")):
        for written, tensor in zip(rdf[tensors], getattr(built, tensors), strict=True):
            before = [step["kwargs"] for step in mappings(written.get(steps)) if step.get("name") == "scale_range"]
            after = [step.kwargs for step in getattr(tensor, steps) if getattr(step, "id", "") == "scale_range"]
            for old, new in zip(before, after, strict=False):
                new.reference_tensor = old.get("reference_tensor")
    return built


def _first_that_works(functions: Iterable[Callable[..., Any]], *arguments: Any) -> Any:
    """Return the first result; a bug in bioimageio.spec 0.5 turns every error into 'No functions provided'."""
    first, *others = functions
    for function in others:
        with contextlib.suppress(ValueError):
            return function(*arguments)
    return first(*arguments)


def problems_of(package: Package, loaded: Any, wanted: re.Pattern[str] | None = None) -> list[str]:
    """Return the problems that bioimageio.spec found in a description that it loaded or refused, in plain words."""
    from bioimageio.spec._internal.warning_levels import ERROR
    from pydantic import ValidationError

    errors: list[tuple[Sequence[int | str], str, str, Any]] = []
    if isinstance(loaded, ValidationError):
        entries = [e for e in loaded.errors() if e.get("ctx", {}).get("severity", ERROR) >= ERROR]  # not its warnings
        errors = [(entry["loc"], entry["type"], entry["msg"], entry["input"]) for entry in entries]
    elif isinstance(loaded, Exception):
        errors = [((), type(loaded).__name__, one_sentence(loaded), None)]
    # if a field matches none of several alternatives, only the errors of the likeliest are reported
    by_field: dict[str, dict[str, list[_Finding]]] = {}
    has_broken_input = any(loc[:1] == ("inputs",) for loc, *_ in errors)  # then no output can refer to one
    for loc, kind, text, value in errors:
        if has_broken_input and (dangling := _DANGLING.search(text)) and dangling[1].startswith("outputs"):
            continue
        if wanted is None or wanted.search(text):
            finding = _Finding.of(package, loc, kind, text, value)
            by_field.setdefault(finding.field, {}).setdefault(finding.alternative, []).append(finding)
    problems: list[str] = []
    for alternatives in by_field.values():
        common = alternatives.pop("", [])  # independent of the alternative
        groups = sorted(alternatives.values(), key=lambda group: (any(f.is_other for f in group), len(group)))
        problems += [finding.message for group in [common, *groups[:1]] for finding in group]
    return list(dict.fromkeys(problems))


def _warnings(package: Package, loaded: Any) -> list[str]:
    entries = [entry for detail in loaded.validation_summary.details for entry in detail.warnings]
    # Spec recommends a sample_tensor, which the zoo's deepImageJ check would take for the test tensor.
    wanted = [e for e in entries if e.severity >= _WARNING_SEVERITY and "sample_tensor" not in e.loc]
    return list(dict.fromkeys(_Finding.of(package, entry.loc, str(entry.type), entry.msg).message for entry in wanted))


_TO_INPUT = "a size that refers to an input, such as {tensor_id: INPUT, axis_id: y}"
_DANGLING = re.compile(r"Invalid tensor axis reference at (\S+): tensor_id='(.*?)' axis_id='(.*?)'.*")
_WORDS = [
    # a pattern in 'where', a line break and 'kind: message', and the text that replaces kind and message
    (r"\bsize\.tensor_id\nmissing:", f"is missing: give the output a fixed size, or {_TO_INPUT}"),
    (r"^missing:|Needs to be filled|: missing(\. Please specify|$)", "is missing"),
    (r"Input tag '(.*?)' found using '(\w+)' does not match any of the expected tags: ([^.]*)",
     r"its \2 is '\1', but should be one of \3"),
    (r"'(?:str|list)' object has no attribute 'get'", "training_data: should be a mapping, such as {id: NAME}"),
    (r"Invalid version", "is <value>, but should be a version, such as 2.1.0"),
    (r"not a string or datetime", "is <value>, but should be a time, such as 2024-01-31T12:00:00Z"),
    (r"is not a valid \(Python\) identifier", "is <value>, but should be a name of letters, digits and underscores"),
    (r"is not restricted to '(.*)'", r"is <value>, but should consist of characters out of '\1'"),
    (r"match pattern '\^10", "is <value>, but should be a DOI, such as 10.1000/182"),
    (r"list index out of range", "a list of kwargs or sizes is shorter than the axes that it describes"),
    (r"_has_no_slash", "is <value>, but should contain no slash"),
    (r"^union_tag_not_found:.*'(\w+)'", r"its \1 is missing"),
    (r"^sequence_str:", "is <value>, but should be a list"),
    (r"UnicodeDecodeError|codec can't decode", "is not utf-8 text; save it as such (`gap-bioimage repair` does this)"),
    (r"^KeyError: '(.*)'", r"'\1' is referred to, but there is nothing of that name"),
    (r"\Adependencies\nextra_forbidden:", "belongs to the weights now: write weights.pytorch_state_dict.dependencies"),
    (r"^extra_forbidden:", "is not a field that this format has here; remove it, or move it into config"),
    (r"may not specify the `parent` field", "all but the original should name their parent, from which they are made"),
    (_DANGLING.pattern, r"\1: refers to the axis '\3' of '\2', which does not exist or has no size of its own"),
    (r"kwargs\.axes` needs to be subset of axes ids", "a processing step names an axis that the tensor does not have"),
    (r"Unknown tensor axis reference '(\w+)\.",
     r"the input '\1' has no test_tensor, with which the sizes of outputs are compared"),
    (r"output axis with halo and fixed size \(here (\d+)\) not allowed",
     rf"outputs: an axis of fixed size \1 has a halo, which needs {_TO_INPUT}"),
    (r"Could not find a backend to open",
     "a sample_tensor is not an image in a readable format, such as .tif or .png; leave it out"),
    (r"Expected None to be a string", "a postprocessing step has no kwargs.axes, such as yx"),
    (r"\Adocumentation\n.*(valid URL|not point to|suffix \.md)", "is <value>, but should be the name of a .md file"),
    (r"instance of SizeReference$", f"is <value>, but an axis with a halo needs {_TO_INPUT}"),
    (r"instance of Architecture\w+$", "is <value>, but should be a mapping, such as {source: net.py, callable: Net}"),
    (r"\A(documentation|covers\[\d+\])\n.*FileDescr$",
     "is <value>, a plain name: write format_version 0.5.9, which most programs read, or {source: NAME}"),
    (r"instance of \w*FileDescr$", "is <value>, but should be a file, written as {source: NAME}"),
    (r"unit\nliteral_error:", "is <value>, but should be a unit in full, such as micrometer"),
    (r"\Alicense\nliteral_error:", "is <value>, but should be an SPDX identifier, such as CC-BY-4.0 or MIT"),
    (r"(?:Input|Value|String|List) should (.*?)( or instance of \w+)?$", r"is <value>, but should \1"),
]  # fmt: skip
_NOISE = re.compile(
    r"^(Value|Assertion) error, |(For further information visit|, see) https?://\S+( for details)?|\[type=.*?\](?=\s|$)"
    r"|, unable to parse string as an? \w+|, got a number with a fractional part"
    r"| \(with or without (padding|cropping) \w+ halo\)| or object to extract fields from| after validation"
)
_OTHER_KIND = re.compile(r".*_(type|parsing)|literal_error|url_scheme|path_not_file|is_instance_of|sequence_str")


@dataclass(frozen=True)
class _Finding:
    field: str  # place in the description, e.g. inputs[0].axes[2].size, up to where alternatives were tried
    alternative: str  # the alternative that this error belongs to
    is_other: bool  # the value was evidently not meant as this alternative
    message: str  # 'where: what' in plain words, or in the library's own if the error is not in the table

    @classmethod
    def of(cls, package: Package, loc: Sequence[int | str], kind: str, text: str, absent: Any = None) -> _Finding:
        """Locate an error in the description as written; ``absent`` is the value of a field that is not in it."""
        parts: list[int | str] = []
        value: Any = package.rdf
        alternative, n_field = "", 0
        for place, part in enumerate(loc, 1):
            is_absent = place == len(loc) and isinstance(value, dict) and part not in value.values()
            if part in (range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()):
                parts.append(part)
                value = value[part]
            elif is_absent and re.fullmatch(r"[a-z]\w*", str(part)):  # a missing field
                parts.append(part)
                value = absent
            elif not alternative and not (isinstance(value, dict) and part in value.values()):
                alternative, n_field = str(part), len(parts)  # such as 'ParameterizedSize' or 'function-after[...]'
        where, field = _path(parts), _path(parts[:n_field] if alternative else parts)
        message = _plain(where, kind, text.replace(f"{package.root}{os.sep}", ""), value)
        return cls(field, alternative, where == field and _OTHER_KIND.fullmatch(kind) is not None, message)


def _path(parts: list[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _plain(where: str, kind: str, text: str, value: Any) -> str:
    text = re.sub(r"source=RelativePath\(('[^']*')\)( sha256=\S+?(?=\.?$|\s))?", r"\1", text)
    text = re.sub(r"\{(\d+(?:, \d+)?)\}", lambda sizes: sizes[1].replace(", ", " or "), text)  # with and without halo
    text = _NOISE.sub("", text).strip().replace("valid dictionary", "mapping")
    text = (
        text.replace("an instance of Sequence", "a valid list").replace("valid tuple", "valid list")
        or "does not conform to the format"
    )
    text = text.replace(" items, not", " characters, not") if isinstance(value, str) else text
    if isinstance(value, dict) and isinstance(value.get("source"), str):
        value = value["source"]
    kinds: dict[Any, str] = {list: "a list", dict: "a mapping"} if value else {type(None): "null"}
    shown = kinds.get(type(value)) or one_sentence(repr(value), 60)
    for pattern, words in _WORDS:
        if match := re.search(pattern, f"{where}\n{kind}: {text}", re.MULTILINE):
            text = match.expand(words).replace("<value>", shown)
            break
    if kind == "string_type" and isinstance(value, str) and where.endswith("].name"):  # as spec converts it
        text = f"format 0.3.0 lists people by name alone: write {shown} without name:, or state version 0.3.2"
    text = one_sentence(text, 240)
    return text if text.startswith(where) else f"{one_sentence(where, 80)}: {text}"
