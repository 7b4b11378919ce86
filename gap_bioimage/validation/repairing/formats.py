"""Repairs of the description: its name, its format, its id, and fields that consumers stumble over."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.archive.references import sha256_of
from gap_bioimage.validation.checks import one_sentence
from gap_bioimage.validation.quiet import quiet
from gap_bioimage.validation.repairing.work import PLAIN_UP_TO, RDF_NAME, Change, sites, unshared

if TYPE_CHECKING:
    from gap_bioimage.validation.repairing.work import Work

FORMAT, FORMAT_WITH_NEWER_OPERATIONS = "0.5.9", "0.5.10"
_NEWER_OPERATIONS = {"custom", "cellpose_flow_dynamics", "stardist_postprocessing"}
"""Came with 0.5.10, or got fields there that newer readers require (stardist's n_rays)."""
_FIRST_FIELDS = ("format_version", "type", "id", "name", "description", "authors", "maintainers", "cite", "license")
_LONGEST_SHOWN = 120


def shown(value: object) -> str:
    """A value as a short text."""
    if value in (None, "", [], {}):
        return "none"
    text = ", ".join(shown(item) for item in value) if isinstance(value, list) else str(value)
    return one_sentence(text, _LONGEST_SHOWN)


def rename_description(work: Work) -> list[Change]:
    """Name the description rdf.yaml."""
    if work.rdf_name == RDF_NAME:
        return []
    before, work.rdf_name = work.rdf_name, RDF_NAME
    return [Change("rdf_name", "name of the description", before, RDF_NAME)]


def convert_04(work: Work) -> list[Change]:
    """Rewrite a description of format 0.4 by bioimageio.spec's own conversion."""
    version = str(work.rdf.get("format_version"))
    if not version.startswith("0.4."):
        return []
    from bioimageio.spec import dump_description
    from bioimageio.spec.model import v0_5

    built = _built(work, "latest")
    if not isinstance(built, v0_5.ModelDescr):
        # what is wrong with it as it stands says more than what became of it
        errors = _errors(_built(work, "discover")) or _errors(built)
        text = one_sentence("; ".join(errors[:2]), 160)
        work.notes.append(f"format {version} is not converted to 0.5: bioimageio.spec says {text}")
        return []
    content = {key: value for key, value in dump_description(built).items() if value not in (None, [], {})}
    content = {key: content[key] for key in _FIRST_FIELDS if key in content} | content
    before = work.rdf
    work.rdf = _without_nulls(content) | {"format_version": FORMAT}
    stated = {site.name: site.holder.get(site.hash_key) for site in sites(before) if site.hash_key is not None}
    for site in list(sites(work.rdf)):  # the conversion loses hashes, and a wrong one must not go unseen
        if site.hash_key is not None and stated.get(site.name):
            site.holder.setdefault(site.hash_key, stated[site.name])
    plain_strings(work)  # the conversion made objects of them
    changes = [Change("format_version", "format of the description", version, FORMAT)]
    if before.get("name") != work.rdf["name"]:
        changes.append(Change("format_version", "name", shown(before.get("name")), work.rdf["name"]))
    return changes


def _built(work: Work, version: str) -> Any:
    from bioimageio.spec import ValidationContext, build_description

    context = ValidationContext(
        root=work.folder, file_name=work.rdf_name, perform_io_checks=False, log_warnings=False, progressbar=False
    )
    try:
        with quiet():
            return build_description(unshared(work.rdf), context=context, format_version=version)
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
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def lower_format(work: Work) -> list[Change]:
    """Write the newest format that every consumer reads, without the fields that it does not know."""
    facts = work.facts
    if facts.version[:2] != (0, 5) or facts.version <= PLAIN_UP_TO:
        return []
    state_dict = facts.weights.get("pytorch_state_dict", {})
    if state_dict.get("strict") is False:
        work.notes.append(
            "format_version stays, since weights.pytorch_state_dict.strict: false came with 0.5.11 and is needed"
        )
        return []
    changes = []
    dropped: list[tuple[str, dict[str, Any], str]] = [("weights.pytorch_state_dict", state_dict, "strict")]
    dropped += [(f"input {t.id}", t.written, key) for t in facts.inputs for key in ("pad", "output_of")]
    for where, holder, key in dropped:
        if key in holder:
            hint = "dropped" if key != "pad" else "dropped; borders are mirrored"
            changes.append(Change("format_version", f"{where}: {key}", shown(holder.pop(key)), hint))
    used = {step.get("id") for tensor in [*facts.inputs, *facts.outputs] for step in tensor.steps}
    version = FORMAT_WITH_NEWER_OPERATIONS if used & _NEWER_OPERATIONS else FORMAT
    before = str(work.rdf["format_version"])
    work.rdf["format_version"] = version
    return [Change("format_version", "format_version", before, version), *changes]


def plain_strings(work: Work) -> list[Change]:
    """Name documentation, covers, icon and licence by plain strings."""
    if not work.is_plain:
        return []
    changes = []
    for key in ("documentation", "icon"):
        if isinstance(work.rdf.get(key), dict):
            changes.append(_plain(work, work.rdf, key, key))
    covers = work.rdf.get("covers")
    for index, cover in enumerate(covers if isinstance(covers, list) else []):
        if isinstance(cover, dict):
            changes.append(_plain(work, covers, index, f"covers[{index}]"))
    if isinstance(work.rdf.get("license"), dict):
        changes.append(_plain_license(work))
    return changes


def _plain(work: Work, holder: Any, key: Any, what: str) -> Change:
    entry = holder[key]
    path, stated = work.file(entry), entry.get("sha256")
    if path is not None and stated and sha256_of(path) != str(stated).lower():
        what += " (WRONG HASH: this is not the file that was described)"
    holder[key] = entry.get("source")
    return Change("plain_strings", what, shown(entry), shown(holder[key]))


def _plain_license(work: Work) -> Change:
    """A file with a licence's own text has no place in older formats; it stays in the package as an attachment."""
    entry = work.rdf.pop("license")
    path = work.file(entry)
    text = path.read_text(encoding="utf-8", errors="replace") if path is not None else ""
    named = re.search(r"SPDX-License-Identifier:\s*([\w.+-]+)", text)
    if named:
        work.rdf["license"] = named[1]
    else:
        work.notes.append("license was a file, which formats up to 0.5.10 do not know: state an SPDX identifier")
    if path is not None:
        attached = work.rdf.setdefault("attachments", [])
        if isinstance(attached, list):
            attached.append({"source": entry["source"], "sha256": sha256_of(path)})
    after = f"{named[1] if named else 'none stated'}, {entry.get('source')} is attached"
    return Change("plain_strings", "license", shown(entry), after)


def fill_id(work: Work) -> list[Change]:
    """Make an id of the name."""
    if work.rdf.get("id"):
        return []
    slug = re.sub(r"[^a-z0-9]+", "-", str(work.rdf.get("name") or "").lower()).strip("-")
    if not slug:
        return []
    rest = {key: value for key, value in work.rdf.items() if key != "id"}
    first: list[str] = [key for key in ("format_version", "type") if key in rest]
    work.rdf = {key: rest[key] for key in first} | {"id": slug} | rest
    return [Change("id", "id", "none", slug)]


def identifiers(work: Work) -> list[Change]:
    """Make identifiers of channel names, as formats before 0.5.11 want them."""
    if not work.facts.is_05 or not work.is_plain:
        return []
    changes = []
    for tensor in [*work.facts.inputs, *work.facts.outputs]:
        for axis in tensor.axes:
            names = axis.written.get("channel_names")
            if axis.kind != "channel" or not isinstance(names, list):
                continue
            renamed: list[str] = []
            for name in names:
                renamed.append(_identifier(str(name), renamed))
            if renamed != names:
                axis.written["channel_names"] = renamed
                changes.append(Change("channel_names", f"channels of {tensor.id}", shown(names), shown(renamed)))
    return changes


def _identifier(name: str, taken: list[str]) -> str:
    if name.isidentifier() and not keyword.iskeyword(name):
        return name
    base = re.sub(r"\W+", "_", name).strip("_")
    if not base.isidentifier() or keyword.iskeyword(base):
        base = f"channel_{base}".rstrip("_")
    candidate, number = base, 2
    while candidate in taken:
        candidate, number = f"{base}_{number}", number + 1
    return candidate


def deepimagej_config(work: Work) -> list[Change]:
    """Remove a section that keeps deepImageJ from tiling."""
    config = work.rdf.get("config")
    if not isinstance(config, dict) or config.get("deepimagej") is None:
        return []
    section = config["deepimagej"]
    if isinstance(section, dict) and section.get("allow_tiling") is True:
        return []
    del config["deepimagej"]
    if not config:
        del work.rdf["config"]
    return [Change("deepimagej_config", "config.deepimagej", shown(section), "removed")]


def sample_tensors(work: Work) -> list[Change]:
    """Leave out sample tensors that are not the test tensors; their files stay."""
    changes = []
    for tensor in [*work.facts.inputs, *work.facts.outputs]:
        sample = tensor.written.get("sample_tensor")
        if sample is None:
            continue
        files = work.file(sample), work.file(tensor.written.get("test_tensor"))
        if files[0] is None or files[1] is None or files[0].read_bytes() != files[1].read_bytes():
            del tensor.written["sample_tensor"]
            source = sample.get("source") if isinstance(sample, dict) else sample
            changes.append(Change("sample_tensor", f"sample_tensor of {tensor.id}", shown(source), "removed"))
    return changes
