"""Choose settings that were not given from the images, the machine and the purpose of a training run."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr

from gap_bioimage.config import RunConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.network import UNet
from gap_bioimage.training.patches import Split, WindowDrawer, brightest_db

log = logging.getLogger(__name__)

_PLANES_OF_A_VOLUME = 8  # images with fewer planes are trained on plane by plane
_CPU_MINUTES, _CPU_MINUTES_AT_MOST = 8.0, 13.0
_CPU_STEPS = (400, 4000)
_ACCELERATOR_STEPS = 10_000
_DARKEST_DB = -40.0
# For each purpose the darkest input in dB below the brightest window, and the reason. A range half as wide trains twice
# as many steps near the brightness of the data, worth about 1 dB there; samples start there, too.
_RANGES_DB: dict[str | None, tuple[float, str]] = {
    None: (40.0, "for all purposes; train.purpose=denoise (--for denoise) learns more in as many steps"),
    "denoise": (20.0, "images of a hundredth of the photons are denoised too"),
    "sample": (20.0, "samples climb from the image's brightness up, to 10 dB beyond the brightest window"),
    "generate": (math.inf, "generation begins without any photons"),
}
_OF_CAMERAS = 10.0, "images of a tenth of the light are denoised too; samples want train.purpose=sample"
_OF_SAMPLES = {
    "binned": (0.4, "samples become brighter than the images"),
    "max_fraction": (0.95, "samples begin with all photons of an image"),
}
_VALIDATIONS, _LEAST_EVERY, _PATIENCE = 20, 20, 6
# For anchored networks; the best of three or more values tried for each
_COURSES: dict[str, dict[str, Any]] = {
    "muon": {"learning_rate": 4e-3, "warmup_steps": 20},
    "adam": {"learning_rate": 2e-3},
}
# Networks by dimensions. Deeper and wider ones than base are no better after minutes on a CPU (benchmarks/networks.py),
# nor were they, on few images, after 4000 steps with the batches of an accelerator.
SIZES: dict[int, dict[str, dict[str, int]]] = {
    2: {
        "small": {"depth": 3, "start_filts": 16, "stem": 2},
        "base": {"depth": 3, "start_filts": 16},
        "large": {"depth": 5, "start_filts": 32},
    },
    3: {
        "small": {"depth": 3, "start_filts": 16, "stem": 2},
        "base": {"depth": 3, "start_filts": 12},
        "large": {"depth": 4, "start_filts": 32},
    },
}
# Shape of a window and windows per batch, by dimensions and whether training is on an accelerator
_WINDOWS: dict[tuple[int, bool], tuple[tuple[int, ...], int]] = {
    (2, False): ((64, 64), 8),
    (2, True): ((128, 128), 16),
    (3, False): ((12, 48, 48), 2),
    (3, True): ((16, 64, 64), 8),
}
_LARGEST_BATCH = 64


def choose_dim(config: RunConfig, images: Sequence[xr.DataArray]) -> RunConfig:
    """Choose a 3D network for volumes and a 2D one for planes, unless the dimensions are set."""
    if "dim" in config.network.model_fields_set:
        return config
    planes = min((int(image.sizes.get("z", 1)) for image in images), default=1)
    volumes = planes >= _PLANES_OF_A_VOLUME or config.network.z_conv_stage is not None
    patch = config.train.patch_px
    dim = len(patch) if patch is not None else 3 if volumes else 2
    config = _choose(config, "network", {"dim": dim}, f"the images have {planes} planes")
    # validated again, since other settings may not suit these dimensions
    return RunConfig.from_dict(config.model_dump(exclude_unset=True))


def choose_sizes(config: RunConfig, split: Split, accelerator: bool) -> RunConfig:
    """Choose size of the network, windows, batch size, range of brightness and number of steps, unless they are set.

    Dimensions and channels must be set; ``accelerator`` means a device faster than a CPU.
    """
    smallest = min(min(stack.shape[-2:]) for stack in split.training)
    size, (patch, count) = config.train.size or "base", _WINDOWS[config.network.dim, accelerator]
    why = f"train.size={size}, for {'an accelerator' if accelerator else 'a CPU'}"
    network = SIZES[config.network.dim][size]
    folded = config.network.stem if "stem" in config.network.model_fields_set else network.get("stem", 1)
    depth = min(network["depth"], max(1, int(math.log2(max(smallest, 8) / 4 / folded))))
    config = _choose(config, "network", {**network, "depth": depth}, why)
    config = _choose(config, "train", {"patch_px": patch}, why)
    window = WindowDrawer(split.training, config.window_px, config.thinning).window_px
    batch = round(count * math.prod(patch) / math.prod(window))  # the same pixels per step
    train: dict[str, Any] = {"batch_size": min(max(1, batch), _LARGEST_BATCH)}
    if config.network.anchor:
        optimizer = config.train.optimizer if "optimizer" in config.train.model_fields_set else "muon"
        train |= {"optimizer": optimizer, **_COURSES[optimizer]}
    config = _choose(config, "train", train, why)
    # plain networks need float32: their outputs are log-rates, not corrections
    if config.network.anchor and not accelerator and _has_bf16():
        config = _choose(config, "train", {"precision": "bf16-mixed"}, "faster here, and as good")
    return _choose_steps(_choose_range(config, split), split, accelerator)


def _choose_range(config: RunConfig, split: Split) -> RunConfig:
    purpose, seed = config.train.purpose, config.train.seed
    for name, (value, why) in _OF_SAMPLES.items() if purpose == "sample" else ():
        if name != "binned" or config.thinning.ceiling is None:
            config = _choose(config, "thinning", {name: value}, why)
    thinning = config.thinning
    own = brightest = round(brightest_db(split.training, config.window_px, seed), 2)
    if thinning.binned:
        brightest = max(own, round(brightest_db(split.training, config.window_px, seed, True), 2))
    if thinning.max_db is not None and thinning.max_db > brightest:
        log.info("thinning.max_db=%g, not %g: the brightest window has no more", brightest, thinning.max_db)
    brightest = min(brightest, math.inf if thinning.max_db is None else thinning.max_db)
    if "min_db" in thinning.model_fields_set and brightest <= thinning.min_db:
        told = f"thinning.min_db is {thinning.min_db:g}, but the brightest training window has {brightest:g} dB"
        raise ConfigError(f"{told}; set thinning.min_db to {brightest - 20:g}")
    below, why = _RANGES_DB[purpose]
    if config.camera is not None and config.network.anchor and purpose in (None, "denoise"):
        below, why = _OF_CAMERAS
        config = _choose(config, "thinning", {"read_noise": True}, "images of less light have as much of it")
    own = min(own, brightest)
    darkest = round(min(max(_DARKEST_DB, own - below), own - 10), 2)
    why = f"{own - darkest:g} dB below the brightest window; {why}"
    return _choose(_update(config, "thinning", {"max_db": brightest}), "thinning", {"min_db": darkest}, why)


def _choose_steps(config: RunConfig, split: Split, accelerator: bool) -> RunConfig:
    if "steps" not in config.train.model_fields_set:
        steps, why = _ACCELERATOR_STEPS, "on an accelerator"
        if not accelerator:
            seconds = _seconds_per_step(config, split)
            steps = 100 * round(min(max(_CPU_MINUTES * 60 / seconds, _CPU_STEPS[0]), _CPU_STEPS[1]) / 100)
            steps = max(20, min(steps, int(_CPU_MINUTES_AT_MOST * 60 / seconds)))
            why = f"at {seconds:.2g} s each about {max(1, round(steps * seconds / 60))} minutes"
        chosen = {"steps": steps}
        if "patience" not in config.train.model_fields_set:
            chosen["patience"] = _PATIENCE
            why += f"; ends earlier after {_PATIENCE} validations without a better one, and keeps the best"
        config = _choose(config, "train", chosen, why)
    every = max(_LEAST_EVERY, config.train.steps // _VALIDATIONS)
    return _choose(config, "train", {"validate_every": every}, f"of {config.train.steps} steps")


def _has_bf16() -> bool:
    """Return whether the processor has bfloat16 instructions; emulation is slow."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _seconds_per_step(config: RunConfig, split: Split) -> float:
    """Return the time of a training step on this machine, drawing of windows included; the first step is a warm-up."""
    network = UNet(**config.network.model_dump())
    drawer = WindowDrawer(split.training, config.window_px, config.thinning, config.train.min_photons)
    times = []
    for number in range(3):
        start = time.monotonic()
        photons = drawer.batch([number], config.train.batch_size).photons
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16-mixed"):
            log_rate = network(photons)
        log_rate.sum().backward()
        times.append(time.monotonic() - start)
    return max(min(times[1:]), 1e-4)


def _choose(config: RunConfig, section: str, values: dict[str, Any], why: str) -> RunConfig:
    """Fill in values of a section that were not set or are None, and log them with the reason."""
    own = getattr(config, section)
    open_ = {k: v for k, v in values.items() if k not in own.model_fields_set or getattr(own, k) is None}
    words = [f"{section}.{k}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in open_.items()]
    if words:
        log.info("%s: %s", ", ".join(words), why)
    return _update(config, section, open_)


def _update(config: RunConfig, section: str, values: dict[str, Any]) -> RunConfig:
    """Return settings with new values in a section, which count as set from now on."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
