"""What training chooses by itself, from the images and the machine, where nothing was set."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from gap_bioimage.errors import ConfigError
from gap_bioimage.network import UNet
from gap_bioimage.training.patches import brightest_db

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from pydantic import BaseModel

    from gap_bioimage.config import NetworkConfig, RunConfig, TrainConfig
    from gap_bioimage.training.stacks import Split

log = logging.getLogger(__name__)

_PLANES_OF_A_VOLUME = 8  # with fewer a network sees the planes one by one
_CPU_MINUTES = 8.0
_CPU_STEPS = (400, 4000)
_ACCELERATOR_STEPS = 10_000
_RANGE_DB, _DARKEST_DB = 40.0, -40.0
_VALIDATIONS, _PATIENCE = 20, 6
_SIZES: dict[tuple[int, bool], tuple[dict[str, Any], dict[str, Any]]] = {
    # dimensions, accelerator: network, training
    (2, False): ({"depth": 4, "start_filts": 16}, {"patch_px": (64, 64), "batch_size": 8}),
    (2, True): ({"depth": 5, "start_filts": 32}, {"patch_px": (128, 128), "batch_size": 16}),
    (3, False): ({"depth": 3, "start_filts": 12}, {"patch_px": (12, 48, 48), "batch_size": 2}),
    (3, True): ({"depth": 4, "start_filts": 32}, {"patch_px": (16, 64, 64), "batch_size": 8}),
}


def choose_dim(config: RunConfig, images: Sequence[xr.DataArray]) -> RunConfig:
    """Choose a 3D network for volumes, and a 2D one for planes."""
    if "dim" in config.network.model_fields_set:
        return config
    planes = [int(image.sizes.get("z", 1)) for image in images]
    patch = config.train.patch_px
    volumes = bool(planes) and min(planes) >= _PLANES_OF_A_VOLUME
    dim = len(patch) if patch is not None else 3 if volumes or config.network.z_conv_stage is not None else 2
    seen = f"the images have {min(planes, default=1)} planes" if max(planes, default=1) > 1 else "the images are planes"
    log.info("network.dim=%d: %s", dim, "as many as train.patch_px" if patch is not None else seen)
    return _update(config, "network", {"dim": dim})


def choose_sizes(config: RunConfig, split: Split, accelerator: bool) -> RunConfig:
    """Choose the network's size, windows, batch, range and number of steps, where they were not set.

    Parameters
    ----------
    config
        With the dimensions and channels that hold.
    split
        The images.
    accelerator
        Whether training runs on something faster than a CPU.

    Raises
    ------
    ConfigError
        If ``thinning.min_db`` is above the brightest window.
    """
    smallest = min(min(stack.shape[-2:]) for stack in split.training)
    network, train = _SIZES[config.network.dim, accelerator]
    deepest = max(1, int(math.log2(max(smallest, 8) / 4)))
    chosen = _unset(config.network, {**network, "depth": min(network["depth"], deepest)})
    config = _update(config, "network", chosen)
    sizes = {**_unset(config.train, train)}
    if config.train.patch_px is None:
        sizes["patch_px"] = train["patch_px"]
    config = _update(config, "train", sizes)
    config = _choose_range(config, split)
    chosen = {**{f"network.{k}": v for k, v in chosen.items()}, **{f"train.{k}": v for k, v in sizes.items()}}
    if chosen:
        machine = "an accelerator" if accelerator else "a CPU"
        log.info("%s: for %s", ", ".join(f"{k}={_plain(v)}" for k, v in chosen.items()), machine)
    return _choose_steps(config, accelerator)


def _choose_range(config: RunConfig, split: Split) -> RunConfig:
    thinning, chosen = config.thinning, {}
    if thinning.max_db is None:
        chosen["max_db"] = round(brightest_db(split.training, config.window_px, config.train.seed), 2)
    brightest = chosen.get("max_db", thinning.max_db)
    assert brightest is not None  # noqa: S101
    if "min_db" not in thinning.model_fields_set:
        chosen["min_db"] = round(min(max(_DARKEST_DB, brightest - _RANGE_DB), brightest - 10), 2)
        log.info(
            "thinning.min_db=%g: %g dB below the brightest window; set -40 to generate from nothing",
            *(chosen["min_db"], brightest - chosen["min_db"]),
        )
    elif brightest <= thinning.min_db:
        raise ConfigError(
            f"thinning.min_db is {thinning.min_db:g}, but the brightest training window has {brightest:g} dB; "
            f"set thinning.min_db to {brightest - 20:g}"
        )
    return _update(config, "thinning", chosen)


def _choose_steps(config: RunConfig, accelerator: bool) -> RunConfig:
    if "steps" in config.train.model_fields_set:
        return config
    steps, why = _ACCELERATOR_STEPS, "on an accelerator"
    if not accelerator:
        seconds = _seconds_per_step(config)
        steps = 100 * round(min(max(_CPU_MINUTES * 60 / seconds, _CPU_STEPS[0]), _CPU_STEPS[1]) / 100)
        why = f"at {seconds:.2g} s each about {max(1, round(steps * seconds / 60))} minutes"
    every = max(20, steps // _VALIDATIONS)
    chosen = {"steps": steps, **_unset(config.train, {"validate_every": every, "patience": _PATIENCE})}
    log.info(
        "train.steps=%d: %s; ends earlier after %d validations without a better one, and keeps the best",
        *(steps, why, chosen.get("patience") or config.train.patience or 0),
    )
    return _update(config, "train", chosen)


def _seconds_per_step(config: RunConfig) -> float:
    """Time a step on this machine, the first one not counted."""
    network = UNet(**config.network.model_dump())
    photons = torch.ones(config.train.batch_size, config.network.channels, *config.window_px)
    times = []
    for _ in range(3):
        start = time.monotonic()
        network(photons).sum().backward()
        times.append(time.monotonic() - start)
    return max(min(times[1:]), 1e-4)


def _unset(section: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in section.model_fields_set}


def _update(config: RunConfig, section: str, values: dict[str, Any]) -> RunConfig:
    """Return settings with other values in a section; these count as set from now on."""
    part: NetworkConfig | TrainConfig = getattr(config, section)
    return config.model_copy(update={section: part.model_copy(update=values)})


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
