"""Repairs of the description: its format, its id, fields that consumers stumble over, and axes."""

import re
from typing import Any

from gap_bioimage.validation.archive.description import OF_TESTS, load_offline, problems_of
from gap_bioimage.validation.archive.files import sha256_of
from gap_bioimage.validation.archive.rdf import references
from gap_bioimage.validation.check import one_sentence
from gap_bioimage.validation.model import Axis, source_of
from gap_bioimage.validation.repair.editor import WRONG_HASH, PackageEditor, numbered, unshared
from gap_bioimage.validation.repair.files import readme
from gap_bioimage.validation.rules import is_identifier
from gap_bioimage.validation.rules.fiji import keeps_from_tiling

FORMAT, FORMAT_WITH_NEWER_OPERATIONS = "0.5.9", "0.5.10"
# came with 0.5.10, or got fields there that newer readers require (stardist's n_rays)
_NEWER_OPERATIONS = {"custom", "cellpose_flow_dynamics", "stardist_postprocessing"}
_LONGEST_AXIS_DESCRIPTION = 128


def convert_04(editor: PackageEditor) -> None:
    """Rewrite a description of format 0.4 by bioimageio.spec's own conversion."""
    version, package = str(editor.rdf.get("format_version")), editor.model.package
    if not re.match(r"0\.4(\.|$)", version):
        return
    from bioimageio.spec import dump_description

    readme(editor)  # format 0.5 wants one
    before = unshared(editor.rdf)
    if version == "0.4":  # no version at all, strictly
        before["format_version"] = "0.4.10"
    for reference in references(before):
        if reference.key == "dependencies":  # the conversion knows one manager alone
            reference.holder[reference.key] = f"conda:{reference.path}"
    built, with_files = (load_offline(package, before, "latest", with_files=files) for files in (False, True))
    # other faults of files have repairs of their own
    if refused := problems_of(package, built) or problems_of(package, with_files, OF_TESTS):
        text = one_sentence("; ".join(refused[:2]), 160)
        editor.notes.append(f"format {version} is not converted to 0.5: {text}")
        return
    content = {key: value for key, value in _without_nulls(dump_description(built)).items() if value not in ([], {})}
    if not before.get("covers"):
        content.pop("covers", None)  # a stand-in, since bioimageio.spec would draw one
    for key in ("documentation", "icon", "covers"):  # the conversion made objects of them
        if key in content:
            content[key] = list(map(source_of, content[key])) if key == "covers" else source_of(content[key])
    editor.rdf = {"format_version": FORMAT, "type": "model"} | content | {"format_version": FORMAT}
    stated = {reference.name: reference.sha256 for reference in references(before)}
    for reference in editor.references:  # the conversion loses hashes, and a wrong one must not go unseen
        if reference.hash_key and stated.get(reference.name):
            reference.holder.setdefault(reference.hash_key, stated[reference.name])
    editor.changed("format_version", "format of the description", version, FORMAT)
    if before.get("name") != editor.rdf["name"]:
        editor.changed("format_version", "name", before.get("name"), editor.rdf["name"])


