"""Repairs of the description: its name, its format, its id, and fields that consumers stumble over."""

import re
from typing import Any

from gap_bioimage.validation.archive.files import sha256_of
from gap_bioimage.validation.archive.rdf import references
from gap_bioimage.validation.check import one_sentence
from gap_bioimage.validation.quiet import quiet
from gap_bioimage.validation.repair.editor import RDF_NAME, WRONG_HASH, PackageEditor, unshared

FORMAT, FORMAT_WITH_NEWER_OPERATIONS = "0.5.9", "0.5.10"
# came with 0.5.10, or got fields there that newer readers require (stardist's n_rays)
_NEWER_OPERATIONS = {"custom", "cellpose_flow_dynamics", "stardist_postprocessing"}
_FIRST_FIELDS = ("format_version", "type", "id", "name", "description", "authors", "maintainers", "cite", "license")


def rename_description(editor: PackageEditor) -> None:
    """Name the description rdf.yaml."""
    if editor.rdf_name != RDF_NAME:
        editor.changed("rdf_name", "name of the description", editor.rdf_name, RDF_NAME)
        editor.rdf_name = RDF_NAME


def convert_04(editor: PackageEditor) -> None:
    """Rewrite a description of format 0.4 by bioimageio.spec's own conversion."""
    version = str(editor.rdf.get("format_version"))
    if not version.startswith("0.4."):
        return
    from bioimageio.spec import dump_description
    from bioimageio.spec.model import v0_5

    built = _built(editor, "latest")
    if not isinstance(built, v0_5.ModelDescr):
        # what is wrong with it as it stands says more than what became of it
        text = one_sentence("; ".join((_errors(_built(editor, "discover")) or _errors(built))[:2]), 160)
        editor.notes.append(f"format {version} is not converted to 0.5: bioimageio.spec says {text}")
        return
    content = {key: value for key, value in dump_description(built).items() if value not in (None, [], {})}
    before, first = editor.rdf, {key: content[key] for key in _FIRST_FIELDS if key in content}
    editor.rdf = _without_nulls(first | content) | {"format_version": FORMAT}
    stated = {reference.name: reference.sha256 for reference in references(before)}
    for reference in editor.references:  # the conversion loses hashes, and a wrong one must not go unseen
        if reference.hash_key and stated.get(reference.name):
            reference.holder.setdefault(reference.hash_key, stated[reference.name])
    n_changes = len(editor.changes)
    plain_strings(editor)  # the conversion made objects of them
    del editor.changes[n_changes:]
    editor.changed("format_version", "format of the description", version, FORMAT)
    if before.get("name") != editor.rdf["name"]:
        editor.changed("format_version", "name", before.get("name"), editor.rdf["name"])


def _built(editor: PackageEditor, version: str) -> Any:
    from bioimageio.spec import ValidationContext, build_description

    context = ValidationContext(
        root=editor.folder, file_name=editor.rdf_name, perform_io_checks=False, log_warnings=False, progressbar=False
    )
    try:
        with quiet():
            return build_description(unshared(editor.rdf), context=context, format_version=version)
    except Exception as error:  # spec raises whatever its converter stumbles over
        return error


def _errors(built: Any) -> list[str]:
    if isinstance(built, Exception):
        return [str(built)]
    entries = [entry for detail in built.validation_summary.details for entry in detail.errors]
    return [f"{'.'.join(str(part) for part in entry.loc[:3])} {entry.msg}".strip() for entry in entries]


