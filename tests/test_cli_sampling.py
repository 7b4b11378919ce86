"""The verbs sample and generate: files, axes, messages, interruption."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command_line import one_sentence
from fixtures_model import Trained
from PIL import Image

from gap_bioimage.counts import thin
from gap_bioimage.inference.resume import Unfinished
from gap_bioimage.io import read_photons, write_image


@pytest.fixture
def dim_counts(tmp_path: Path, trained_2d: Trained) -> Path:
    """Counts a hundred times darker than the training's, with a pixel size."""
    counts = trained_2d.counts.isel(y=slice(0, 50), x=slice(0, 44))
    seen, _ = thin(counts.values.astype(np.int64), 0.05, 0)
    seen[25, 22] += 1
    image = counts.copy(data=seen.astype(np.uint16))
    image = image.assign_coords(y=np.arange(50) * 0.1, x=np.arange(44) * 0.1)
    write_image(tmp_path / "counts.tif", image)
    return tmp_path / "counts.tif"


def test_sample_writes_a_stack_mean_std_and_figure(
    run: Any, trained_2d: Trained, dim_counts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.ome.tif"
    result = run("sample", trained_2d.run, dim_counts, out, "--samples", 3, "--seed", 1, "--steps", 4, "--states")
    assert result.code == 0, result.err
    names = ["out.ome.tif", "out_mean.ome.tif", "out_std.ome.tif", "out_figure.png"]
    names += [f"out_states_00{n}.ome.tif" for n in (1, 2, 3)]
    assert {p.name for p in tmp_path.iterdir()} == {*names, "counts.tif"}
    assert all(name in result.out for name in names)
    samples = read_photons(out, check=False)
    assert (samples.dims, samples.shape) == (("t", "y", "x"), (3, 50, 44))
    assert float(samples.x[1] - samples.x[0]) == pytest.approx(0.1)
    mean, std = (tifffile.imread(tmp_path / f"out_{name}.ome.tif") for name in ("mean", "std"))
    np.testing.assert_allclose(mean, samples.values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, samples.values.std(0, ddof=1), rtol=1e-4)
    states = read_photons(tmp_path / "out_states_002.ome.tif", check=False)
    assert states.shape == (4, 50, 44)
    assert float(states.x[1] - states.x[0]) == pytest.approx(0.1)
    growing = np.concatenate([read_photons(dim_counts).values[None], states.values])
    assert (np.diff(growing, axis=0) >= 0).all()
    np.testing.assert_array_equal(states, np.round(states))
    with Image.open(tmp_path / "out_figure.png") as figure:
        assert figure.width > 3 * figure.height


def test_steps_are_kept_of_samples_that_were_begun_without_them(
    run: Any, trained_2d: Trained, dim_counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, out, movie = tmp_path / "counts.tif", tmp_path / "out.tif", tmp_path / "out.gif"
    drawn = ("sample", trained_2d.run, counts, out, "--samples", 3, "--seed", 1, "--steps", 2)
    grown = ("generate", trained_2d.run, out, "--samples", 3, "--seed", 1, "--shape", "12,12", "--beta", 1)
    save, kept = Unfinished.save, []
    monkeypatch.setattr("gap_bioimage.movie._HOLD_FRAMES", 1)  # each of which is drawn

    def interrupt(self: Unfinished, name: str, **arrays: Any) -> None:
        save(self, name, **arrays)
        if "samples1" in name:
            raise KeyboardInterrupt

    for command, more in ((drawn, ("--states",)), (grown, ("--movie", movie))):
        for first, second in ((command, (*command, *more)), ((*command, *more), command)):
            with monkeypatch.context() as patch:
                patch.setattr(Unfinished, "save", interrupt)
                assert run(*first).code == 130
            assert len(list((tmp_path / ".out.tif.unfinished").glob("item0_samples*.npz"))) == 2
            done = run(*second)
            assert done.code == 0, done.err
            assert not list(tmp_path.glob(".out*"))
            kept.append(tifffile.imread(out))
        np.testing.assert_array_equal(kept[-2], kept[-1])
    assert [len(tifffile.imread(tmp_path / f"out_states_00{n}.tif")) for n in (1, 2, 3)] == [2, 2, 2]
    assert run(*grown, "--movie", tmp_path / "whole.gif").code == 0
    assert movie.read_bytes() == (tmp_path / "whole.gif").read_bytes()


def test_movies_become_one_file_per_sample(run: Any, trained_2d: Trained, dim_counts: Path, tmp_path: Path) -> None:
    counts = read_photons(dim_counts)
    write_image(tmp_path / "movie.tif", counts.expand_dims(t=2))
    out = tmp_path / "s.tif"
    result = run("sample", trained_2d.run, tmp_path / "movie.tif", out, "--samples", 2, "--seed", 0, "--steps", 2)
    assert result.code == 0, result.err
    first, second = (read_photons(tmp_path / f"s_00{n}.tif", check=False) for n in (1, 2))
    assert first.dims == second.dims == ("t", "y", "x")
    np.testing.assert_array_equal(first.isel(t=0), first.isel(t=1))  # equal frames: a sample knows only its counts
    assert not np.allclose(first, second)
    assert not out.exists()
    result = run("sample", trained_2d.run, tmp_path / "movie.tif", out, "--samples", 2, "--seed", 0, "--states")
    assert "expected one for states" in one_sentence(result)
    dim_counts.rename(tmp_path / "s_states_001.tif")
    (tmp_path / "movie.tif").rename(tmp_path / "s_001.tif")
    for name, more in (("s_001.tif", ()), ("s_states_001.tif", ("--states",))):
        command = ("sample", trained_2d.run, tmp_path / name, out, "--samples", 2, "--seed", 0, *more)
        assert "is the input itself" in one_sentence(run(*command))


def test_generate_writes_images_and_a_movie(run: Any, trained_2d: Trained, tmp_path: Path) -> None:
    out, movie = tmp_path / "g.tif", tmp_path / "g.gif"
    command = ("generate", trained_2d.run, out, "--shape", "32,40", "--seed", 3, "--stop-db", "-5", "--beta", 0.3)
    result = run(*command, "--movie", movie)
    assert result.code == 0, result.err
    image = tifffile.imread(out)
    assert image.shape == (32, 40)
    assert 0.2 < image.mean() < 0.5
    with Image.open(movie) as frames:
        assert frames.n_frames > 10
        assert frames.format == "GIF"
    assert {p.name for p in tmp_path.iterdir()} == {"g.tif", "g.gif"}
    result = run(*command, "--samples", 2)
    assert tifffile.imread(out).shape == (2, 32, 40)
    np.testing.assert_array_equal(tifffile.imread(out)[0], image)
    assert run(*command, "--precision", "bf16").code == 0
    assert not np.array_equal(tifffile.imread(out), image)


@pytest.mark.parametrize(
    "wrong", [{"shape": "32"}, {"shape": "a,b"}, {"movie": "m.avi"}, {"beta": "-1"}, {"stop-db": "99"}, {"seed": "-1"}]
)
def test_impossible_generations_are_one_sentence(
    run: Any, trained_2d: Trained, tmp_path: Path, wrong: dict[str, str]
) -> None:
    options = [f"--{name}={value}" for name, value in ({"shape": "8,8", "seed": "0"} | wrong).items()]
    told = one_sentence(run("generate", trained_2d.run, tmp_path / "g.tif", *options))
    assert any(word.replace("-", "_") in told or value in told for word, value in wrong.items())
    assert not list(tmp_path.iterdir())


def test_impossible_samples_are_one_sentence(run: Any, trained_2d: Trained, tmp_path: Path) -> None:
    write_image(tmp_path / "counts.tif", trained_2d.counts)
    command = ("sample", trained_2d.run, tmp_path / "counts.tif", tmp_path / "s.tif", "--samples", 2)
    assert "seed" in one_sentence(run(*command))
    assert "trained" in one_sentence(run(*command, "--seed", 0, "--stop-db", 60))
    assert "--beta belongs to --schedule geometric" in one_sentence(run(*command, "--seed", 0, "--beta", 0.1))
    other = run(*command, "--seed", 0, "--schedule", "geometric", "--steps", 3)
    assert "--steps belongs to --schedule sqrt" in one_sentence(other)
    assert "half" in one_sentence(run(*command, "--seed", 0, "--precision", "half"))
    assert not (tmp_path / "s.tif").exists()


def test_a_refused_command_leaves_nothing(run: Any, trained_2d: Trained, dim_counts: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    command = ("sample", trained_2d.run, dim_counts, tmp_path / "s.tif", "--seed", 0, "--samples")
    told = one_sentence(run(*command, 10**9))
    assert re.match(r"not enough memory: .* 8\.00 TiB .*; give", told)
    assert "expected 2 whole numbers" in one_sentence(run(*command, 2, "--tile", 64))
    assert sorted(tmp_path.iterdir()) == before


def test_denoise_tells_how_certain_regions_are(run: Any, trained_2d: Trained, dim_counts: Path, tmp_path: Path) -> None:
    labels = np.zeros((50, 44), np.uint8)
    labels[10:30, 10:30] = 7
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    command = ("denoise", trained_2d.run, dim_counts, tmp_path / "d.tif", "--regions", tmp_path / "labels.tif")
    result = run(*command, "--json", tmp_path / "r.json")
    assert result.code == 0, result.err
    assert "region 7: " in result.out
    (region,) = json.loads((tmp_path / "r.json").read_text())
    assert (region["label"], region["pixels"]) == (7, 400)
    assert region["counted"] == read_photons(dim_counts).values[10:30, 10:30].sum()
    assert region["std"] > 0
    for wrong in (["--planes"], ["--time-as-z"], ["--separate-channels"]):  # which estimates of regions do not know
        assert wrong[0] in one_sentence(run(*command, *wrong))
    told = ("denoise", trained_2d.run, dim_counts, tmp_path / "none.tif", "--json", tmp_path / "none.json")
    assert "--regions" in one_sentence(run(*told))
    assert not list(tmp_path.glob("none*"))
    # regions are small differences of rates, which bfloat16 would drown
    assert run(*command, "--json", tmp_path / "bf16.json", "--precision", "bf16").code == 0
    assert (tmp_path / "bf16.json").read_text() == (tmp_path / "r.json").read_text()
