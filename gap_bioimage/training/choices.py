"""Choose settings that were not given from the images, the machine and the purpose of a training run."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr

from gap_bioimage.camera.camera import Detector, share_noise
from gap_bioimage.config import RunConfig, ThinningConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.network import UNet
from gap_bioimage.training.loss import photon_loss
from gap_bioimage.training.patches import Split, WindowDrawer, brightest_db

log = logging.getLogger(__name__)

_LEAST_PLANES_3D = 8
_CPU_MINUTES, _MOST_CPU_MINUTES = 8.0, 13.0
_CPU_STEPS = (400, 4000)
_ACCELERATOR_STEPS = 10_000
_DARKEST_DB = -40.0
# For each purpose the darkest input in dB below the brightest window, and the reason. A range half as wide trains twice
# as many steps near the brightness of the data, worth about 1 dB there; samples start there, too.
_RANGES_DB: dict[str | None, tuple[float, str]] = {
    None: (40.0, "covers all purposes; train.purpose=denoise (--for denoise) learns more in the same number of steps"),
    "denoise": (20.0, "covers images with a hundredth of the photons"),
    "sample": (20.0, "samples start at the brightness of the image and end up to 10 dB above the brightest window"),
    "generate": (math.inf, "generation starts without any photons"),
}
_CAMERA_RANGE_DB = 10.0, "covers images with a tenth of the light; for samples set train.purpose=sample"
_SAMPLE_THINNING = {
    "binned": (0.4, "samples become brighter than the images"),
    "max_fraction": (0.95, "samples start with all photons of an image"),
}
_VALIDATIONS, _LEAST_INTERVAL, _PATIENCE = 20, 20, 6
# For anchored networks; the best of three or more values tried for each
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "muon": {"learning_rate": 4e-3, "warmup_steps": 20},
    "adam": {"learning_rate": 2e-3},
}
# Networks by dimensions. Deeper and wider ones than base are no better after minutes on a CPU (benchmarks/networks.py),
# nor were they, on few images, after 4000 steps with the batches of an accelerator.
_SMALL = {"depth": 3, "start_filts": 16, "stem": 2}
SIZES: dict[int, dict[str, dict[str, int]]] = {
    2: {"small": _SMALL, "base": {"depth": 3, "start_filts": 16}, "large": {"depth": 5, "start_filts": 32}},
    3: {"small": _SMALL, "base": {"depth": 3, "start_filts": 12}, "large": {"depth": 4, "start_filts": 32}},
}
# Shape of a window and windows per batch, by dimensions and whether training is on an accelerator
_WINDOWS: dict[tuple[int, bool], tuple[tuple[int, ...], int]] = {
    (2, False): ((64, 64), 8),
    (2, True): ((128, 128), 16),
    (3, False): ((12, 48, 48), 2),
    (3, True): ((16, 64, 64), 8),
}
_LARGEST_BATCH = 64
_SLOW = (5, 7)  # anchors of volumes that change slowly along z, and their windows
_SLOW_WINDOWS = {False: (32, 32, 32), True: (32, 48, 48)}
# windows on which anchors are compared, and why one is better
_TESTED_PX, _TESTED_WINDOWS = {2: (96, 96), 3: (48, 32, 32)}, 8
_BETTER = {5: "images that change slowly along z, such as movies", 6: "channels that share structures"}
_BETTER[7] = f"{_BETTER[5]}, and {_BETTER[6]}"


def choose_dim(config: RunConfig, images: Sequence[xr.DataArray]) -> RunConfig:
    """Choose a 3D network for volumes and a 2D one for planes, unless the dimensions are set."""
    if "dim" in config.network.model_fields_set:
        return config
    if (patch := config.train.patch_px) is not None:
        dim, why = len(patch), f"train.patch_px has {len(patch)} entries"
    elif config.network.z_conv_stage is not None:
        dim, why = 3, "network.z_conv_stage is for 3D networks"
    else:
        planes = min((int(image.sizes.get("z", 1)) for image in images), default=1)
        dim = 3 if planes >= _LEAST_PLANES_3D else 2
        why = f"the smallest number of planes per image is {planes}, and 3D needs {_LEAST_PLANES_3D}"
    config = _choose(config, "network", {"dim": dim}, why)
    # validated again, since other settings may not suit these dimensions
    return RunConfig.from_dict(config.model_dump(exclude_unset=True))


def choose_repeats(config: RunConfig, images: Sequence[xr.DataArray], detector: Detector | None) -> RunConfig:
    """Choose frames nearby as targets if pixels of one frame share noise, which networks would learn to copy."""
    pixels, frames = (0.0, 0.0) if detector is None else detector.correlations
    films = all(image.sizes.get("t", 1) > 1 for image in images)
    if "repeats" in config.train.model_fields_set or not films or share_noise(frames) or not share_noise(pixels):
        return config
    why = f"neighbouring pixels share noise ({pixels:.2f}), successive frames do not; set it to null if much moves"
    return _choose(config, "train", {"repeats": "t"}, why)


def choose_sizes(config: RunConfig, split: Split, accelerator: bool) -> RunConfig:
    """Choose size of the network, windows, batch size, range of brightness and number of steps, unless they are set.

    Dimensions and channels must be set; ``accelerator`` means a device faster than a CPU.
    """
    config = _choose_filters(config, split)
    dim, size = config.network.dim, config.train.size or "base"
    network, (patch, n_windows) = SIZES[dim][size], _WINDOWS[dim, accelerator]
    if dim == 3 and config.network.anchor_version in _SLOW:
        patch = _SLOW_WINDOWS[accelerator]
    smallest = min(min(stack.shape[-2:]) for stack in split.training)
    stem = config.network.stem if "stem" in config.network.model_fields_set else network.get("stem", 1)
    depth = min(network["depth"], max(1, int(math.log2(max(smallest, 8) / 4 / stem))))
    limit = f", with less depth for images of {smallest} px" if depth < network["depth"] else ""
    config = _choose(config, "network", {**network, "depth": depth}, f"train.size={size}{limit}")
    why = f"the default of {dim}D networks on {'an accelerator' if accelerator else 'a CPU'}"
    config = _choose(config, "train", {"patch_px": patch}, why)
    window = WindowDrawer(split.training, config.window_px, config.thinning).window_px
    batch = min(max(1, round(n_windows * math.prod(patch) / math.prod(window))), _LARGEST_BATCH)
    why = f"as many pixels per step as {n_windows} windows of {patch} px; at most {_LARGEST_BATCH}"
    config = _choose(config, "train", {"batch_size": batch}, why)
    if config.network.anchor:
        optimizer = config.train.optimizer if "optimizer" in config.train.model_fields_set else "muon"
        chosen = {"optimizer": optimizer, **_OPTIMIZERS[optimizer]}
        config = _choose(config, "train", chosen, "the default of anchored networks")
        # plain networks need float32: their outputs are log-rates, not corrections
        if not accelerator and _has_bf16():
            config = _choose(config, "train", {"precision": "bf16-mixed"}, "faster on this processor, and as accurate")
    return _choose_steps(_choose_range(config, split), split, accelerator)


def _choose_filters(config: RunConfig, split: Split) -> RunConfig:
    """Choose the filters of a network, unless they are set: those that predict one half of the photons best."""
    network = config.network
    volumes, several = network.dim == 3, network.channels > 1
    versions = [5] * volumes + [6] * several + [7] * (volumes and several)
    if not versions or not network.anchor or "anchor_version" in network.model_fields_set:
        return config
    thinning = ThinningConfig(min_db=99.0, max_db=100.0, max_fraction=0.5, ceiling=config.thinning.ceiling)
    drawer = WindowDrawer(split.training, _TESTED_PX[network.dim], thinning)
    pairs = drawer.batch([config.train.seed, 2], _TESTED_WINDOWS)

    def loss(version: int) -> float:
        anchor = UNet(network.dim, network.channels, depth=1, start_filts=1, anchor=True, anchor_version=version).eval()
        anchor.anchor.per_frame.fill_(1 / (thinning.ceiling or math.inf))
        with torch.inference_mode():
            return float(photon_loss(anchor(pairs.photons), pairs.target, pairs.weight, pairs.exposure, 1.0).mean())

    losses = {version: loss(version) for version in (network.anchor_version, *versions)}
    best = min(losses, key=losses.__getitem__)
    if best == network.anchor_version:
        return config
    gain = losses[network.anchor_version] - losses[best]
    why = f"for {_BETTER[best]}; better by {gain:.2g} nats per photon"
    return _choose(config, "network", {"anchor_version": best}, why)


def _choose_range(config: RunConfig, split: Split) -> RunConfig:
    purpose, seed = config.train.purpose, config.train.seed
    for name, (value, why) in _SAMPLE_THINNING.items() if purpose == "sample" else ():
        if name != "binned" or config.thinning.ceiling is None:
            config = _choose(config, "thinning", {name: value}, why)
    thinning, window = config.thinning, "no training window"
    unbinned = brightest = round(brightest_db(split.training, config.window_px, seed), 2)
    if thinning.binned:
        brightest = max(unbinned, round(brightest_db(split.training, config.window_px, seed, True), 2))
        window += ", even with 2 x 2 pixels summed,"
    limit = math.inf if thinning.max_db is None else thinning.max_db
    if limit > brightest:
        log.info("thinning.max_db=%g: %s is brighter", brightest, window)
    brightest = min(brightest, limit)
    if "min_db" in thinning.model_fields_set and brightest <= thinning.min_db:
        problem = f"thinning.min_db is {thinning.min_db:g}, but the brightest training window has {brightest:g} dB"
        raise ConfigError(f"{problem}; set thinning.min_db to {brightest - 20:g}")
    below, why = _RANGES_DB[purpose]
    if config.camera is not None and config.network.anchor and purpose in (None, "denoise"):
        below, why = _CAMERA_RANGE_DB
        config = _choose(config, "thinning", {"read_noise": True}, "images with less light have the same read noise")
    brightest_input = min(unbinned, brightest)
    darkest = round(min(max(_DARKEST_DB, brightest_input - below), brightest_input - 10), 2)
    why = f"{brightest_input - darkest:g} dB below the brightest window; {why}"
    return _choose(_update(config, "thinning", {"max_db": brightest}), "thinning", {"min_db": darkest}, why)


def _choose_steps(config: RunConfig, split: Split, accelerator: bool) -> RunConfig:
    if "steps" not in config.train.model_fields_set:
        steps, why = _ACCELERATOR_STEPS, "the default on an accelerator"
        if not accelerator:
            seconds = _seconds_per_step(config, split)
            steps = 100 * round(min(max(_CPU_MINUTES * 60 / seconds, _CPU_STEPS[0]), _CPU_STEPS[1]) / 100)
            steps = max(20, min(steps, int(_MOST_CPU_MINUTES * 60 / seconds)))
            why = f"about {max(1, round(steps * seconds / 60))} min at {seconds:.2g} s per step"
        chosen = {"steps": steps}
        if "patience" not in config.train.model_fields_set:
            chosen["patience"] = _PATIENCE
            why += f"; ends after {_PATIENCE} validations of the second half without improvement, with the best network"
        config = _choose(config, "train", chosen, why)
    every = max(_LEAST_INTERVAL, config.train.steps // _VALIDATIONS)
    count = -(-config.train.steps // every)
    return _choose(config, "train", {"validate_every": every}, f"{count} validation{'s' if count > 1 else ''} in all")


def _has_bf16() -> bool:
    """Return whether the processor has bfloat16 instructions; emulation is slow."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _seconds_per_step(config: RunConfig, split: Split) -> float:
    """Return the time of a training step on this machine, drawing of windows included; the first step is a warm-up."""
    network = UNet(**config.network.model_dump())
    drawer = WindowDrawer(split.training, config.window_px, config.thinning, config.train.min_photons)
    times = []
    for step in range(3):
        start = time.monotonic()
        photons = drawer.batch([step], config.train.batch_size).photons
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16-mixed"):
            log_rate = network(photons)
        log_rate.sum().backward()
        times.append(time.monotonic() - start)
    return max(min(times[1:]), 1e-4)


def _choose(config: RunConfig, section: str, values: dict[str, Any], why: str) -> RunConfig:
    """Fill in values of a section that were not set or are None, and log them with the reason."""
    old = getattr(config, section)
    chosen = {k: v for k, v in values.items() if k not in old.model_fields_set or getattr(old, k) is None}
    # as --set takes them
    texts = (f"{section}.{k}={list(v) if isinstance(v, tuple) else v}".replace(" ", "") for k, v in chosen.items())
    if chosen:
        log.info("%s: %s", ", ".join(texts), why)
    return _update(config, section, chosen)


def _update(config: RunConfig, section: str, values: dict[str, Any]) -> RunConfig:
    """Return settings with new values in a section, which count as set from now on."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
