"""Repairs of the description's format, ids, axes and channels, and of the files' hashes, names, README and covers."""

import io
import posixpath
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from PIL import Image, ImageOps

from gap_bioimage.validation.archive.description import OF_TESTS, load_offline, problems_of
from gap_bioimage.validation.archive.files import absence, sha256_of
from gap_bioimage.validation.archive.rdf import is_url, references
from gap_bioimage.validation.check import one_sentence
from gap_bioimage.validation.model import Axis, source_of
from gap_bioimage.validation.repair.editor import RDF_NAME, PackageEditor, is_leftover, numbered, shown, unshared
from gap_bioimage.validation.rules import is_identifier
from gap_bioimage.validation.rules.fiji import keeps_from_tiling
from gap_bioimage.validation.rules.zoo import ASPECTS, HEADING, MAX_COVER_BYTES, has_good_aspect

FORMAT, FORMAT_WITH_NEWER_OPERATIONS = "0.5.9", "0.5.10"
# new in 0.5.10, or with new fields there that newer readers require (stardist's n_rays)
_NEWER_OPERATIONS = {"custom", "cellpose_flow_dynamics", "stardist_postprocessing"}
_LONGEST_AXIS_DESCRIPTION = 128
_WRONG_HASH = " (WRONG HASH: this is not the file that was described)"
# executable files: only a person can decide whether they hold the code that was described
_CODE = (".py", ".ipynb", ".ijm", ".bsh", ".groovy", ".js", ".jar", ".sh", ".bat", ".r", ".m", ".so", ".dll")
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_README_NAME = re.compile(r"(readme|documentation|docs?)\.(md|markdown|txt)", re.IGNORECASE)


def convert_04(editor: PackageEditor) -> None:
    """Convert a description of format 0.4 to 0.5 with bioimageio.spec's own conversion."""
    version, package = str(editor.rdf.get("format_version")), editor.model.package
    if not re.match(r"0\.4(\.|$)", version):
        return
    from bioimageio.spec import dump_description

    readme(editor)  # format 0.5 requires one
    before = unshared(editor.rdf)
    if version == "0.4":  # strictly, not a version
        before["format_version"] = "0.4.10"
    for reference in references(before):
        if reference.key == "dependencies":  # the only manager that the conversion supports
            reference.holder[reference.key] = f"conda:{reference.path}"
    built, checked = (load_offline(package, before, "latest", with_files=with_files) for with_files in (False, True))
    # other problems with files have repairs of their own
    if refused := problems_of(package, built) or problems_of(package, checked, OF_TESTS):
        text = one_sentence("; ".join(refused[:2]), 160)
        editor.notes.append(f"format {version} is not converted to 0.5: {text}")
        return
    content = {key: value for key, value in _without_nulls(dump_description(built)).items() if value not in ([], {})}
    if not before.get("covers"):
        content.pop("covers", None)  # the placeholder of load_offline
    for key in ("documentation", "icon", "covers"):  # the conversion turned them into mappings
        if key in content:
            content[key] = list(map(source_of, content[key])) if key == "covers" else source_of(content[key])
    editor.rdf = {"format_version": FORMAT, "type": "model"} | content | {"format_version": FORMAT}
    stated = {reference.name: reference.sha256 for reference in references(before)}
    for reference in editor.references:  # the conversion loses hashes, and a wrong one must not go unnoticed
        if reference.hash_key and stated.get(reference.name):
            reference.holder.setdefault(reference.hash_key, stated[reference.name])
    editor.changed("format_version", "format of the description", version, FORMAT)
    sizes = [(axis.size, axis.scale) for output in built.outputs for axis in output.axes if hasattr(axis, "scale")]
    if any(hasattr(size, "axis_id") and (size.offset or scale != 1) for size, scale in sizes):
        editor.notes.append(f"Fiji reads outputs of another size than the input only in format {version}: keep both")
    if (name := before.get("name")) != editor.rdf["name"]:
        editor.changed("format_version", "name", name, editor.rdf["name"])


