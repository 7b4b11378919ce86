"""Repairs of a package's files: their hashes, their places and their names."""

from __future__ import annotations

import ast
import mmap
import posixpath
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from gap_bioimage.validation.archive.references import is_url, sha256_of
from gap_bioimage.validation.repairing.work import RDF_NAME, Change, sites

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gap_bioimage.validation.repairing.work import Work

_LEFTOVER_FOLDERS = {"__MACOSX", "__pycache__", ".git", ".ipynb_checkpoints"}
_LEFTOVER_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}
_READS_OTHERS = (".py", ".onnx", ".json", ".pb")
"""Files that may read other files of the package by their paths."""


def remove_leftovers(work: Work) -> list[Change]:
    """Remove what operating systems and Python leave behind in folders."""
    named = {site.name for site in sites(work.rdf)}
    changes = []
    for name in work.names:
        if name not in named and is_leftover(name):
            (work.folder / name).unlink()
            changes.append(Change("leftovers", "file", name, "removed"))
    return changes


def is_leftover(name: str) -> bool:
    """Whether a file belongs to an operating system, an editor or Python, and not to the model."""
    parts = PurePosixPath(name).parts
    return bool(_LEFTOVER_FOLDERS & set(parts[:-1])) or parts[-1] in _LEFTOVER_FILES or parts[-1].startswith("._")


def hashes(work: Work) -> list[Change]:
    """State the sha256 of every file that the description names."""
    changes = []
    for site in list(sites(work.rdf)):
        path = None if site.hash_key is None or is_url(site.path) else work.file(site.path)
        if path is None:
            continue
        stated, computed = site.holder.get(site.hash_key), sha256_of(path)
        if stated and str(stated).lower() == computed:
            continue
        site.holder[site.hash_key] = computed
        if stated:
            what = f"sha256 of {site.name}, {site.where} (WRONG HASH: this is not the file that was described)"
            changes.append(Change("hash_wrong", what, str(stated), computed))
        else:
            changes.append(Change("hash_missing", f"sha256 of {site.name}", "none", computed))
    return changes


def flatten(work: Work) -> list[Change]:
    """Move files out of their folders to the top, under names of their own."""
    nested = [name for name in work.names if "/" in name]
    if not nested:
        return []
    kept = _kept_by_imports(work, nested)
    for name in nested:
        if name not in kept and (reader := _reader_of(work, name)):
            kept[name] = f"{reader} may read it by its path"
    plan, collisions = _plan(work, [name for name in nested if name not in kept])
    kept.update(collisions)
    work.notes += [f"{name} stays in its folder: {why}" for name, why in kept.items()]
    work.move(plan)
    return [Change("flat", "file", old, new) for old, new in plan.items()]


def _kept_by_imports(work: Work, nested: Iterable[str]) -> dict[str, str]:
    """Files that Python code of the package imports by the folder they lie in, and why they stay."""
    scripts = [name for name in work.names if name.endswith(".py")]
    kept: dict[str, str] = {}
    for script in scripts:
        try:
            tree = ast.parse((work.folder / script).read_bytes())
        except (SyntaxError, ValueError):
            continue
        folders: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                folders.update(posixpath.dirname(script).split("/"))
            elif isinstance(node, ast.ImportFrom):
                folders.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Import):
                folders.update(alias.name.split(".")[0] for alias in node.names)
        imported = [name for name in nested if name.endswith(".py") and folders & set(name.split("/")[:-1])]
        for name in [*imported, script] if imported else []:
            if "/" in name:
                kept[name] = f"{script} imports modules by their folder"
    return kept


def _reader_of(work: Work, name: str) -> str | None:
    """A file that holds the path of another one, as ONNX weights do that keep their arrays outside."""
    for reader in work.names:
        if reader == name or not reader.endswith(_READS_OTHERS):
            continue
        path = work.folder / reader
        if path.stat().st_size == 0:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(name.encode()) >= 0:
                return reader
    return None


def _plan(work: Work, names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """New names of files, and the files that have to stay since their names are taken."""
    named = {site.name for site in sites(work.rdf)}
    taken = {name.casefold() for name in work.names if "/" not in name} | {RDF_NAME}
    plan: dict[str, str] = {}
    stay: dict[str, str] = {}
    for name in names:
        target = posixpath.basename(name)
        if target.casefold() in taken:
            if name not in named:  # nobody would find it under another name
                stay[name] = f"another file is named {target}"
                continue
            target = name.replace("/", "_")
        if target.casefold() in taken:
            stay[name] = f"another file is named {target}"
            continue
        taken.add(target.casefold())
        plan[name] = target
    return plan, stay


def weights_suffix(work: Work) -> list[Change]:
    """Name TorchScript weights .pt."""
    entry = work.facts.weights.get("torchscript", {})
    path = work.file(entry)
    if path is None or path.suffix == ".pt":
        return []
    old = PurePosixPath(str(entry["source"])).as_posix()
    new = work.free_name(posixpath.splitext(old)[0] + ".pt", besides=old)
    work.move({old: new})
    return [Change("weights_suffix", "TorchScript weights", old, new)]


def plain_paths(work: Work) -> list[Change]:
    """Write the names of files without ``./``, which Fiji's engine takes for a folder, and with Unix' slashes."""
    changes = []
    for site in list(sites(work.rdf)):
        if site.path != site.name and not is_url(site.path) and work.file(site.name) is not None:
            site.point_to(site.name)
            changes.append(Change("plain_paths", site.where, site.path, site.name))
    return changes
