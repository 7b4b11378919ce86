"""Models that come with the package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import one_sentence
from scipy import ndimage

import gap_bioimage as gap
from gap_bioimage import pretrained
from gap_bioimage.errors import CheckpointError
from gap_bioimage.simulation import simulate


def test_the_model_of_nuclei_is_small_and_better_than_the_best_gaussian() -> None:
    assert "nuclei" in pretrained.names()
    assert pretrained.resolve("nuclei").stat().st_size < 1.5e6
    model = gap.load_model("nuclei")
    for photons in (0.5, 3.0):
        counts, truth = simulate(2, (160, 160), photons, 7)
        error = lambda image, truth=truth: float(np.mean((np.asarray(image) - truth.values) ** 2))  # noqa: E731
        filters = (ndimage.gaussian_filter(counts.values.astype(float), sigma) for sigma in np.geomspace(0.4, 12, 18))
        assert error(gap.denoise(model, counts)) < 0.9 * min(error(image) for image in filters)


def test_files_win_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pretrained.resolve("nuclei").is_absolute()
    assert pretrained.resolve("nothing") == Path("nothing")
    with pytest.raises(CheckpointError, match="does not exist"):
        gap.load_model("nothing")
    Path("nuclei").mkdir()
    assert pretrained.resolve("nuclei") == Path("nuclei")


@pytest.mark.parametrize("model", [["--pretrained", "nuclei"], ["nuclei"]], ids=" ".join)
def test_the_command_line_takes_them_as_an_option_and_in_the_place_of_a_model(
    model: list[str], run: Any, tmp_path: Path
) -> None:
    counts, _ = simulate(2, (32, 40), 3.0, 7)
    np.save(tmp_path / "counts.npy", counts)
    result = run("denoise", *model, tmp_path / "counts.npy", tmp_path / "out.npy", "--axes", "yx", "--quiet")
    assert (result.code, result.err) == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), gap.denoise(gap.load_model("nuclei"), counts))


def test_names_that_are_not_known_and_second_models_are_refused(run: Any) -> None:
    assert "nuclei" in one_sentence(run("denoise", "--pretrained", "nothing", "counts.npy", "out.npy"))
    second = ("sample", "--pretrained", "nuclei", "a", "b", "c", "--samples", 1, "--seed", 0)
    assert "unexpected extra" in one_sentence(run(*second))
