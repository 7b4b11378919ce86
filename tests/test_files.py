"""Results appear whole or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gap_bioimage.errors import CardError, OutputError, UnreadableImageError
from gap_bioimage.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(number: int) -> Callable[..., None]:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("name", ["image.ome.tif", "no_suffix", "two words.zip"])
def test_a_file_appears_when_it_is_complete(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with replacing(target) as temporary:
        assert (temporary.parent, temporary.name[0]) == (tmp_path, ".")
        assert target.suffix in ("", temporary.suffix)
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, CardError, UnreadableImageError])
def test_failures_pass_through_and_leave_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as temporary:
        temporary.write_text("half of the n")
        raise error("mine")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("at", ["writing", "renaming"])
def test_what_the_system_refuses_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    told = f"{target}: no space left"
    with pytest.raises(OutputError, match=told), monkeypatch.context() as patch, replacing(target) as temporary:
        temporary.write_text("half")
        if at == "writing":
            refuse(errno.ENOSPC)()
        patch.setattr(os, "replace", refuse(errno.ENOSPC))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("place", "told"), [("none/a.txt", "create .*none first"), (".", "it is a folder"), (os.devnull, "it is a device")]
)
def test_places_where_no_file_can_be_are_refused_first(tmp_path: Path, place: str, told: str) -> None:
    with pytest.raises(OutputError, match=told), replacing(tmp_path / place):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(word: str, name: str = "store") -> None:
        with replacing(tmp_path / name, folder=True) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(word)

    write("older")
    write("old")
    (tmp_path / "link").symlink_to(tmp_path / "store")
    write("linked", "link")
    monkeypatch.setattr(os, "replace", refuse(errno.EACCES))
    with pytest.raises(OutputError, match="permission denied"):
        write("new")
    assert [(tmp_path / name / "file").read_text() for name in ("store", "link")] == ["old", "linked"]
    assert names(tmp_path) == ["link", "store"]
