"""The bioimage.io zoo: metadata and files that its checks and its score look at."""

from __future__ import annotations

import filecmp
import re
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.old_rules import tensors
from gap_bioimage.validation.old_rules.rule import NotApplicable, Rule

if TYPE_CHECKING:
    from gap_bioimage.validation.archive.facts import Facts

_MAX_DESCRIPTION = 512
_MAX_COVER_BYTES = 500_000
_MAX_FILES = 20
_MAX_README = 1_000_000
_ASPECT_TOLERANCE = 0.02


def _name(facts: Facts) -> str | None:
    """A name of 5 to 128 plain characters."""
    name = str(facts.rdf.get("name") or "")
    if not 5 <= len(name) <= 128:
        return f"the name has {len(name)} characters, 5 to 128 are expected"
    return None if re.fullmatch(r"[A-Za-z0-9_+\- ()]*", name) else "the name holds unusual characters"


def _description(facts: Facts) -> str | None:
    """A description of 1 to 512 characters."""
    length = len(str(facts.rdf.get("description") or ""))
    return None if 0 < length <= _MAX_DESCRIPTION else f"the description has {length} characters, 1 to 512 are expected"


def _authors(facts: Facts) -> str | None:
    """Authors, each with a name."""
    people = facts.mappings("authors")
    return None if people and all(person.get("name") for person in people) else "authors without names"


def _license(facts: Facts) -> str | None:
    """A licence by its SPDX identifier."""
    from bioimageio.spec.utils import get_spdx_licenses

    written = facts.rdf.get("license")
    known = {entry["licenseId"] for entry in get_spdx_licenses()["licenses"]}
    return None if isinstance(written, str) and written in known else f"license is {written!r}"


def _documentation(facts: Facts) -> str | None:
    """A README with a heading about validation."""
    path = facts.file_of(facts.rdf.get("documentation"))
    if path is None:
        return "there is no documentation file"
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_MAX_README)
    found = re.search(r"^#+.*validation", text, re.MULTILINE | re.IGNORECASE)
    return None if found else f"{path.name} has no heading about validation"


def _cover(facts: Facts) -> str | None:
    """A cover of 2:1 or 1:1, below 500 kB."""
    covers = facts.rdf.get("covers")
    if not isinstance(covers, list) or not covers:
        return "there is no cover"
    for cover in covers:
        path = facts.file_of(cover)
        if path is None:
            raise NotApplicable("a cover is not in the package")
        if path.stat().st_size > _MAX_COVER_BYTES:
            return f"{path.name} has {path.stat().st_size // 1000} kB, at most 500 are expected"
        if problem := _aspect(path):
            return problem
    return None


def _aspect(path: Any) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:  # reads the header only
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return f"{path.name} is no image of a reasonable size"
    good = any(abs(width / height / aspect - 1) <= _ASPECT_TOLERANCE for aspect in (1, 2))
    return None if good else f"{path.name} is {width} x {height}, 2:1 or 1:1 is expected"


def _cite(facts: Facts) -> str | None:
    """A citation with text and a DOI or URL."""
    entries = facts.mappings("cite")
    good = entries and all(entry.get("text") and (entry.get("doi") or entry.get("url")) for entry in entries)
    return None if good else "no citation, or one without text and doi or url"


def _tags(facts: Facts) -> str | None:
    """Tags."""
    return None if facts.texts("tags") else "there are no tags"


def _maintainers(facts: Facts) -> str | None:
    """A maintainer with a GitHub name."""
    people = facts.mappings("maintainers") or facts.mappings("authors")
    return None if any(person.get("github_user") for person in people) else "nobody listed has a github_user"


def _test_hashes(facts: Facts) -> str | None:
    """A test tensor with its sha256 for every input and output."""
    entries = [tensor.written.get("test_tensor") for tensor in [*facts.inputs, *facts.outputs]]
    hashed = [isinstance(entry, dict) and bool(entry.get("sha256")) for entry in entries]
    return None if hashed and all(hashed) else "a test tensor is missing or has no sha256"


