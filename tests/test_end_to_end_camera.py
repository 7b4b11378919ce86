"""From a camera's movie, or one-bit frames, to a zip that takes them raw."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from command_line import one_sentence
from fixtures_model import CARD, no_validation
from numpy.typing import NDArray

from gap_bioimage.camera.camera import read_camera
from gap_bioimage.exporting.weights import denoiser_of
from gap_bioimage.model import load_model
from gap_bioimage.simulation import simulate

SETTINGS = [
    "--set", "network.depth=2", "--set", "network.start_filts=4", "--set", "train.steps=80", "--set",
    "train.batch_size=4", "--set", "train.patch_px=[32,32]", "--set", "train.validate_every=40", "--set",
    "train.learning_rate=5e-3", "--set", "train.warmup_steps=20", "--set", "thinning.min_db=0", "--quiet", "--device",
    "cpu",
]  # fmt: skip


def scene(mean: float) -> NDArray[np.float32]:
    rate = simulate(2, (112, 120), mean, 3)[1].values
    return np.asarray(rate * (mean / rate.mean()), np.float32)


def run_in_core(zip_path: Path, image: NDArray[Any]) -> NDArray[np.float32]:
    """Return what bioimageio.core makes of an image (y, x), as it was recorded."""
    from bioimageio.core import Tensor, predict

    photons = Tensor(image[None, None], dims=("batch", "channel", "y", "x"))
    (output,) = predict(model=zip_path, inputs={"photons": photons}).members.values()
    return np.asarray(output.data.values[0, 0], np.float32)


def test_from_raw_camera_frames_to_a_zip_that_takes_them(run: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    electrons = rng.poisson(scene(12.0), (10, 112, 120)) + rng.normal(0, 1.4, (10, 112, 120))
    movie = np.rint(100 + 2.2 * electrons).astype(np.uint16)
    tifffile.imwrite(tmp_path / "raw.tif", movie, imagej=True, metadata={"axes": "TYX", "finterval": 0.5})
    (tmp_path / "camera.yaml").write_text("gain: 2.2\noffset: 100\nread_noise: 1.41\n")
    (tmp_path / "card.yaml").write_text(CARD)
    paths = {name: tmp_path / name for name in ("raw.tif", "camera.yaml", "run", "out.tif", "model.zip", "card.yaml")}
    raw, camera, trained, out, zip_path, card = paths.values()

    # without its camera the movie is no counts
    assert "camera" in one_sentence(run("train", raw, "--dim", 2, "--out", tmp_path / "no", *SETTINGS))
    assert run("train", raw, "--dim", 2, "--out", trained, "--camera", camera, *SETTINGS).code == 0
    info = json.loads(run("info", trained, "--json", "-").out)
    assert (info["camera"]["gain"], info["camera"]["offset"]) == (2.2, 100)

    assert run("denoise", trained, raw, out, "--quiet").code == 0
    with tifffile.TiffFile(out) as tiff:
        assert tiff.imagej_metadata["finterval"] == 0.5
        denoised = tiff.asarray()
    truth = scene(12.0)
    noisy = (movie.astype(float) - 100) / 2.2
    assert denoised.mean() == pytest.approx(noisy.mean(), rel=0.01)
    assert np.square(denoised - truth).mean() < 0.5 * np.square(noisy - truth).mean()
    given = run("denoise", trained, raw, tmp_path / "given.tif", "--camera", camera, "--quiet")
    assert given.code == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "given.tif"), denoised)
    # counts given as such
    counts = rng.poisson(truth).astype(np.uint16)
    tifffile.imwrite(tmp_path / "counts.tif", counts, imagej=True)
    assert "--camera none" in one_sentence(run("denoise", trained, tmp_path / "counts.tif", tmp_path / "c.tif"))

    dim = np.rint(100 + 2.2 * (rng.poisson(scene(2.0)) + rng.normal(0, 1.4, truth.shape))).astype(np.uint16)
    tifffile.imwrite(tmp_path / "dim.tif", dim, imagej=True)
    drawn = run("sample", trained, tmp_path / "dim.tif", tmp_path / "s.tif", "--samples", 2, "--seed", 1, "--steps", 4)
    assert drawn.code == 0, drawn.err
    assert "--for sample" in drawn.err
    samples = tifffile.imread(tmp_path / "s.tif")
    assert samples.mean() == pytest.approx((dim.mean() - 100) / 2.2, rel=0.05)

    with no_validation():
        done = run("export", trained, zip_path, "--card", card, "--quiet")
    assert done.code == 0, done.err
    again = load_model(zip_path)
    assert run("denoise", zip_path, raw, tmp_path / "zip.tif", "--quiet").code == 0
    np.testing.assert_allclose(tifffile.imread(tmp_path / "zip.tif"), denoised, rtol=1e-4, atol=1e-4)

    in_core = run_in_core(zip_path, movie[0][:104, :104])
    detector = read_camera(camera).for_network(anchored=True)
    # bioimageio.core mirrors the image by the halo and cuts it off again
    halo = yaml.safe_load(zipfile.ZipFile(zip_path).read("rdf.yaml"))["outputs"][0]["axes"][-1]["halo"]
    mirrored = detector.seen(detector.values(np.pad(movie[0][:104, :104], halo, mode="symmetric")))
    expected = denoiser_of(again)(mirrored[None, None])[0, 0].numpy() - detector.background()
    np.testing.assert_allclose(in_core, expected[halo:-halo, halo:-halo], rtol=1e-4, atol=1e-4)
    assert np.corrcoef(in_core.ravel(), denoised[0][:104, :104].ravel())[0, 1] > 0.98


def test_from_one_bit_frames_to_a_zip_of_their_sums(run: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = scene(0.25)  # photons per frame, up to two
    bits = (rng.poisson(truth, (10 * 8, 112, 120)) > 0).astype(np.uint8)
    tifffile.imwrite(tmp_path / "bits.tif", bits, imagej=True, metadata={"axes": "TYX", "finterval": 0.001})
    (tmp_path / "card.yaml").write_text(CARD)
    bit_file, trained, out, zip_path = (tmp_path / name for name in ("bits.tif", "run", "out.tif", "model.zip"))
    training = ("train", bit_file, "--dim", 2, "--out", trained, *SETTINGS)
    assert run(*training, "--sum-frames", 8).code == 0
    assert json.loads(run("info", trained, "--json", "-").out)["one_bit_frames"] == 8
    assert "sums of 8" in one_sentence(run("denoise", trained, bit_file, out, "--sum-frames", 4))
    assert run("denoise", trained, bit_file, out, "--sum-frames", 8, "--quiet").code == 0
    denoised = tifffile.imread(out)
    assert denoised.shape == (10, 112, 120)
    # the known rate, not that of detections, which is less where it is bright
    bright = truth > np.quantile(truth, 0.9)
    detected = bits.sum(0)[bright].mean() / 10
    assert detected < 0.8 * 8 * truth[bright].mean()
    assert denoised[:, bright].mean() == pytest.approx(8 * truth[bright].mean(), rel=0.1)
    summed = bits.reshape(10, 8, 112, 120).sum(1)
    linear = -8 * np.log1p(-np.minimum(summed / 8, 0.95))
    assert np.square(denoised - 8 * truth).mean() < 0.5 * np.square(linear - 8 * truth).mean()

    with no_validation():
        done = run("export", trained, zip_path, "--card", tmp_path / "card.yaml", "--quiet")
    assert done.code == 0, done.err
    assert json.loads(run("info", zip_path, "--json", "-").out)["one_bit_frames"] == 8
    assert [float(load_model(path).network.anchor.per_frame) for path in (trained, zip_path)] == [1 / 8] * 2
    in_core = run_in_core(zip_path, summed[0, :104, :104].astype(np.uint8))
    assert np.corrcoef(in_core.ravel(), denoised[0, :104, :104].ravel())[0, 1] > 0.98
    assert in_core.mean() == pytest.approx(denoised[0, :104, :104].mean(), rel=0.1)
