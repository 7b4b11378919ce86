"""Whatever a zip holds, the static checks give sentences: no crash, no hang, nothing outside is read or written."""

import contextlib
import copy
import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
import zips
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gap_bioimage.errors import UnreadableModelError
from gap_bioimage.validation.archive.examine import examine
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import Check, consumers, definitions
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.repair import repairs
from gap_bioimage.validation.repair.editor import PackageEditor
from gap_bioimage.validation.repair.repairing import apply_repairs

_COMMON: dict[str, Any] = {
    "deadline": timedelta(seconds=60),  # hang
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),  # making such examples smaller takes many minutes
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
}
MUST_NOT = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
CANARIES = ("canary.npy", "canary.md", "canary.png", "canary.pt", "canary.py")


class Watch:
    """Records what Python does to files and to the world while it is on."""

    def __init__(self, root: Path) -> None:
        self.on, self.seen = False, list[str]()
        self.scratch, self.outside, self.here = (root / name for name in ("scratch", "outside", "here"))
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in MUST_NOT:
            self.seen.append(event)
        elif self.on and (event in CHANGES or event == "open") and isinstance(arguments[0], str | bytes):
            place = os.fsdecode(arguments[0])
            mode = str(arguments[1]) if event == "open" else "w"
            # relative to an open folder, which is how shutil.rmtree removes the scratch folder
            may_be = place.startswith(str(self.scratch)) or "/" not in place or place == os.devnull
            if place.startswith(str(self.outside)) or ({*mode} & {*"wax+"} and not may_be):
                self.seen.append(f"{event} {place} {mode}")


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """A folder to be in, beside files that nobody may touch, with temp folders of its own."""
    watch = Watch(tmp_path_factory.mktemp("fuzz"))
    for folder in (watch.outside, watch.scratch, watch.here):
        folder.mkdir()
    for path in (folder / name for folder in (watch.outside, watch.here) for name in CANARIES):
        path.write_bytes(b"canary")
    previous, tempfile.tempdir = tempfile.tempdir, str(watch.scratch)
    static_checks(zips.make_zip(watch.outside.parent))  # imports
    try:
        yield watch
    finally:
        tempfile.tempdir = previous


def static_checks(path: Path) -> list[Check]:
    """All that `validate` does without running the model."""
    with open_package(path) as (package, checks):
        for alone in (False, True) if package is not None else ():
            found = examine(package, description_only=alone)
            model = Model(package, found.description)
            checks = [*checks, *found.checks, *(made.judge(model) for made in definitions("rule") if found.is_model)]
        return checks


def verify(data: bytes, watch: Watch) -> None:
    """Validate the bytes of a zip, and hold the validation to its promises."""
    path = watch.here / "model.zip"
    path.write_bytes(data)
    watch.seen.clear()
    with contextlib.chdir(watch.here):
        watch.on = True
        try:
            checks = static_checks(path)
        except UnreadableModelError as error:
            checks = [Check("unreadable", "archive", "failed", str(error))]
        finally:
            watch.on = False
    assert watch.seen == [] and list(watch.scratch.iterdir()) == []
    assert {item.name for item in watch.here.iterdir()} == {"model.zip", *CANARIES}
    assert checks
    for check in checks:
        assert check.consumer in consumers() and check.message.strip() and check.status != "error", check
        for text in (check.message, check.fix):
            assert "\n" not in text and len(text) < 1000 and text.encode() is not None, check


def described(files: dict[str, bytes]) -> dict[str, bytes]:
    return {"rdf.yaml": yaml.safe_dump(zips.description(files), sort_keys=False).encode(), **files}


