"""The bioimage.io zoo: metadata and files that its website, its tests and its score look at.

Nothing here refuses a model: the collection's own checks take what bioimageio.spec takes.
"""

from __future__ import annotations

import filecmp
import re
from typing import TYPE_CHECKING

from gap_bioimage.validation.check import DEGRADES, STYLE, NotApplicable, Source, rule
from gap_bioimage.validation.consumers import consumer
from gap_bioimage.validation.rules import questions
from gap_bioimage.validation.rules.core import number, tolerances

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.model import Model

# fmt: off
consumer("zoo", "bioimage.io zoo",
         "The bioimage.io model zoo shows models to their users. It tests every upload with BioEngine and with the "
         "partners' own tests, and gives a score.", 4)
_GUIDE = Source("bioimage.io website", "its guide for authors and its upload form", "2026-08-20", "2026-11")
_TEST = Source("bioimage.io collection", "scripts/check_compatibility_deepimagej.py", "2026-05-20", "2026-11")
_UPLOAD = Source("bioimageio.spec", "upload.py", "0.5.12", "2026-11")

_WARN_DESCRIPTION, _MAX_DESCRIPTION = 512, 1024
_MAX_COVER_BYTES = 500_000
_MAX_FILES = 20
_MAX_README = 1_000_000
_ASPECT_TOLERANCE = 0.02
_DEEPIMAGEJ_ATOL = 1.5e-4


@rule("zoo.name", STYLE, _GUIDE, breaks="people find it less easily",
      fix="Name it in 5 to 128 letters, digits, spaces or _+-().")
def name(model: Model) -> str | None:
    """A name of 5 to 128 plain characters."""
    given = str(model.rdf.get("name") or "")
    if not 5 <= len(given) <= 128:
        return f"the name has {len(given)} characters, 5 to 128 are expected"
    return None if re.fullmatch(r"[A-Za-z0-9_+\- ()]*", given) else "the name holds unusual characters"


@rule("zoo.description", STYLE, _GUIDE, breaks="the website cuts it",
      fix=f"Describe the model in at most {_WARN_DESCRIPTION} characters.")
def description(model: Model) -> str | None:
    """A description of 1 to 512 characters; 1024 is the limit."""
    length, limit = len(str(model.rdf.get("description") or "")), _WARN_DESCRIPTION
    return None if 0 < length <= limit else f"the description has {length} characters, 1 to {limit} are expected"


@rule("zoo.authors", STYLE, _GUIDE, breaks="nobody knows whom to credit", fix="List the authors with their names.")
def authors(model: Model) -> str | None:
    """Authors, each with a name."""
    people = model.mappings("authors")
    return None if people and all(person.get("name") for person in people) else "authors without names"


@rule("zoo.license", STYLE, _GUIDE, breaks="the zoo wants an SPDX identifier", fix="State e.g. license: CC-BY-4.0.")
def license_id(model: Model) -> str | None:
    """A licence by its SPDX identifier."""
    from bioimageio.spec.utils import get_spdx_licenses

    written = model.rdf.get("license")
    known = {entry["licenseId"] for entry in get_spdx_licenses()["licenses"]}
    return None if isinstance(written, str) and written in known else f"license is {written!r}"


@rule("zoo.documentation", STYLE, _GUIDE, repair="readme",
      breaks="the zoo wants the sections Description, Intended Use, Validation and Citation",
      fix="Add a README.md with these headings.")
def documentation(model: Model) -> str | None:
    """A README with a heading about validation."""
    path = model.file_of(model.rdf.get("documentation"))
    if path is None:
        return "there is no documentation file"
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_MAX_README)
    found = re.search(r"^#+.*validation", text, re.MULTILINE | re.IGNORECASE)
    return None if found else f"{path.name} has no heading about validation"


@rule("zoo.cover", STYLE, _GUIDE, repair="covers", breaks="the zoo shows covers, and draws one where there is none",
      fix="Add one of 2:1 or 1:1, below 500 kB.")
def cover(model: Model) -> str | None:
    """A cover of 2:1 or 1:1, below 500 kB."""
    covers = model.rdf.get("covers")
    if not isinstance(covers, list) or not covers:
        return "there is no cover"
    for written in covers:
        path = model.file_of(written)
        if path is None:
            raise NotApplicable("a cover is not in the package")
        if path.stat().st_size > _MAX_COVER_BYTES:
            return f"{path.name} has {path.stat().st_size // 1000} kB, at most 500 are expected"
        if problem := _aspect(path):
            return problem
    return None