def _without_nulls(value: Any, key: str = "") -> Any:
    # null is a value among keyword arguments and in ranges, and elsewhere an absent field
    if isinstance(value, dict) and key not in ("kwargs", "config"):
        return {name: _without_nulls(item, name) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def lower_format(editor: PackageEditor) -> None:
    """Write the newest format that every consumer reads, without the fields that it does not know."""
    model, written = editor.model, str(editor.rdf.get("format_version"))
    if not editor.is_05 or (editor.is_plain and written != "0.5"):  # which is no version at all, strictly
        return
    state_dict = model.weights.get("pytorch_state_dict", {})
    needed = {
        "a licence in a file of its own": isinstance(editor.rdf.get("license"), dict),
        "weights.pytorch_state_dict.strict: false": state_dict.get("strict") is False,
        "an input that is another model's output": any(tensor.written.get("output_of") for tensor in model.inputs),
    }
    if found := [what for what, is_there in needed.items() if is_there]:
        editor.notes.append(f"format_version stays, since {found[0]} came with 0.5.11 and is needed")
        return
    is_newer = _NEWER_OPERATIONS & {step.get("id") for step in model.steps}
    editor.rdf["format_version"] = FORMAT_WITH_NEWER_OPERATIONS if is_newer else FORMAT
    editor.changed("format_version", "format_version", written, editor.rdf["format_version"])
    newer = [("weights.pytorch_state_dict", state_dict, "strict")]
    newer += [(f"input {tensor.id}", tensor.written, key) for tensor in model.inputs for key in ("pad", "output_of")]
    for where, holder, key in newer:
        if key in holder:
            editor.changed("format_version", f"{where}: {key}", holder.pop(key), "dropped; borders are mirrored")


def plain_strings(editor: PackageEditor) -> None:
    """Name documentation, covers and icon by plain strings."""
    if not editor.is_plain:
        return
    covers = editor.rdf.get("covers")
    places: list[tuple[Any, Any, str]] = [(editor.rdf, key, key) for key in ("documentation", "icon")]
    places += [(covers, i, f"covers[{i}]") for i in range(len(covers) if isinstance(covers, list) else 0)]
    for holder, key, what in places:
        entry = holder[key] if isinstance(key, int) else holder.get(key)
        if isinstance(entry, dict):
            path, stated = editor.model.file_of(entry), entry.get("sha256")
            wrong = path is not None and stated and sha256_of(path) != str(stated).lower()
            holder[key] = entry.get("source")
            editor.changed("plain_strings", what + (WRONG_HASH if wrong else ""), entry, holder[key])


def fill_id(editor: PackageEditor) -> None:
    """Make an id of the name."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(editor.rdf.get("name") or "").lower()).strip("-")
    if slug and not editor.rdf.get("id"):
        first = {key: editor.rdf[key] for key in ("format_version", "type") if key in editor.rdf}
        editor.rdf = first | {"id": slug} | {key: value for key, value in editor.rdf.items() if key != "id"}
        editor.changed("id", "id", "none", slug)


def deepimagej_config(editor: PackageEditor) -> None:
    """Remove a section that keeps deepImageJ from tiling."""
    if keeps_from_tiling(editor.model):
        section = editor.rdf["config"].pop("deepimagej")
        editor.changed("deepimagej_config", "config.deepimagej", section, "removed")


def axis_ids(editor: PackageEditor) -> None:
    """Write the id of every space axis, also where it is the default: JDLL reads no axis without."""
    for tensor in editor.tensors:
        for index, axis in enumerate(tensor.axes):
            if axis.kind == "space" and not axis.written.get("id"):
                rest = {key: value for key, value in axis.written.items() if key not in ("type", "id")}
                tensor.written["axes"][index] = {"type": "space", "id": axis.id} | rest
                editor.changed("axis_ids", f"id of a space axis of {tensor.id}", "none (x by default)", axis.id)


def channel_names(editor: PackageEditor) -> None:
    """Name channels channel0, channel1, ... where they have no names; make identifiers of others before 0.5.11."""
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
                editor.notes.append(f"channels of {tensor.id} stay without names: no test tensor counts them")
                continue
            axis.written.pop("size", None)  # it follows from the names, and the format forbids it
        if renamed != names:
            axis.written["channel_names"] = renamed
            editor.changed("channel_names", f"channels of {tensor.id}", names, renamed)


def _identifiers(names: list[str]) -> list[str]:
    """Identifiers in the place of names that are none, different from each other and from those that stay."""
    taken = {name.casefold() for name in names if is_identifier(name)}
    for place, name in enumerate(names):
        if not is_identifier(name):
            base = re.sub(r"\W+", "_", name).strip("_")
            names[place] = numbered(base if is_identifier(base) else f"channel_{base}".rstrip("_"), "", taken)
            taken.add(names[place].casefold())
    return names


def axis_scale(editor: PackageEditor) -> None:
    """Leave scales out of input axes, and divide those of the outputs that refer to them, so that sizes stay."""
    if not editor.is_05:
        return
    model = editor.model
    inputs = {(tensor.id, axis.id): axis for tensor in model.inputs for axis in tensor.axes}
    scaled = {key: axis.scale for key, axis in inputs.items() if axis.scale not in (0, 1)}
    if scaled and any(_referred(axis) in inputs for axis in inputs.values()):
        editor.notes.append("scales of inputs stay: they relate the sizes of two inputs")
        return
    for tensor in model.outputs:
        for axis in tensor.axes:
            if (scale := scaled.get(_referred(axis))) is not None:
                before = f"{axis.scale:g} {axis.written.pop('unit', '')}".strip()
                axis.written["scale"] = round(axis.scale / scale, 9)
                after = f"{axis.written['scale']:g}"
                editor.changed("axis_scale", f"scale of output {tensor.id}, {axis.id}", before, after)
    for key in scaled:
        axis = inputs[key]
        before = f"{axis.written.pop('scale')} {axis.written.pop('unit', None) or '(no unit)'}"
        told = "; ".join(filter(None, (str(axis.written.get("description") or ""), f"pixel size {before}")))
        axis.written["description"] = told[:_LONGEST_AXIS_DESCRIPTION]
        editor.changed("axis_scale", f"scale of input {key[0]}, {key[1]}", before, "1; told in the axis' description")


def _referred(axis: Axis) -> tuple[str, str]:
    size = axis.written.get("size")
    return (str(size.get("tensor_id")), str(size.get("axis_id"))) if isinstance(size, dict) else ("", "")
