"""The command line: what it prints, what it leaves behind, and its exit codes."""

import inspect
import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command_line import one_sentence, python
from fixtures_model import Trained

from gap_bioimage.cli import app, main
from gap_bioimage.cli.console import with_flags
from gap_bioimage.config import RunConfig
from gap_bioimage.errors import CheckpointError
from gap_bioimage.model import load_model
from gap_bioimage.training.run_folder import RunFolder

FAST = ["--set", "network.depth=1", "--set", "network.start_filts=2", "--set", "train.steps=2", "--set"]
FAST += ["train.patch_px=[16,16]", "--set", "train.batch_size=2", "--set", "train.validation_windows=2"]


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    path = tmp_path / "counts.tif"
    photons = np.random.default_rng(0).poisson(3, (64, 64)).astype(np.uint16)
    tifffile.imwrite(path, photons, imagej=True, metadata={"axes": "YX"})
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


LOADED = """
import sys
from gap_bioimage.cli import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    assert not end.code
assert not (found := set(sys.argv[1].split()) & set(sys.modules)), found
"""


def test_help_loads_no_heavy_library() -> None:
    done = python("-c", LOADED, "torch bioimageio lightning numpy scipy xarray matplotlib", "--help")
    assert done.code == 0, done.err
    assert all(command.name in done.out for command in app.registered_commands)


def test_denoising_loads_nothing_that_it_does_not_need(counts: Path, tmp_path: Path) -> None:
    # not scipy as a whole: with dask installed, xarray loads other parts of it
    heavy = "lightning bioimageio matplotlib skimage PIL scipy.optimize scipy.stats gap_bioimage.training"
    done = python("-c", LOADED, heavy, "denoise", "nuclei", counts, tmp_path / "out.tif", "--quiet")
    assert done.code == 0, done.err
    assert (tmp_path / "out.tif").exists()