def _without_nulls(value: Any, key: str = "") -> Any:
    # null is a value in keyword arguments and ranges; elsewhere it is an absent field
    if isinstance(value, dict) and key not in ("kwargs", "config"):
        return {name: _without_nulls(item, name) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def lower_format(editor: PackageEditor) -> None:
    """Lower the format to the newest that every consumer reads, and drop the fields that it does not have."""
    model, written = editor.model, str(editor.rdf.get("format_version"))
    if not editor.is_05 or (editor.is_plain and written != "0.5"):  # strictly, not a version
        return
    state_dict = model.weights.get("pytorch_state_dict", {})
    newest = {
        "a licence in a file of its own": isinstance(editor.rdf.get("license"), dict),
        "weights.pytorch_state_dict.strict: false": state_dict.get("strict") is False,
        "an input that is another model's output": any(tensor.written.get("output_of") for tensor in model.inputs),
    }
    if needed := [feature for feature, is_used in newest.items() if is_used]:
        editor.notes.append(f"format_version stays, since {needed[0]} requires 0.5.11")
        return
    is_newer = _NEWER_OPERATIONS & {step.get("id") for step in model.steps}
    editor.rdf["format_version"] = FORMAT_WITH_NEWER_OPERATIONS if is_newer else FORMAT
    editor.changed("format_version", "format_version", written, editor.rdf["format_version"])
    fields = [("weights.pytorch_state_dict", state_dict, "strict")]
    fields += [(f"input {tensor.id}", tensor.written, key) for tensor in model.inputs for key in ("pad", "output_of")]
    for where, holder, key in fields:
        if key in holder:
            after = "dropped; borders are mirrored" if key == "pad" else "dropped"
            editor.changed("format_version", f"{where}: {key}", holder.pop(key), after)


def plain_strings(editor: PackageEditor) -> None:
    """Write documentation, covers and icon as plain strings."""
    if not editor.is_plain:
        return
    listed, rdf = editor.rdf.get("covers"), editor.rdf
    places: list[tuple[Any, Any, str]] = [(rdf, key, key) for key in ("documentation", "icon") if key in rdf]
    places += [(listed, i, f"covers[{i}]") for i in range(len(listed) if isinstance(listed, list) else 0)]
    for holder, key, what in places:
        if isinstance(entry := holder[key], dict):
            path, stated = editor.model.file_of(entry), entry.get("sha256")
            is_wrong = path is not None and stated and sha256_of(path) != str(stated).lower()
            holder[key] = entry.get("source")
            editor.changed("plain_strings", what + (_WRONG_HASH if is_wrong else ""), entry, holder[key])


def fill_id(editor: PackageEditor) -> None:
    """Derive a missing id from the name."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(editor.rdf.get("name") or "").lower()).strip("-")
    if slug and not editor.rdf.get("id"):
        first = {key: editor.rdf[key] for key in ("format_version", "type") if key in editor.rdf}
        editor.rdf = first | {"id": slug} | {key: value for key, value in editor.rdf.items() if key != "id"}
        editor.changed("id", "id", "none", slug)


def deepimagej_config(editor: PackageEditor) -> None:
    """Remove the config section that keeps deepImageJ from tiling."""
    if keeps_from_tiling(editor.model):
        removed = editor.rdf["config"].pop("deepimagej")
        editor.changed("deepimagej_config", "config.deepimagej", removed, "removed")


def axis_ids(editor: PackageEditor) -> None:
    """Write the id of every space axis, even the default one: JDLL cannot read an axis without it."""
    for tensor in editor.tensors:
        for index, axis in enumerate(tensor.axes):
            if axis.kind == "space" and not axis.written.get("id"):
                rest = {key: value for key, value in axis.written.items() if key not in ("type", "id")}
                tensor.written["axes"][index] = {"type": "space", "id": axis.id} | rest
                editor.changed("axis_ids", f"id of a space axis of {tensor.id}", "none (x by default)", axis.id)


def tensor_ids(editor: PackageEditor) -> None:
    """Write the id of every input and output, even the default one: JDLL looks tensors up by their ids."""
    for tensor in editor.tensors:
        if not tensor.written.get("id"):
            tensor.written["id"] = tensor.id
            editor.changed("tensor_ids", f"id of the {tensor.id}", "none", tensor.id)


def channel_names(editor: PackageEditor) -> None:
    """Name unnamed channels channel0, channel1, ...; before 0.5.11, also turn other names into identifiers."""
    for tensor, index, axis in ((t, i, axis) for t in editor.tensors for i, axis in enumerate(t.axes)):
        names = axis.written.get("channel_names")
        if axis.kind != "channel" or (names and not (editor.is_plain and isinstance(names, list))):
            continue
        if names:
            renamed = _identifiers(list(map(str, names)))
        else:
            array = editor.model.test_array(tensor)
            is_counted = array is not None and array.ndim == len(tensor.axes)
            renamed = [f"channel{i}" for i in range(array.shape[index] if is_counted else axis.size or 0)]
            if not renamed:
                editor.notes.append(f"channels of {tensor.id} stay without names: no test tensor shows their number")
                continue
            axis.written.pop("size", None)  # the format forbids it beside the names
        if renamed != names:
            axis.written["channel_names"] = renamed
            editor.changed("channel_names", f"channels of {tensor.id}", names, renamed)


def _identifiers(names: list[str]) -> list[str]:
    """Replace names that are not identifiers by unique identifiers."""
    taken = {name.casefold() for name in names if is_identifier(name)}
    for place, name in enumerate(names):
        if not is_identifier(name):
            base = re.sub(r"\W+", "_", name).strip("_")
            names[place] = numbered(base if is_identifier(base) else f"channel_{base}".rstrip("_"), "", taken)
            taken.add(names[place].casefold())
    return names


def axis_scale(editor: PackageEditor) -> None:
    """Remove the scales of input axes, and divide those of output axes that refer to them, which preserves sizes."""
    if not editor.is_05:
        return
    model = editor.model
    inputs = {(tensor.id, axis.id): axis for tensor in model.inputs for axis in tensor.axes}
    scaled = {key: axis.scale for key, axis in inputs.items() if axis.scale not in (0, 1)}
    if scaled and any(_reference_of(axis) in inputs for axis in inputs.values()):
        editor.notes.append("scales of inputs stay: they relate the sizes of two inputs")
        return
    for tensor in model.outputs:
        for axis in tensor.axes:
            if (scale := scaled.get(_reference_of(axis))) is not None:
                before = f"{axis.scale:g} {axis.written.pop('unit', '')}".strip()
                axis.written["scale"] = round(axis.scale / scale, 9)
                after = f"{axis.written['scale']:g}"
                editor.changed("axis_scale", f"scale of output {tensor.id}, {axis.id}", before, after)
    for key in scaled:
        axis = inputs[key]
        before = f"{axis.written.pop('scale')} {axis.written.pop('unit', None) or '(no unit)'}"
        text = "; ".join(filter(None, (str(axis.written.get("description") or ""), f"pixel size {before}")))
        axis.written["description"] = text[:_LONGEST_AXIS_DESCRIPTION]
        editor.changed("axis_scale", f"scale of input {key[0]}, {key[1]}", before, "1; now in the axis' description")


def _reference_of(axis: Axis) -> tuple[str, str]:
    size = axis.written.get("size")
    return (str(size.get("tensor_id")), str(size.get("axis_id"))) if isinstance(size, dict) else ("", "")


def rename_description(editor: PackageEditor) -> None:
    """Name the description rdf.yaml."""
    if editor.rdf_name != RDF_NAME:
        editor.changed("rdf_name", "name of the description", editor.rdf_name, RDF_NAME)
        editor.rdf_name = RDF_NAME


def remove_leftovers(editor: PackageEditor) -> None:
    """Remove files that operating systems and Python leave behind in folders."""
    named = {reference.name for reference in editor.references}
    for name in editor.names:
        if name not in named and is_leftover(name):
            (editor.folder / name).unlink()
            editor.changed("leftovers", "file", name, "removed")


def hashes(editor: PackageEditor) -> None:
    """State the sha256 of every data file that the description names; that of code is left to its authors."""
    for reference in editor.references:
        path = None if not reference.hash_key or reference.is_remote else editor.model.file_of(reference.path)
        if path is None or absence(path):  # the file behind a pointer of Git LFS has another hash
            continue
        stated, computed = reference.holder.get(reference.hash_key), sha256_of(path)
        if stated and str(stated).lower() == computed:
            continue
        if path.suffix.lower() in _CODE:
            state = f"is not the one stated for {reference.where}" if stated else "is not stated"
            to_do = f"read it, and if it is the right file write {reference.hash_key}: {computed}"
            editor.notes.append(f"{reference.name} is code, and its sha256 {state}: {to_do}")
            continue
        reference.holder[reference.hash_key] = computed
        what = f"sha256 of {reference.name}, {reference.where}" + (_WRONG_HASH if stated else "")
        editor.changed("hash_wrong" if stated else "hash_missing", what, stated, computed)


def plain_paths(editor: PackageEditor) -> None:
    """Write file names without ``./``, which Fiji's engine takes for a folder, and with forward slashes."""
    for reference in editor.references:
        is_plain = reference.is_remote or reference.path == reference.name
        if not is_plain and editor.model.file_of(reference.name) is not None:
            reference.point_to(reference.name)
            editor.changed("plain_paths", reference.where, reference.path, reference.name)


def flatten(editor: PackageEditor) -> None:
    """Move TorchScript weights to the top level, where JDLL looks for them; the paths of other files may be in use."""
    script = editor.model.weights.get("torchscript", {})
    for reference in editor.references:
        if reference.holder is script and "/" in reference.name and editor.model.file_of(reference.name) is not None:
            editor.changed("flat", "file", old := reference.name, editor.move(old, posixpath.basename(old)))


def sample_tensors(editor: PackageEditor) -> None:
    """Leave out sample tensors, which programs take for test tensors or cannot read as images; their files stay."""
    for tensor in editor.tensors:
        if tensor.written.get("sample_tensor") is not None:
            removed = source_of(tensor.written.pop("sample_tensor"))
            editor.changed("sample_tensor", f"sample_tensor of {tensor.id}", removed, "removed")


def readme(editor: PackageEditor) -> None:
    """Give the model a README.md in UTF-8; only its authors can describe how it was validated."""
    source = str(source_of(editor.rdf.get("documentation")) or "")
    if is_url(source):
        editor.notes.append(f"documentation is on a server and stays as it is: {source}")
        return
    name = PurePosixPath(source).as_posix()
    if editor.model.file_of(source) is None:
        name = next((name for name in editor.names if _README_NAME.fullmatch(name)), "")
        after = f"{name}, found in the package" if name else "README.md, written from name and description"
        if not name:
            name = "README.md"
            text = f"# {editor.rdf.get('name') or 'Model'}\n\n{editor.rdf.get('description') or ''}\n"
            (editor.folder / name).write_text(text, encoding="utf-8")
        entry = {"source": name, "sha256": sha256_of(editor.folder / name)}
        editor.rdf["documentation"] = name if editor.is_plain else entry
        editor.changed("readme", "documentation", source, after)
    if not name.endswith(".md"):
        old, name = name, editor.move(name, posixpath.splitext(name)[0] + ".md")
        editor.changed("readme", "name of the documentation", old, name)
    written = (editor.folder / name).read_bytes()
    try:
        text = written.decode("utf-8")
    except UnicodeDecodeError:
        is_16 = written.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = written.decode("utf-16" if is_16 else "latin-1", errors="replace")  # any bytes are valid in the latter
        editor.rewrite(name, text.encode("utf-8"))
        editor.changed("readme", f"encoding of {name}", "not UTF-8", "UTF-8")
    if not HEADING.search(text):
        editor.notes.append(f"{name} has no heading about validation: describe how well the model works, and on what")


def covers(editor: PackageEditor) -> None:
    """Leave out covers that are missing, and fit those that are too large or have another aspect ratio."""
    listed = editor.rdf.get("covers")
    listed = listed if isinstance(listed, list) else []
    present = [cover for cover in listed if is_url(str(source_of(cover))) or editor.model.file_of(cover) is not None]
    if len(present) < len(listed):
        editor.rdf["covers"] = present
        editor.changed("cover", "covers", listed, f"{shown(present)}, without missing files")
    sources = (str(source_of(cover)) for cover in present)
    for name in (PurePosixPath(source).as_posix() for source in sources if not is_url(source)):
        try:
            _fit(editor, name)
        except (OSError, KeyError, Image.DecompressionBombError):
            editor.notes.append(f"the cover {name} stays as it is: it is not a readable PNG or JPEG")


def _fit(editor: PackageEditor, name: str) -> None:
    """Pad a cover to an aspect ratio that the zoo shows in full, and shrink it until it is small enough."""
    path, buffer = editor.folder / name, io.BytesIO()
    kind, n_bytes = _PICTURES[path.suffix.lower()], path.stat().st_size
    with Image.open(path) as opened:
        size, image = opened.size, opened.convert("RGBA" if kind == "PNG" and "A" in opened.getbands() else "RGB")
    if has_good_aspect(size) and n_bytes < MAX_COVER_BYTES:
        return
    if not has_good_aspect(size):
        padded = [(max(size[0], round(size[1] * a)), max(size[1], round(size[0] / a))) for a in ASPECTS]
        margin = (255, 255, 255, 0)[: len(image.getbands())]
        image = ImageOps.pad(image, min(padded, key=lambda pair: pair[0] * pair[1]), color=margin)
    image.save(buffer, kind, quality=90, optimize=True)
    while buffer.tell() >= MAX_COVER_BYTES:
        image, buffer = ImageOps.scale(image, 0.8, Image.Resampling.LANCZOS), io.BytesIO()
        image.save(buffer, kind, quality=90, optimize=True)
    editor.rewrite(name, buffer.getvalue())
    before = f"{size[0]} x {size[1]}, {n_bytes // 1000} kB"
    editor.changed("cover", f"cover {name}", before, f"{name}, {buffer.tell() // 1000} kB")


# In the order in which they are made; rules refer to them by name. The format comes first, since the other repairs
# follow its rules. Hashes come before any file is changed: a wrong one is then the authors' error, not ours.
REPAIRS: tuple[Callable[[PackageEditor], None], ...] = (
    rename_description, convert_04, lower_format, plain_strings, fill_id, plain_paths, hashes, remove_leftovers,
    flatten, axis_ids, tensor_ids, channel_names, axis_scale, deepimagej_config, sample_tensors, readme, covers,
)  # fmt: skip