def packed(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


@st.composite
def edited(draw: st.DrawFn, original: bytes, at: tuple[int, ...] = ()) -> bytes:
    """Bytes with some of them changed, preferably near the given places."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 6))):
        near = st.sampled_from(at).flatmap(lambda p: st.integers(p, p + 60)) if at else st.nothing()
        start = min(draw(near | st.integers(0, len(data))), len(data))
        end = start + draw(st.integers(0, 8) | st.integers(0, len(data)))
        filler = draw(st.sampled_from([b"\0", b"\xff", b"\x7f"])) * min(end - start, 8)
        ways = st.sampled_from([filler, b"", bytes(data[start:end][:5000]) * 2])
        data[start:end] = draw(ways | st.binary(max_size=20))
    return bytes(data)


def broken_zips(_: Path) -> st.SearchStrategy[bytes]:
    """A zip with other bytes."""
    data = packed(described(zips.model_files()), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [entry.header_offset for entry in archive.infolist()]
        return edited(data, (*entries, *range(archive.start_dir, len(data), 46)))


FILES = """source documentation icon dependencies architecture sample_tensor test_tensor external_data attachments
covers badges license training_data parent""".split()
OPTIONAL = """config run_mode version preprocessing postprocessing kwargs halo scale data test_inputs test_outputs
uploader packaged_by links opset_version output_of download_url""".split()
TRICKS = (
    "<<: *a", "&a", "*a", "&a [*a]", "!!python/object/apply:os.system [id]", "!!binary aGk=", "!!set {a, b}", "\t",
    "---", "...", "%YAML 1.1", "? ", "- " * 30, "[" * 30, "{" * 30, "]", "}", '"', "'", "|", ">", "#", ": ",
    "x: 1", "!<tag:yaml.org,2002:float> x", "0x" + "f" * 60, "1e999", "!!int x", "!!timestamp 2020", "? [a]\n: b",
    "!!omap [a: 1]", "\ufeff",
)  # fmt: skip


def pointers(outside: Path) -> st.SearchStrategy[Any]:
    """What leads to the files that are not to be read, in several spellings."""
    up = "../" * 20 + f"{outside}/".lstrip("/")
    folders = st.sampled_from([f"{outside}/", up, f"file://{outside}/", f"/{outside}/"])
    before, after = st.sampled_from(["", "", "conda:"]), st.sampled_from(["", ":Tiny"])
    paths = st.builds("{}{}{}{}".format, before, folders, st.sampled_from(CANARIES), after)
    texts = paths | st.sampled_from(["http://x.invalid/y.npy", "HTTP:/x.invalid/y.md", " http://x.invalid/y.pt"])
    return texts | texts.map(lambda text: [text]) | texts.map(lambda text: {"source": text})


def junk(outside: Path) -> st.SearchStrategy[Any]:
    """Anything."""
    texts = pointers(outside) | st.sampled_from([
        *CANARIES, "", " ", ".", "..", "x" * 5000, "\0", "\x1b[2J", "\ud800", "0.5.9", "0.4.10", "0.3.0", "0.\u00b2",
        "latest", "model", "input.npy", "weights.pt", "cover.png", "rdf.yaml", "CC-BY-4.0", "batch", "\u202e", "a\nb",
    ])  # fmt: skip
    numbers = st.integers() | st.floats() | st.sampled_from([2**63, 10**400, -1, 0, float("nan"), float("inf")])
    leaves = st.none() | st.booleans() | numbers | texts | st.text(max_size=8) | st.binary(max_size=4) | st.dates()
    keys = st.text(max_size=5) | st.sampled_from(["source", "id", "sha256", "size", "type"]) | st.integers() | st.none()
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


def slots(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree that holds a value, as a container and a key."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [(tree, key) for key in keys] + [place for key in keys for place in slots(tree[key])]


@st.composite
def redescribed(draw: st.DrawFn, outside: Path) -> bytes:
    """A zip whose description has nodes replaced, removed, moved, aliased or renamed, and tricks in its text."""
    files = zips.model_files()
    rdf: Any = copy.deepcopy(zips.description(files))
    if draw(st.integers(0, 3)) == 0:
        rdf["format_version"] = draw(st.sampled_from(["0.4.10", "0.3.6", "0.5.0", "0.5.10"]))
    for _ in range(draw(st.integers(1, 5))):
        if not (places := slots(rdf)):
            break
        (owner, key), (other, other_key) = draw(st.sampled_from(places)), draw(st.sampled_from(places))
        ways = ["point", "point", "replace", "replace", "delete", "swap", "copy", "name", "name"]
        match draw(st.sampled_from(ways)):
            case "point":
                named = [(place, name) for place, name in places if name in FILES or str(place[name]) in files]
                owner, key = draw(st.sampled_from(named or places))
                owner[key] = draw(pointers(outside))
            case "replace":
                owner[key] = draw(junk(outside))
            case "delete":
                del owner[key]
            case "swap":  # moving a value into itself would make a circle, which the dumper cannot write
                owner[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(owner[key])
            case "copy" if not any(container is owner for container, _ in slots([other[other_key]])):
                owner[key] = other[other_key]  # an alias in the yaml
            case "name" if isinstance(owner, dict):
                value = st.just(owner[key]) | pointers(outside) | junk(outside)
                owner[draw(st.sampled_from([*FILES, *OPTIONAL]) | st.text(max_size=5))] = draw(value)
    lines = yaml.safe_dump(rdf, sort_keys=False, allow_unicode=draw(st.booleans())).splitlines()
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3]))):
        line, trick = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(TRICKS))
        column = draw(st.integers(0, len(lines[line])))
        lines[line] = lines[line][:column] + trick + lines[line][column if draw(st.booleans()) else len(lines[line]) :]
    return packed({"rdf.yaml": "\n".join(lines).encode("utf-8", "surrogatepass"), **files})


KINDS: dict[str, Callable[[Path], st.SearchStrategy[bytes]]] = {
    "bytes": broken_zips, "description": redescribed,
}  # fmt: skip


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_zip_breaks_the_validation(kind: str, n: int, watch: Watch) -> None:
    @given(KINDS[kind](watch.outside))
    @settings(max_examples=n, **_COMMON)
    def holds(data: bytes) -> None:
        verify(data, watch)

    holds()


STRANGE: tuple[Any, ...] = ("x", 3, None, [], {}, ["x"], {"x": 1}, [[]], -1.5, {"source": 3}, {"source": "input.npy"})


@pytest.mark.parametrize("version", [*(pytest.param(v, marks=pytest.mark.slow) for v in ("0.4.10", "0.5.4")), "0.5.12"])
def test_strange_descriptions_end_no_repair(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what spec's own conversion makes of nonsense takes seconds each
    monkeypatch.setattr(repairs, "load_offline", lambda *_, **__: ValueError("not converted"))
    more = {"format_version": version, "config": {"deepimagej": {}}, "attachments": []}
    for number in range(3 * len(slots(zips.description(zips.model_files()) | more))):  # three values each
        rdf = zips.description(zips.model_files()) | copy.deepcopy(more)
        owner, key = (places := slots(rdf))[number % len(places)]
        owner[key] = STRANGE[number % len(STRANGE)]
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in zips.model_files().items():
            (folder / name).write_bytes(data)
        editor = PackageEditor(folder, rdf, "rdf.yaml")
        apply_repairs(editor)
        editor.changes.clear()
        apply_repairs(editor)
        assert editor.changes == [], (number, key)