def test_verbs_take_ten_groups_of_options_at_most_and_tell_of_each(run: Any) -> None:
    for verb, function in ((command.name, command.callback.__wrapped__) for command in app.registered_commands):
        assert len(inspect.signature(function).parameters) <= 10 or verb == "validate"
        result = run(verb, "--help")
        assert (result.code, result.err) == (0, "")
        assert f"gap-bioimage {verb}" in result.out
    told = run("train", "--help").out
    assert all(option in told for option in ("--axes", "--dim", "--set", "--camera", "--init", "--num-nodes"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-all"], "No such command 'train-all'"),
        (["simulate", "x.tif"], "--dim"),
        (["simulate", "x.tif", "--dim", "2", "--photons", "-1", "--seed", "0"], "positive number"),
        (["simulate", "x.tif", "--dim", "2", "--photons", "1", "--seed", "0", "--shape", "5"], "shape"),
        (["simulate", "x.tif", "--dim", "2", "--photons", "1", "--seed", "0", "--shape", "a,b"], "--shape is 'a,b'"),
        (["simulate", "x.jpg", "--dim", "2", "--photons", "1", "--seed", "0", "--shape", "16,16"], "'.jpg'"),
        (["simulate", "no/x.tif", "--dim", "2", "--photons", "1", "--seed", "0", "--shape", "16,16"], "create no"),
        (["denoise", "model"], "Missing argument"),
        (["denoise", "model", "a.tif", "b.tif", "--tiles", "3"], "--tiles"),
        (["inspect", "missing.tif"], "there is no file missing.tif"),
        (["info", "missing"], "missing does not exist"),
        (["export"], "--init-card"),
        (["export", "missing", "out.zip", "--card", "missing.yaml"], "--init-card"),
        (["train", "missing.tif", "--dim", "2", "--out", "run"], "there is no file missing.tif"),
        (["train", "missing.tif", "--out", "run", "--set", "train.step=5"], "did you mean 'train.steps'?"),
        (["train", "missing.tif", "--out", "run", "--set", "train.patch_px=[8]"], "train.patch_px has 1 entries"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in one_sentence(run(*arguments))
    assert snapshot(tmp_path) == {}


def test_images_that_hold_no_counts_are_refused(run: Any, tmp_path: Path) -> None:
    image, out = tmp_path / "bad.tif", tmp_path / "out.tif"
    out.write_bytes(b"kept")
    for values in (np.zeros((32, 32, 3), np.uint8), np.full((32, 32), -1, np.int16)):
        tifffile.imwrite(image, values)
        for command in (("train", image, "--out", tmp_path / "run"), ("denoise", "nuclei", image, out)):
            assert "bad.tif" in one_sentence(run(*command, "--quiet"))
    assert {path.name for path in tmp_path.iterdir()} == {"bad.tif", "out.tif"} and out.read_bytes() == b"kept"


def test_a_run_is_not_trained_over(run: Any, trained_2d: Trained, counts: Path) -> None:
    before = snapshot(trained_2d.run)
    message = one_sentence(run("train", counts, "--dim", 2, "--out", trained_2d.run, "--quiet"))
    assert "already holds a training run" in message
    assert "--resume" in message
    assert snapshot(trained_2d.run) == before


def test_the_seed_and_settings_reach_the_run_and_a_camera_is_replaced_by_none(
    run: Any, counts: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("camera: {gain: 2.0, offset: 100.0}\n")
    options = ("--config", settings, "--camera", "none", "--seed", 7, "--device", "cpu", "--resume", *FAST)
    result = run("train", counts, "--dim", 2, "--out", tmp_path / "run", *options)
    assert result.code == 0 and "no run to resume" in result.err
    assert re.search(r"trained for inputs of -?[\d.]+ to", result.out)
    config = RunConfig.read(tmp_path / "run" / "config.yaml")
    assert (config.camera, config.train.seed, config.train.steps) == (None, 7, 2)


@pytest.mark.parametrize(
    "command",
    [("train", "c.tif", "--out", ""), ("denoise", "", "c.tif", "o.tif"), ("simulate", "o.tif", "--shape", ""),
     ("denoise", "nuclei", "c.tif", "o.tif", "--camera", "no")],
)  # fmt: skip
def test_empty_and_missing_paths_are_refused(
    run: Any, counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [counts if word == "c.tif" else word for word in command]
    assert ("--camera none" if "--camera" in command else "empty") in one_sentence(run(*names))
    assert not {path.name for path in tmp_path.iterdir()} & {"config.yaml", "o.tif"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "8,8"], "give tiles of at least"),
        (["--tile", "64"], "expected 2 whole numbers (y, x) of at least 1, such as 64,64"),
        (["--tile", "64;64"], "--tile is '64;64'"),
        (["--halo", "-2,-2"], "at least 0"),
        (["--device", "warp"], "'warp'"),
        (["--channel", "1"], "channel 1"),
        (["--axes", "yyx"], "--axes yyx"),
        (["--axes", "zyx"], "--planes"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    run: Any, trained_2d: Trained, counts: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "out.tif").write_bytes(b"kept")
    before = snapshot(tmp_path)
    assert message in one_sentence(run("denoise", trained_2d.run, counts, tmp_path / "out.tif", *options))
    assert snapshot(tmp_path) == before


def test_a_warning_is_one_line_too(run: Any, trained_2d: Trained, tmp_path: Path) -> None:
    stuck = np.random.default_rng(0).poisson(3, (32, 32)).astype(np.uint16)
    stuck[5, 7] = 60000
    tifffile.imwrite(tmp_path / "stuck.tif", stuck, imagej=True, metadata={"axes": "YX"})
    result = run("denoise", trained_2d.run, tmp_path / "stuck.tif", tmp_path / "out.tif", "--quiet")
    assert result.code == 0
    assert re.fullmatch(r"warning: .*hot.*\n", result.err)


def test_many_images_are_denoised_into_a_folder(run: Any, trained_2d: Trained, counts: Path, tmp_path: Path) -> None:
    image, photons = tmp_path / "b.npy", tifffile.imread(counts) + 1
    np.save(image, photons)
    (broken := tmp_path / "a.tif").write_bytes(b"junk")
    for out in (tmp_path / "one.tif", tmp_path / "other.npy"):
        assert run("denoise", trained_2d.run, counts if out.suffix == ".tif" else image, out, "--axes", "yx").code == 0
    result = run("denoise", trained_2d.run, broken, counts, image, tmp_path / "folder", "--axes", "yx")
    assert result.code == 2 and re.findall(r"^error: (.*a\.tif)", result.err, re.M) == [f"{broken}"] * 2
    assert sorted(snapshot(tmp_path / "folder")) == ["b.npy", "counts.tif"]
    for name, alone in (("counts.tif", "one.tif"), ("b.npy", "other.npy")):
        assert (tmp_path / "folder" / name).read_bytes() == (tmp_path / alone).read_bytes()
    before = snapshot(tmp_path / "folder")
    assert run("denoise", trained_2d.run, counts, tmp_path / "folder").code == 0
    (tmp_path / "day").mkdir()
    counts.rename(tmp_path / "day" / "counts.tif")
    assert run("denoise", trained_2d.run, tmp_path / "day", tmp_path / "new").code == 0
    assert snapshot(tmp_path / "new") == {"counts.tif": before["counts.tif"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["c.tif", "d.tif", "e.tif"], "a folder"),
        (["sub", "d.tif"], "a folder"),
        (["c.tif", "d.tif", "e.zarr"], "a folder"),
        (["c.tif", "out.png"], "unknown suffix"),
        (["c.tif", "sub/c.tif", "folder"], "two images"),
        (["c.tif", "d.tif", "."], "input itself"),
        (["c.tif", "d.tif", "no/folder"], "create no first"),
        (["c.tif", "d.tif", "folder", "--regions", "c.tif"], "one image"),
        (["c.tif", "d.tif", "folder", "--tile", "8,8"], "tiles of at least"),
    ],
)
def test_many_images_need_a_folder_and_names_of_their_own(
    run: Any, counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("c.tif", "d.tif", "sub/c.tif"):
        (tmp_path / name).write_bytes(counts.read_bytes())
    before = snapshot(tmp_path)
    assert message in one_sentence(run("denoise", "nuclei", *arguments))
    assert snapshot(tmp_path) == before


def test_info_tells_what_the_model_is_and_nothing_else(run: Any, trained_2d: Trained) -> None:
    result = run("info", trained_2d.run, "--json", "-")
    report = json.loads(result.out)
    assert (report["dim"], report["depth"], report["start_filts"], report["origin"]) == (2, 2, 4, "run")
    assert (report["step_px"], report["receptive_field_px"], result.err) == ([8, 8], [189, 189], "")
    assert "receptive field px" in run("info", trained_2d.run).out


def test_control_c_stops_training_and_leaves_a_model(
    run: Any, counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "run", [*FAST, "--set", "train.steps=1000", "--set", "train.validate_every=5"]
    write, handler = RunFolder._write_metrics, signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(RunFolder, "_write_metrics", lambda folder: (write(folder), signal.raise_signal(signal.SIGINT)))
    done = run("train", counts, "--dim", 2, "--out", out, *settings)
    signal.signal(signal.SIGINT, handler)
    assert done.code == 130, done.err
    assert "error: stopped" in done.err and "--resume" in done.err
    assert "Traceback" not in done.err
    assert not [path for path in out.iterdir() if ".tmp-" in path.name]
    assert load_model(out).history.steps == 5


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):  # which Python prints with its traceback
        main(["info", str(tmp_path / "missing"), "--debug"])


def test_a_bug_is_one_line_that_asks_for_a_report(run: Any, counts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("gap_bioimage.inspection.inspect", broken)
    result = run("inspect", counts)
    assert result.code == 2
    assert result.err == "error: RuntimeError: two lines (run again with --debug to see where; please report it)\n"


def test_a_bad_image_leaves_the_reports_of_the_others(run: Any, counts: Path) -> None:
    (counts.parent / "bad.tif").write_bytes(b"")
    result = run("inspect", counts.parent, "--json", "-")
    assert result.code == 2 and "bad.tif is empty" in result.err
    assert [report["image"] for report in json.loads(result.out)] == [str(counts)]


def test_an_image_is_never_replaced_by_its_result(run: Any, counts: Path) -> None:
    mean = counts.rename(counts.with_name("s_mean.tif"))
    drawn = ("sample", "model", mean, mean.with_name("s.tif"), "--samples", 2, "--seed", 0)
    first = counts.with_name("s_001.tif")
    first.hardlink_to(mean)
    labelled = ("denoise", "model", mean.with_name("other.tif"), mean, "--regions", mean)
    new, before = counts.with_name("new.tif"), snapshot(counts.parent)
    twice = ("simulate", new, "--dim", 2, "--photons", 1, "--seed", 0, "--shape", "8,8", "--truth", new)
    plots = [("inspect", mean, option, first) for option in ("--plot", "--json")]
    plots += [("calibrate", mean, "--out", first), ("calibrate", mean, "--out", mean.with_name("camera.png"))]
    folder = ("train", counts.parent, "--out", counts.parent)
    for command in (("denoise", "model", mean, mean), drawn, labelled, twice, *plots, folder):
        assert "is the input itself" in one_sentence(run(*command))
    assert snapshot(counts.parent) == before


def test_messages_of_the_library_have_the_flags_of_the_command_line():
    said = 'read it with time="0:5", channel=0, axes="zyx", camera=None or planes=True, not with size=3'
    expected = "read it with --time 0:5, --channel 0, --axes zyx, --camera none or --planes, not with size=3"
    assert with_flags(said) == expected