def _without_nulls(value: Any, key: str = "") -> Any:
    # null is a value among keyword arguments and in ranges, and elsewhere an absent field
    if isinstance(value, dict) and key not in ("kwargs", "config"):
        return {name: _without_nulls(item, name) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def lower_format(editor: PackageEditor) -> None:
    """Write the newest format that every consumer reads, without the fields that it does not know."""
    model, written = editor.model, str(editor.rdf.get("format_version"))
    is_vague = written == "0.5"  # no version at all, strictly
    if not editor.is_05 or (editor.is_plain and not is_vague):
        return
    state_dict = model.weights.get("pytorch_state_dict", {})
    if state_dict.get("strict") is False:
        text = "weights.pytorch_state_dict.strict: false came with 0.5.11 and is needed"
        editor.notes.append(f"format_version stays, since {text}")
        return
    is_newer = _NEWER_OPERATIONS & {step.get("id") for step in model.steps}
    editor.rdf["format_version"] = FORMAT_WITH_NEWER_OPERATIONS if is_newer else FORMAT
    editor.changed("format_version", "format_version", written, editor.rdf["format_version"])
    dropped = [("weights.pytorch_state_dict", state_dict, "strict", "dropped")]
    for tensor in model.inputs:
        dropped.append((f"input {tensor.id}", tensor.written, "pad", "dropped; borders are mirrored"))
        dropped.append((f"input {tensor.id}", tensor.written, "output_of", "dropped"))
    for where, holder, key, hint in dropped:
        if key in holder:
            editor.changed("format_version", f"{where}: {key}", holder.pop(key), hint)


def plain_strings(editor: PackageEditor) -> None:
    """Name documentation, covers, icon and licence by plain strings."""
    if not editor.is_plain:
        return
    covers = editor.rdf.get("covers")
    places: list[tuple[Any, Any, str]] = [(editor.rdf, key, key) for key in ("documentation", "icon")]
    places += [(covers, i, f"covers[{i}]") for i in range(len(covers) if isinstance(covers, list) else 0)]
    for holder, key, what in places:
        entry = holder[key] if isinstance(key, int) else holder.get(key)
        if isinstance(entry, dict):
            path, stated = editor.file(entry), entry.get("sha256")
            wrong = path is not None and stated and sha256_of(path) != str(stated).lower()
            holder[key] = entry.get("source")
            editor.changed("plain_strings", what + (WRONG_HASH if wrong else ""), entry, holder[key])
    if isinstance(editor.rdf.get("license"), dict):
        _plain_license(editor)


def _plain_license(editor: PackageEditor) -> None:
    """A file with a licence's own text has no place in older formats; it stays in the package as an attachment."""
    entry = editor.rdf.pop("license")
    path = editor.file(entry)
    text = path.read_text(encoding="utf-8", errors="replace") if path is not None else ""
    named = re.search(r"SPDX-License-Identifier:\s*([\w.+-]+)", text)
    if named:
        editor.rdf["license"] = named[1]
    else:
        editor.notes.append("license was a file, which formats up to 0.5.10 do not know: state an SPDX identifier")
    attached = editor.rdf.setdefault("attachments", [])
    if path is not None and isinstance(attached, list):
        attached.append({"source": entry["source"], "sha256": sha256_of(path)})
    after = f"{named[1] if named else 'none stated'}, {entry.get('source')} is attached"
    editor.changed("plain_strings", "license", entry, after)


def fill_id(editor: PackageEditor) -> None:
    """Make an id of the name."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(editor.rdf.get("name") or "").lower()).strip("-")
    if slug and not editor.rdf.get("id"):
        first = {key: editor.rdf[key] for key in ("format_version", "type") if key in editor.rdf}
        editor.rdf = first | {"id": slug} | {key: value for key, value in editor.rdf.items() if key != "id"}
        editor.changed("id", "id", "none", slug)


def deepimagej_config(editor: PackageEditor) -> None:
    """Remove a section that keeps deepImageJ from tiling."""
    config = editor.rdf.get("config")
    section = config.get("deepimagej") if isinstance(config, dict) else None
    if section is None or (isinstance(section, dict) and section.get("allow_tiling") is True):
        return
    del editor.rdf["config"]["deepimagej"]
    if not editor.rdf["config"]:
        del editor.rdf["config"]
    editor.changed("deepimagej_config", "config.deepimagej", section, "removed")


def sample_tensors(editor: PackageEditor) -> None:
    """Leave out sample tensors that are not the test tensors; their files stay."""
    for tensor in editor.tensors:
        sample = tensor.written.get("sample_tensor")
        files = editor.file(sample), editor.file(tensor.written.get("test_tensor"))
        is_test = files[0] is not None and files[1] is not None and files[0].read_bytes() == files[1].read_bytes()
        if sample is not None and not is_test:
            del tensor.written["sample_tensor"]
            source = sample.get("source") if isinstance(sample, dict) else sample
            editor.changed("sample_tensor", f"sample_tensor of {tensor.id}", source, "removed")
