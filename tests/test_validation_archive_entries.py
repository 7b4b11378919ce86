"""A zip's directory is judged before a byte is unpacked."""

from __future__ import annotations

import stat
import zipfile

import pytest

from gap_bioimage.validation.archive import entries
from gap_bioimage.validation.archive.entries import entry_checks, unsafe_path


def entry(name: str, *, offset: int = 0, size: int = 0, mode: int = 0) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.header_offset = offset
    made.file_size = made.compress_size = size
    made.external_attr = mode << 16
    return made


def failed(*made: zipfile.ZipInfo) -> set[str]:
    return {check.id for check in entry_checks(list(made)) if check.status == "failed"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "C:/x", "C:x", "\\\\host\\x", "..\\x", "a\0b", ""])
def test_dangerous_paths_are_named(name: str) -> None:
    assert unsafe_path(name) is not None


@pytest.mark.parametrize(
    "name",
    ["a\\b", "a\x1b[2Jb", "a\nb", "a\ud800", "CON", "nul.npy", "a/Com1.txt", "a.", "a /b", "file:stream",
     "x" * 256, "\u00fc" * 200, "a/" * 33 + "a", "a/" * 600],
)  # fmt: skip
def test_names_that_systems_understand_differently_are_named(name: str) -> None:
    assert unsafe_path(name) is not None


@pytest.mark.parametrize("name", ["x", "a/b.pt", "a..b", "./x", "weights (1).pt", "console.txt", "\u00fc.npy", "a/"])
def test_harmless_paths_pass(name: str) -> None:
    assert unsafe_path(name) is None


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(kind: int) -> None:
    assert failed(entry("x", mode=kind | 0o644)) == {"archive.paths"}
    assert failed(entry("x", mode=stat.S_IFREG | 0o644), entry("y/", mode=stat.S_IFDIR, offset=99)) == set()


@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("README.md", "readme.md"), ("a", "./a"), ("a//b", "a/b"), ("\u00e9", "e\u0301"), ("a", "a/b"),
     ("A", "a/"), ("a/b/c", "a")],
)  # fmt: skip
def test_names_that_collide_are_refused(names: tuple[str, str]) -> None:
    made = [entry(name, offset=99 * index) for index, name in enumerate(names)]
    assert failed(*made) == {"archive.duplicates"}


def test_encrypted_entries_are_refused() -> None:
    secret = entry("secret")
    secret.flag_bits = 0x1
    assert failed(secret) == {"archive.encrypted"}


def test_size_and_number_of_entries_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(entry("a", size=entries.MAX_TOTAL_BYTES)) == set()
    assert failed(entry("a", size=entries.MAX_TOTAL_BYTES + 1)) == {"archive.bomb"}
    monkeypatch.setattr(entries, "MAX_ENTRIES", 1)
    assert failed(entry("a"), entry("b", offset=99)) == {"archive.bomb"}


def test_entries_that_share_bytes_are_refused() -> None:
    assert failed(entry("a", size=100), entry("b", offset=130)) == set()
    assert failed(entry("a", size=100), entry("b", offset=129)) == {"archive.bomb"}


def test_ten_thousand_entries_are_judged_and_summed_up() -> None:
    made = [entry(f"../{'x' * 200}{i}", offset=99 * i) for i in range(entries.MAX_ENTRIES)]
    paths = next(entry_checks(made))
    assert len(paths.message) < 1000
    assert "9997 more" in paths.message
