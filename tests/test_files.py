"""Results appear whole or not at all."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from gap_bioimage.errors import CardError, OutputError, UnreadableImageError
from gap_bioimage.files import replacing

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["image.tif", "image.ome.tif", "no_suffix", "two words.zip"])
def test_a_file_appears_when_it_is_complete(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with replacing(target) as temporary:
        assert temporary.parent == tmp_path
        assert target.suffix in ("", temporary.suffix)
        assert temporary.name.startswith(".")
        assert not temporary.exists()
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == [name]


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with replacing(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, CardError, UnreadableImageError])
def test_failures_pass_through_and_leave_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as temporary:
        temporary.write_text("half of the n")
        raise error("mine")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, number: int) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OutputError) as error, replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert str(target) in str(error.value)
    assert os.strerror(number).lower() in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, OSError)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    target = tmp_path / "a.txt"
    target.write_text("old")
    monkeypatch.setattr("gap_bioimage.files.os.replace", refuse)
    with pytest.raises(OutputError, match="permission denied"), replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_folders_that_do_not_exist_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"create .*none first"), replacing(tmp_path / "none" / "a.txt"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder"), replacing(tmp_path):
        pytest.fail("the block must not run")
