from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xarray as xr
from command_line import one_sentence
from fixtures_model import Trained, random_model

from gap_bioimage.camera.camera import Detector, PixelMaps
from gap_bioimage.config import Camera, SamplingConfig
from gap_bioimage.errors import AxesError, ConfigError, HotPixelWarning, NotPhotonCountsError, OutputError
from gap_bioimage.inference import tiling
from gap_bioimage.inference.denoising import denoise
from gap_bioimage.inference.sampling import sample
from gap_bioimage.inference.volumes import denoise_volume
from gap_bioimage.io import pixel_size_um, read_photons, sum_frames, write_image
from gap_bioimage.io.blocks import volume_status
from gap_bioimage.model import Model, load_model
from gap_bioimage.simulation import simulate

zarr = pytest.importorskip("zarr")

BLOCK = (8, 24, 24)


def counts(dims: str = "zyx", size: int = 72, seed: int = 0, scale: float = 3.0) -> xr.DataArray:
    """Counts with structure, pixel sizes and names."""
    lengths = {"t": 2, "c": 2, "z": 10, "y": size, "x": size - 8}
    shape = [lengths[axis] for axis in dims]
    rng = np.random.default_rng(seed)
    light = scale * (1 + np.sin(np.arange(shape[-1]) / 5)) * (1 + np.cos(np.arange(shape[-2]) / 7))[:, None]
    values = rng.poisson(np.broadcast_to(light, shape)).astype(np.uint16)
    coords = {a: np.arange(lengths[a]) * s for a, s in {"z": 0.4, "y": 0.1, "x": 0.1}.items() if a in dims}
    return xr.DataArray(values, dims=list(dims), coords=coords | ({"c": ["actin", "DNA"]} if "c" in dims else {}))


def anchored(dim: int = 3, channels: int = 1) -> Model:
    return random_model(dim=dim, anchor=True, channels=channels, start_filts=2)


def exact(model: Model) -> list[int]:
    """The halo with which blocks are what the whole image is; others are measured, which takes a while."""
    return tiling.exact_halo_px(model.network)