def _aspect(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:  # reads the header only
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return f"{path.name} is no image of a reasonable size"
    good = any(abs(width / height / aspect - 1) <= _ASPECT_TOLERANCE for aspect in (1, 2))
    return None if good else f"{path.name} is {width} x {height}, 2:1 or 1:1 is expected"


@rule("zoo.cite", STYLE, _GUIDE, breaks="nobody knows what to cite", fix="Add a citation with text and doi or url.")
def cite(model: Model) -> str | None:
    """A citation with text and a DOI or URL."""
    entries = model.mappings("cite")
    good = entries and all(entry.get("text") and (entry.get("doi") or entry.get("url")) for entry in entries)
    return None if good else "no citation, or one without text and doi or url"


@rule("zoo.tags", STYLE, _GUIDE, breaks="nobody finds the model", fix="Add tags, e.g. denoising, 2d, fluorescence.")
def tags(model: Model) -> str | None:
    """Tags."""
    return None if model.texts("tags") else "there are no tags"


@rule("zoo.maintainers", STYLE, _GUIDE, breaks="the zoo has nobody to ask",
      fix="Give a maintainer, a person, with a github_user.")
def maintainers(model: Model) -> str | None:
    """A maintainer with a GitHub name."""
    people = model.mappings("maintainers") or model.mappings("authors")
    return None if any(person.get("github_user") for person in people) else "nobody listed has a github_user"


@rule("zoo.id", STYLE, _UPLOAD, versions="0.5",
      breaks="bioimageio.spec's own upload refuses it, since the zoo gives ids",
      fix="Remove the id for the upload only; Fiji needs one in a zip that is handed from person to person.")
def upload_id(model: Model) -> str | None:
    """No id in what is uploaded."""
    return "id is given" if model.rdf.get("id") else None


@rule("zoo.test_hashes", STYLE, _GUIDE, versions="0.5", repair="hashes",
      breaks="nobody can tell whether they were changed", fix="Give every tensor a test_tensor with source and sha256.")
def test_hashes(model: Model) -> str | None:
    """A test tensor with its sha256 for every input and output."""
    entries = [tensor.written.get("test_tensor") for tensor in model.tensors]
    hashed = [isinstance(entry, dict) and bool(entry.get("sha256")) for entry in entries]
    return None if hashed and all(hashed) else "a test tensor is missing or has no sha256"


@rule("zoo.single_io", DEGRADES, _TEST, breaks="the zoo's deepImageJ check fails",
      fix="Put several images into channels of one input.")
def single_io(model: Model) -> str | None:
    """One input; several outputs are fine."""
    return None if len(model.inputs) == 1 else f"there are {len(model.inputs)} inputs"


@rule("zoo.sample_tensor", DEGRADES, _TEST, repair="sample_tensors",
      breaks="the zoo's deepImageJ check compares the wrong images", fix="Leave sample_tensor out.")
def sample_tensor(model: Model) -> str | None:
    """No sample tensors other than the test tensors."""
    for tensor in model.tensors:
        sample, test = tensor.written.get("sample_tensor"), tensor.written.get("test_tensor")
        if sample is None:
            continue
        files = model.file_of(sample), model.file_of(test)
        if files[0] is None or files[1] is None or not filecmp.cmp(files[0], files[1], shallow=False):
            return f"the sample_tensor of {tensor.id!r} is not its test_tensor"
    return None


@rule("zoo.test_of_step", DEGRADES, _TEST, breaks="the zoo's deepImageJ check pads it and differs at the border",
      fix="Crop the test input to a multiple of step.")
def test_of_step(model: Model) -> str | None:
    """A test input whose sizes are multiples of step."""
    for tensor in model.inputs:
        shape = model.test_shape(tensor)
        if shape is None:
            raise NotApplicable("the test inputs are not npy files in the package")
        if len(shape) != len(tensor.axes):
            return f"the test input of {tensor.id!r} has {len(shape)} axes, {len(tensor.axes)} are described"
        for axis, size in zip(tensor.axes, shape, strict=True):
            if axis.min_step and axis.min_step[1] and size % axis.min_step[1]:
                return f"the test input is {size} along {axis.id}, not a multiple of step {axis.min_step[1]}"
    return None


@rule("zoo.tolerance", DEGRADES, _TEST,
      breaks="the zoo's deepImageJ check allows 1.5e-4 + 1e-4 of the value on every pixel, whatever is stated",
      fix="Write test outputs that the weights reproduce more closely, computed on a CPU.")
def tolerance(model: Model) -> str | None:
    """A test that needs no tolerance beyond that of the zoo's deepImageJ check."""
    stated = max((number(entry, "absolute_tolerance") for entry in tolerances(model)), default=0.0)
    return f"absolute_tolerance is {stated:g}" if stated > _DEEPIMAGEJ_ATOL else None


rule("zoo.custom_ops", STYLE, _GUIDE, breaks="the zoo's reviewers read its code first",
     fix="Put the step into the network's graph, or tell users what the model needs.")(questions.custom_processing)


@rule("zoo.few_files", STYLE, _GUIDE, repair="flatten", breaks="the zoo recommends 5 to 9 files, side by side",
      fix="Flatten the package.")
def few_files(model: Model) -> str | None:
    """At most 20 files, none of them in folders."""
    if not model.with_files:
        raise NotApplicable("only the description was looked at")
    names = model.package.names
    nested = [name for name in names if "/" in name]
    if len(names) > _MAX_FILES:
        return f"the package holds {len(names)} files"
    return f"{len(nested)} files lie in folders" if nested else None
