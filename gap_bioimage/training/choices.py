"""What training chooses by itself, from the images, the machine and the purpose, where nothing was set."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import xarray as xr
from pydantic import BaseModel

from gap_bioimage.config import RunConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.network import UNet
from gap_bioimage.training.patches import Split, WindowDrawer, brightest_db

log = logging.getLogger(__name__)

_PLANES_OF_A_VOLUME = 8  # with fewer a network sees the planes one by one
_CPU_MINUTES, _CPU_MINUTES_AT_MOST = 8.0, 13.0
_CPU_STEPS = (400, 4000)
_ACCELERATOR_STEPS = 10_000
_DARKEST_DB = -40.0
# For each purpose the darkest input, dB below the brightest window, and why. Twice as many steps near the data's own
# brightness are worth about 1 dB there; samples begin there, too, and climb.
_RANGES_DB: dict[str | None, tuple[float, str]] = {
    None: (40.0, "for all purposes; train.purpose=denoise (--for denoise) learns more in as many steps"),
    "denoise": (20.0, "images of a hundredth of the photons are denoised too"),
    "sample": (20.0, "samples climb from the image's brightness up, to 10 dB beyond the brightest window"),
    "generate": (math.inf, "generation begins without any photons"),
}
_SAMPLE_FRACTION, _SAMPLE_BINNED = 0.95, 0.4
_VALIDATIONS, _LEAST_EVERY, _PATIENCE = 20, 20, 6
# Of anchored networks: the best of three or more for each
_COURSES: dict[str, dict[str, Any]] = {
    "muon": {"learning_rate": 4e-3, "warmup_steps": 20},
    "adam": {"learning_rate": 2e-3},
}
# Networks by dimensions; deeper and wider ones than base are no better after minutes on a CPU (benchmarks/networks.py),
# and were not after 4000 steps of an accelerator's batches, on few images.
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
# Windows and how many of them, by dimensions, and whether on an accelerator
_WINDOWS: dict[tuple[int, bool], tuple[tuple[int, ...], int]] = {
    (2, False): ((64, 64), 8),
    (2, True): ((128, 128), 16),
    (3, False): ((12, 48, 48), 2),
    (3, True): ((16, 64, 64), 8),
}
_LARGEST_BATCH = 64


def choose_dim(config: RunConfig, images: Sequence[xr.DataArray]) -> RunConfig:
    """Choose a 3D network for volumes, and a 2D one for planes."""
    if "dim" in config.network.model_fields_set:
        return config
    planes = min((int(image.sizes.get("z", 1)) for image in images), default=1)
    volumes = planes >= _PLANES_OF_A_VOLUME or config.network.z_conv_stage is not None
    patch = config.train.patch_px
    dim = len(patch) if patch is not None else 3 if volumes else 2
    log.info("network.dim=%d: the images have %d planes", dim, planes)
    # read anew, since settings may not suit these dimensions
    return RunConfig.from_dict(_update(config, "network", {"dim": dim}).model_dump(exclude_unset=True))


def choose_sizes(config: RunConfig, split: Split, accelerator: bool) -> RunConfig:
    """Choose the network's size, windows, batch, range and number of steps, where they were not set.

    Dimensions and channels hold already; ``accelerator`` means something faster than a CPU.
    """
    smallest = min(min(stack.shape[-2:]) for stack in split.training)
    size, (patch, count) = config.train.size or "base", _WINDOWS[config.network.dim, accelerator]
    window = WindowDrawer(split.training, config.train.patch_px or patch, config.thinning).window_px
    batch = round(count * math.prod(patch) / math.prod(window))  # of smaller ones more
    train: dict[str, Any] = {"batch_size": min(max(1, batch), _LARGEST_BATCH)}
    if config.network.anchor:
        optimizer = config.train.optimizer if "optimizer" in config.train.model_fields_set else "muon"
        train |= {"optimizer": optimizer, **_COURSES[optimizer]}
    network = _unset(config.network, SIZES[config.network.dim][size])
    if "depth" in network:
        folded = network.get("stem", config.network.stem)
        network["depth"] = min(network["depth"], max(1, int(math.log2(max(smallest, 8) / 4 / folded))))
    sizes = _unset(config.train, train)
    if config.train.patch_px is None:
        sizes["patch_px"] = patch
    config = _update(_update(config, "network", network), "train", sizes)
    chosen = {**{f"network.{k}": v for k, v in network.items()}, **{f"train.{k}": v for k, v in sizes.items()}}
    if chosen:
        words = ", ".join(f"{k}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in chosen.items())
        log.info("%s: train.size=%s, for %s", words, size, "an accelerator" if accelerator else "a CPU")
    config = _choose_range(config, split)
    return _choose_steps(config, split, accelerator)


def _choose_range(config: RunConfig, split: Split) -> RunConfig:
    thinning, purpose = config.thinning, config.train.purpose
    own = brightest = round(brightest_db(split.training, config.window_px, config.train.seed), 2)
    chosen: dict[str, float] = {}
    if purpose == "sample" and "binned" not in thinning.model_fields_set and thinning.ceiling is None:
        chosen["binned"] = _SAMPLE_BINNED
        log.info("thinning.binned=%g: samples become brighter than the images", _SAMPLE_BINNED)
    if chosen.get("binned", thinning.binned):
        brightest = max(own, round(brightest_db(split.training, config.window_px, config.train.seed, True), 2))
    if thinning.max_db is not None and thinning.max_db > brightest:
        log.info("thinning.max_db=%g, not %g: the brightest window has no more", brightest, thinning.max_db)
    brightest = brightest if thinning.max_db is None else min(brightest, thinning.max_db)
    chosen["max_db"], own = brightest, min(own, brightest)
    if purpose == "sample" and "max_fraction" not in thinning.model_fields_set:
        chosen["max_fraction"] = _SAMPLE_FRACTION
        log.info("thinning.max_fraction=%g: samples begin with all photons of an image", _SAMPLE_FRACTION)
    if "min_db" not in thinning.model_fields_set:
        below, why = _RANGES_DB[purpose]
        chosen["min_db"] = round(min(max(_DARKEST_DB, own - below), own - 10), 2)
        told = "thinning.min_db=%g: %g dB below the brightest window; %s"
        log.info(told, chosen["min_db"], own - chosen["min_db"], why)
    elif brightest <= thinning.min_db:
        raise ConfigError(
            f"thinning.min_db is {thinning.min_db:g}, but the brightest training window has {brightest:g} dB; "
            f"set thinning.min_db to {brightest - 20:g}"
        )
    return _update(config, "thinning", chosen)


def _choose_steps(config: RunConfig, split: Split, accelerator: bool) -> RunConfig:
    if "steps" not in config.train.model_fields_set:
        config = _update(config, "train", _steps_and_patience(config, split, accelerator))
    every = max(_LEAST_EVERY, config.train.steps // _VALIDATIONS)
    return _update(config, "train", _unset(config.train, {"validate_every": every}))


def _steps_and_patience(config: RunConfig, split: Split, accelerator: bool) -> dict[str, Any]:
    steps, why = _ACCELERATOR_STEPS, "on an accelerator"
    if not accelerator:
        seconds = _seconds_per_step(config, split)
        steps = 100 * round(min(max(_CPU_MINUTES * 60 / seconds, _CPU_STEPS[0]), _CPU_STEPS[1]) / 100)
        steps = max(20, min(steps, int(_CPU_MINUTES_AT_MOST * 60 / seconds)))
        why = f"at {seconds:.2g} s each about {max(1, round(steps * seconds / 60))} minutes"
    chosen = {"steps": steps, **_unset(config.train, {"patience": _PATIENCE})}
    log.info(
        "train.steps=%d: %s; ends earlier after %d validations without a better one, and keeps the best",
        *(steps, why, chosen.get("patience") or config.train.patience or 0),
    )
    return chosen


def _seconds_per_step(config: RunConfig, split: Split) -> float:
    """Time a step on this machine, with the drawing of its windows, the first one not counted."""
    network = UNet(**config.network.model_dump())
    drawer = WindowDrawer(split.training, config.window_px, config.thinning, config.train.min_photons)
    times = []
    for number in range(3):
        start = time.monotonic()
        network(drawer.batch([number], config.train.batch_size).photons).sum().backward()
        times.append(time.monotonic() - start)
    return max(min(times[1:]), 1e-4)


def _unset(section: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in section.model_fields_set}


def _update(config: RunConfig, section: str, values: dict[str, Any]) -> RunConfig:
    """Return settings with other values in a section; these count as set from now on."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