def _sample_tensor(facts: Facts) -> str | None:
    """No sample tensors other than the test tensors."""
    for tensor in [*facts.inputs, *facts.outputs]:
        sample, test = tensor.written.get("sample_tensor"), tensor.written.get("test_tensor")
        if sample is None:
            continue
        files = facts.file_of(sample), facts.file_of(test)
        if files[0] is None or files[1] is None or not filecmp.cmp(files[0], files[1], shallow=False):
            return f"the sample_tensor of {tensor.id!r} is not its test_tensor"
    return None


def _test_of_step(facts: Facts) -> str | None:
    """A test input whose sizes are multiples of step."""
    import numpy as np

    for tensor in facts.inputs:
        path = facts.file_of(tensor.written.get("test_tensor"))
        if path is None or path.suffix != ".npy":
            raise NotApplicable("the test inputs are not npy files in the package")
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        if len(shape) != len(tensor.axes):
            return f"the test input of {tensor.id!r} has {len(shape)} axes, {len(tensor.axes)} are described"
        for axis, size in zip(tensor.axes, shape, strict=True):
            if axis.min_step and size % axis.min_step[1]:
                return f"the test input is {size} along {axis.id}, no multiple of step {axis.min_step[1]}"
    return None


def _flat(facts: Facts) -> str | None:
    """At most 20 files, none of them in folders."""
    names = facts.package.names
    nested = [name for name in names if "/" in name]
    if len(names) > _MAX_FILES:
        return f"the package holds {len(names)} files"
    return f"{len(nested)} files lie in folders" if nested else None


RULES = (
    Rule("zoo.name", "the zoo refuses it", "Name it in 5 to 128 letters, digits, spaces or _+-().", _name),
    Rule(
        "zoo.description",
        "the zoo's score sinks",
        "Describe the model in at most 512 characters.",
        _description,
    ),
    Rule("zoo.authors", "the zoo's score sinks", "List the authors with their names.", _authors),
    Rule("zoo.license", "the zoo wants an SPDX identifier", "State e.g. license: CC-BY-4.0.", _license),
    Rule(
        "zoo.documentation",
        "the zoo wants a '# Validation' section",
        "Add a README.md with a '# Validation' heading.",
        _documentation,
        advice=True,
    ),
    Rule(
        "zoo.cover",
        "the zoo shows and scores covers",
        "Add one of 2:1 or 1:1, below 500 kB.",
        _cover,
        advice=True,
    ),
    Rule("zoo.cite", "the zoo refuses it", "Add a citation with text and doi or url.", _cite),
    Rule(
        "zoo.tags",
        "nobody finds the model",
        "Add tags, e.g. denoising, 2d, fluorescence.",
        _tags,
        advice=True,
    ),
    Rule(
        "zoo.maintainers",
        "the zoo refuses models without a contact",
        "Give a maintainer with a github_user.",
        _maintainers,
    ),
    Rule(
        "zoo.test_hashes",
        "the zoo cannot verify the upload",
        "Give every tensor a test_tensor with source and sha256.",
        _test_hashes,
        formats="0.5",
    ),
    Rule(
        "zoo.single_io",
        "the zoo's deepImageJ check compares one output only, and fails",
        "Use one input and one output; put several results into channels.",
        tensors.single_io,
    ),
    Rule(
        "zoo.sample_tensor",
        "the zoo's deepImageJ check compares the wrong images",
        "Leave sample_tensor out.",
        _sample_tensor,
        formats="0.5",
    ),
    Rule(
        "zoo.test_of_step",
        "the zoo's deepImageJ check pads it and differs at the border",
        "Crop the test input to a multiple of step.",
        _test_of_step,
        formats="0.5",
    ),
    Rule(
        "zoo.custom_ops",
        "the zoo reviews its code before it runs anything",
        "Put the step into the network's graph, or tell users what the model needs.",
        tensors.custom_processing,
        advice=True,
        formats="0.5",
    ),
    Rule("zoo.few_files", "the zoo wants few files, side by side", "Flatten the package.", _flat, advice=True),
)
"""What the zoo wants."""