def stored(path: Path) -> dict[str, bytes]:
    """All files of a store."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def close(result: xr.DataArray, expected: xr.DataArray) -> None:
    assert result.dims == expected.dims
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert pixel_size_um(result) == pytest.approx(pixel_size_um(expected))


@pytest.mark.parametrize(
    ("dims", "dim", "channels", "options"),
    [
        ("zyx", 3, 1, {}),
        ("tcyx", 2, 2, {}),
        ("czyx", 3, 1, {"separate_channels": True}),
        ("tyx", 3, 1, {"time_as_z": True}),
        ("tyx", 2, 1, {}),
        ("zyx", 2, 1, {"planes": True}),
    ],
)
def test_blocks_are_what_the_whole_image_is(
    tmp_path: Path, dims: str, dim: int, channels: int, options: dict[str, bool]
) -> None:
    image, model = counts(dims, size=40), anchored(dim, channels)
    write_image(tmp_path / "in.zarr", image)
    how: dict[str, Any] = {"block_px": BLOCK[-dim:], "halo_px": exact(model), **options}
    status = denoise_volume(model, tmp_path / "in.zarr", tmp_path / "out.zarr", **how)
    assert status.complete
    assert status.total > 1
    close(read_photons(tmp_path / "out.zarr", check=False), denoise(model, image, **options))


def test_plain_networks_conserve_photons_in_a_box(tmp_path: Path) -> None:
    image, model = counts(), random_model(dim=3, start_filts=2)
    write_image(tmp_path / "in.zarr", image)
    for name, block in (("blocks", BLOCK), ("other", (6, 48, 32)), ("whole", (10, 72, 64))):
        denoise_volume(model, tmp_path / "in.zarr", tmp_path / f"{name}.zarr", block_px=block, halo_px=exact(model))
    blocks, other, whole = (read_photons(tmp_path / f"{n}.zarr", check=False) for n in ("blocks", "other", "whole"))
    close(whole, denoise(model, image))
    close(blocks, other)  # no seams
    assert float(blocks.sum()) == pytest.approx(float(image.sum()), rel=0.03)


def write_input(path: Path, kind: str, image: xr.DataArray) -> Path:
    """Write an image in one of the ways that volumes come in."""
    if kind in ("0.4", "0.5", "sharded"):
        store = zarr.open_group(path / "in.zarr", mode="w", zarr_format=2 if kind == "0.4" else 3)
        shards = {"shards": (8, 48, 48)} if kind == "sharded" else {}
        store.create_array("0", data=image.values, chunks=(4, 24, 24), **shards)
        axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in image.dims]
        scale = [{"type": "scale", "scale": [0.4, 0.1, 0.1]}]
        words = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]}
        if kind == "0.4":
            words["multiscales"][0]["version"] = "0.4"
        store.attrs.update(words if kind == "0.4" else {"ome": {"version": "0.5", **words}})
        return path / "in.zarr"
    if kind == "planes":
        (path / "planes").mkdir()
        for number, plane in enumerate(image.values):
            tifffile.imwrite(path / "planes" / f"plane{number}.tif", plane)
        return path / "planes"
    write_image(path / f"in.{kind}", image)
    return path / f"in.{kind}"


@pytest.mark.parametrize("kind", ["0.4", "0.5", "sharded", "tif", "h5", "planes"])
def test_all_kinds_of_files_give_the_same_values(tmp_path: Path, kind: str) -> None:
    image, model = counts(size=40), random_model(dim=2, start_filts=2)
    out = tmp_path / "out.zarr"
    denoise_volume(model, write_input(tmp_path, kind, image), out, block_px=(24, 32), planes=True)
    expected = denoise(model, image.drop_vars(list("zyx")) if kind == "planes" else image, planes=True)
    close(read_photons(out, check=False), expected)


def filled(tmp_path: Path, name: str, **options: Any) -> Path:
    """Denoise one volume of several blocks in a way."""
    if not (tmp_path / "in.tif").exists():
        write_image(tmp_path / "in.tif", counts(size=300).isel(z=slice(3), x=slice(200)))
    model = random_model(dim=2, start_filts=2)
    denoise_volume(model, tmp_path / "in.tif", tmp_path / name, planes=True, block_px=(96, 128), **options)
    return tmp_path / name


def test_the_order_and_the_number_of_workers_change_no_byte(tmp_path: Path) -> None:
    whole, sizes = filled(tmp_path, "whole.zarr"), []
    parts = tmp_path / "parts" / "whole.zarr"
    parts.parent.mkdir()
    for number in (3, 1, 2):
        assert not parts.exists() or not volume_status(parts).complete
        filled(tmp_path, "parts/whole.zarr", part=(number, 3), on_block=lambda done, total: sizes.append(total))
    assert volume_status(parts).complete
    assert stored(parts) == stored(whole)
    assert len(stored(whole)) > 10
    assert max(sizes) < 1.1 * min(sizes)  # of parts of 2 to 3 blocks, of which some are narrow


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    out, told = tmp_path / "out.zarr", []
    for _ in range(2):
        filled(tmp_path, "out.zarr", on_block=lambda done, total: told.append((volume_status(out), done / total)))
    assert [status.done for status, _ in told] == list(range(1, 9))
    assert [status.done_smaller for status, _ in told][-3:] == [1, 1, 2]  # as soon as what they average is done
    assert told[-1] == (volume_status(out), 1)
    before = stored(out)
    with pytest.raises(OutputError, match="halo"):
        filled(tmp_path, "out.zarr", halo_px=(8, 8))
    assert stored(out) == before
    write_image(tmp_path / "other.zarr", counts(size=40))
    with pytest.raises(OutputError, match="there already"):
        filled(tmp_path, "other.zarr")


def test_a_halo_is_measured_once_and_kept_and_names_do_not_depend_on_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = simulate(2, (288, 96), 1.0, seed=1)
    write_image(tmp_path / "in.tif", image)
    model = load_model("nuclei")
    how: dict[str, Any] = {"block_px": (96, 96)}
    denoise_volume(model, tmp_path / "in.tif", tmp_path / "whole.zarr", **how)
    assert denoise_volume(model, tmp_path / "in.tif", tmp_path / "two.zarr", part=(1, 2), **how).done == 2
    monkeypatch.setattr(tiling, "measured_halo_px", None)
    assert denoise_volume(model, tmp_path / "in.tif", tmp_path / "two.zarr", part=(2, 2), **how).complete
    assert stored(tmp_path / "two.zarr") == stored(tmp_path / "whole.zarr")
    result, expected = read_photons(tmp_path / "two.zarr", check=False).values, denoise(model, image).values
    assert 0 < float(np.square(result - expected).mean() / np.square(expected).mean()) < 1e-6
    denoise_volume(model, tmp_path / "in.tif", tmp_path / "exact.zarr", halo_px=(121, 121), **how)
    close(read_photons(tmp_path / "exact.zarr", check=False), denoise(model, image))


def test_bfloat16_and_batches_reach_volumes(tmp_path: Path, run: Any, trained_2d: Trained) -> None:
    write_image(tmp_path / "in.tif", trained_2d.counts)
    given = ("denoise", trained_2d.run, tmp_path / "in.tif")
    results = []
    for precision in ("float32", "bf16"):
        assert run(*given, tmp_path / f"{precision}.zarr", "--precision", precision).code == 0
        results.append(read_photons(tmp_path / f"{precision}.zarr", check=False))
    model = load_model(trained_2d.run)
    close(results[1], denoise(model, trained_2d.counts, precision="bf16"))
    assert float(abs(results[1] - results[0]).max()) > 1e-4
    one_sentence(run(*given, tmp_path / "wrong.zarr", "--precision", "half"))
    one_sentence(run(*given, tmp_path / "bf16.zarr", "--precision", "float32"))
    with pytest.raises(ConfigError, match="batch"):
        denoise_volume(model, tmp_path / "in.tif", tmp_path / "s.zarr", n_samples=1, batch=0)


@pytest.mark.parametrize("damage", ["cut", "changed", "lost"])
def test_damaged_blocks_are_found_and_done_again(tmp_path: Path, damage: str) -> None:
    out = filled(tmp_path, "out.zarr")
    before, records = stored(out), [out / "0/.done/0.0.0", out / "0/.done/0.1.0", out / "1/.done/0.0.0"]
    shard, times = out / "0/c/0/0/0", [record.stat().st_mtime_ns for record in records]
    content = shard.read_bytes()
    if damage == "lost":
        shard.unlink()
    else:
        shard.write_bytes(content[:-9] if damage == "cut" else content[:9] + b"?" + content[10:])
    filled(tmp_path, "out.zarr")
    assert stored(out) != before
    told = []
    filled(tmp_path, "out.zarr", verify=True, on_block=lambda done, total: told.append(done))
    assert stored(out) == before
    assert len(told) == 1
    again = [record.stat().st_mtime_ns > time for record, time in zip(records, times, strict=True)]
    assert again == [True, False, True]  # and what was averaged from it


def test_averages_that_killed_processes_left_are_made_by_any(tmp_path: Path) -> None:
    out = filled(tmp_path, "out.zarr")
    before = stored(out)
    for name in (".done/0.0.0", "c/0/0/0"):
        (out / "1" / name).unlink()
    assert not volume_status(out).complete
    assert stored(filled(tmp_path, "out.zarr", part=(2, 2))) == before


def test_a_full_disk_is_a_sentence_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls, replace = filled(tmp_path, "whole.zarr"), 0, os.replace

    def full(source: Any, target: Any) -> None:
        nonlocal calls
        calls += "0/c/" in str(target)
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    (tmp_path / "full").mkdir()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="no space left on device"):
        filled(tmp_path, "full/whole.zarr")
    monkeypatch.undo()
    assert 0 < volume_status(tmp_path / "full" / "whole.zarr").done < 6
    assert stored(filled(tmp_path, "full/whole.zarr")) == stored(whole)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_sizes_names_and_ranges_are_those_of_ome_zarr(tmp_path: Path, version: str) -> None:
    yaozarrs = pytest.importorskip("yaozarrs")
    image = counts("czyx", size=300).isel(z=slice(3), x=slice(40))
    write_image(tmp_path / "in.zarr", image)
    out, model = tmp_path / "out.ome.zarr", anchored(2)
    options: dict[str, Any] = {"planes": True, "separate_channels": True, "block_px": (128, 64)}
    options["halo_px"] = exact(model)
    denoise_volume(model, tmp_path / "in.zarr", out, version=version, **options)
    yaozarrs.validate_zarr_store(str(out))
    close(read_photons(out, check=False), denoise(model, image, planes=True, separate_channels=True))
    assert read_photons(out, check=False).c.values.tolist() == ["actin", "DNA"]
    group = zarr.open_group(out, mode="r")
    words = group.attrs["ome"] if version == "0.5" else group.attrs.asdict()
    assert [window["window"]["end"] for window in words["omero"]["channels"]] == pytest.approx(
        [float(group["0"][channel].max()) for channel in range(2)]
    )
    assert [dataset["path"] for dataset in words["multiscales"][0]["datasets"]] == ["0", "1"]
    assert group["0"].shards == ((2, 3, 128, 40) if version == "0.5" else None)
    full = group["0"][:].reshape(2, 3, 150, 2, 20, 2)
    np.testing.assert_allclose(group["1"][:], full.mean((3, 5)), rtol=1e-5)


def test_cameras_with_maps_are_cropped_to_blocks(tmp_path: Path) -> None:
    light, rng = counts(size=40), np.random.default_rng(0)
    maps = PixelMaps(
        *(np.asarray(m, np.float32) for m in (rng.integers(95, 105, (40, 32)), rng.uniform(1, 2, (40, 32))))
    )
    detector = Detector(Camera(gain=2.0, offset=100, read_noise=1.5), maps)
    adu = np.rint(maps.offset + 2 * (light + rng.normal(0, 1, light.shape) * maps.read_noise)).astype(np.uint16)
    image, model = light.copy(data=adu.values), anchored(2)
    write_image(tmp_path / "in.tif", image)
    how: dict[str, Any] = {"planes": True, "camera": detector, "halo_px": exact(model)}
    denoise_volume(model, tmp_path / "in.tif", tmp_path / "out.zarr", block_px=(16, 16), **how)
    close(read_photons(tmp_path / "out.zarr", check=False), denoise(model, image, **how))
    with pytest.raises(OutputError, match="camera"):
        other = Detector(detector.camera, PixelMaps(maps.offset + 1, maps.read_noise))
        denoise_volume(model, tmp_path / "in.tif", tmp_path / "out.zarr", block_px=(16, 16), **{**how, "camera": other})


def test_one_bit_frames_are_summed_block_by_block(tmp_path: Path) -> None:
    frames = (np.random.default_rng(0).random((24, 40, 32)) < 0.2).astype(np.uint8)
    movie = xr.DataArray(frames, dims=["t", "y", "x"], coords={"t": ("t", np.arange(24) * 0.5)})
    model = replace(anchored(2), n_frames=8)
    write_image(tmp_path / "in.ome.tif", movie)
    denoise_volume(model, tmp_path / "in.ome.tif", tmp_path / "out.zarr", sum_frames=8, block_px=(24, 24))
    result = read_photons(tmp_path / "out.zarr", check=False)
    close(result, denoise(model, sum_frames(movie, 8)))
    np.testing.assert_allclose(result.t, [0, 4, 8])


def test_hot_pixels_are_told_once_and_dark_blocks_are_dark(tmp_path: Path) -> None:
    image, model = counts("tyx", size=40), random_model(dim=2, start_filts=2)
    image[0] = 0
    image[1, 20, 20] = 5000
    write_image(tmp_path / "in.tif", image)
    with pytest.warns(HotPixelWarning, match="1 hot pixel.* other blocks"):
        denoise_volume(model, tmp_path / "in.tif", tmp_path / "out.zarr", block_px=(24, 24))
    result = read_photons(tmp_path / "out.zarr", check=False)
    assert not result[0].any()
    assert result[1].min() > 0
    assert result.max() < 100


def test_samples_give_mean_and_standard_deviation(tmp_path: Path) -> None:
    image, model = counts("yx", size=40), anchored(2)
    write_image(tmp_path / "in.tif", image)
    how: dict[str, Any] = {"n_samples": 3, "seed": 1, "settings": SamplingConfig(steps=2)}
    denoise_volume(model, tmp_path / "in.tif", tmp_path / "out.ome.zarr", **how)
    mean, std = (read_photons(tmp_path / f"out_{name}.ome.zarr", check=False) for name in ("mean", "std"))
    drawn = sample(model, image, **how)
    close(mean, drawn.mean("sample"))
    np.testing.assert_allclose(std, drawn.std("sample", ddof=1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"part": (3, 2)}, ConfigError),
        ({"part": (0, 2)}, ConfigError),
        ({"n_samples": 0}, ConfigError),
        ({"block_px": (8, 8, 8)}, ConfigError),
        ({"tile_px": (16, 16), "halo_px": (16, 16)}, ConfigError),
        ({"planes": False}, AxesError),
        ({"sum_frames": 4}, AxesError),
        ({"scheduler": "tcp://127.0.0.1:9"}, ConfigError),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception]
) -> None:
    write_image(tmp_path / "in.tif", counts(size=80))
    if "scheduler" in options:
        pytest.importorskip("distributed")
        monkeypatch.setitem(
            pytest.importorskip("dask").config.config["distributed"]["comm"]["timeouts"], "connect", 0.1
        )
    with pytest.raises(error):
        model = random_model(dim=2, start_filts=2)
        denoise_volume(model, tmp_path / "in.tif", tmp_path / "out.zarr", **{"planes": True, **options})
    assert not list(tmp_path.glob("*.zarr")) or "scheduler" in options


def test_what_are_no_counts_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_image(tmp_path / "in.tif", counts(size=40) * 0.37)
    with pytest.raises(NotPhotonCountsError):
        denoise_volume(random_model(dim=2), tmp_path / "in.tif", tmp_path / "out.zarr", planes=True)
    with pytest.raises(OutputError, match="zarr"):
        denoise_volume(random_model(dim=2), tmp_path / "in.tif", tmp_path / "out.tif", planes=True)
    assert [file.name for file in tmp_path.iterdir()] == ["in.tif"]


def test_the_verbs_fill_zarrs_and_tell_how_far_they_are(tmp_path: Path, run: Any, trained_2d: Trained) -> None:
    write_image(tmp_path / "in.tif", trained_2d.counts)
    halo = ",".join(map(str, exact(load_model(trained_2d.run))))
    files = (trained_2d.run, tmp_path / "in.tif")
    given = ("denoise", *files, tmp_path / "out.ome.zarr", "--block", "64,64", "--halo", halo)
    assert run(*given, "--part", "1/2").code == 0
    assert run(*given, "--status").out.startswith("5 of 9 blocks are done")
    assert run(*given).code == 0
    assert volume_status(tmp_path / "out.ome.zarr").complete
    close(read_photons(tmp_path / "out.ome.zarr", check=False), denoise(load_model(trained_2d.run), trained_2d.counts))
    drawn = ("sample", *files, tmp_path / "s.zarr", "--samples", 2, "--seed", 1, "--steps", 1, "--part", "1/1")
    assert run(*drawn).code == 0
    assert volume_status(tmp_path / "s_std.zarr").complete
    for wrong in (("--part", "2"), ("--ome-zarr", "0.3")):
        one_sentence(run(*given, *wrong))
    one_sentence(run(*given[:3], tmp_path / "out.tif", "--part", "1/2"))
    one_sentence(run(*given[:3], tmp_path / "none.zarr", "--status"))


@pytest.mark.slow
def test_kills_at_any_moment_change_no_byte(tmp_path: Path) -> None:
    write_image(tmp_path / "in.tif", counts("yx", size=600))
    script = Path(__file__).with_name("fill_and_kill.py")
    whole, out = tmp_path / "whole" / "a.zarr", tmp_path / "a.zarr"
    whole.parent.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent.parent)}
    command = [sys.executable, script, tmp_path / "in.tif", whole, out]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.stdout.split() == ["0", *["-9"] * 20, "0"], done.stderr
    assert stored(out) == stored(whole)


@pytest.mark.slow
def test_a_cluster_whose_worker_is_killed_gives_the_same_bytes(tmp_path: Path, trained_2d: Trained) -> None:
    distributed = pytest.importorskip("distributed")
    (tmp_path / "one").mkdir()
    write_image(tmp_path / "in.tif", counts("yx", size=600))
    how: dict[str, Any] = {"block_px": (128, 128)}
    model, whole, out = load_model(trained_2d.run), tmp_path / "one" / "a.zarr", tmp_path / "a.zarr"
    denoise_volume(model, tmp_path / "in.tif", whole, **how)
    killed: list[int] = []
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):

        def kill_one(done: int, total: int) -> None:
            if not killed and done > total / 4:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        status = denoise_volume(
            model, tmp_path / "in.tif", out, scheduler=cluster.scheduler_address, on_block=kill_one, **how
        )
    assert killed
    assert status.complete
    assert stored(out) == stored(whole)
