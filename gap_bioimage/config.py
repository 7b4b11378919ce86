"""All settings, as frozen pydantic models that are read from and written to yaml."""

import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from gap_bioimage.errors import ConfigError

_LEAST_PATCH = 64  # pixels
_SHORT = 80  # longest difference of settings, in characters, that a message shows


@contextmanager
def _told(model: type[BaseModel]) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise ConfigError("; ".join(error_sentence(model, e) for e in error.errors())) from None


def error_sentence(model: type[BaseModel], error: Any) -> str:
    """Return the sentence for one of pydantic's errors; for an unknown key it suggests the nearest known one."""
    location = [str(part) for part in error["loc"]]
    name = ".".join(location) or "config"
    if error["type"] != "extra_forbidden":
        given = "" if isinstance(error["input"], dict) else f" (given {error['input']!r})"
        told = "Input should be a list, [a, b]" if error["type"] == "tuple_type" else error["msg"]
        return f"{name}: {told.removeprefix('Value error, ')}{given}"
    owner: Any = model
    for part in error["loc"][:-1]:
        if isinstance(part, str):
            owner = owner.model_fields[part].annotation
            owner = next(iter(typing.get_args(owner)), owner)  # list[Author] -> Author
    known = getattr(owner, "model_fields", {})
    section = ".".join(location[:-1])
    names = {key: f"{section}.{key}" if section else key for key in known}
    if not section:  # the key may belong into one of the sections
        for key, field in known.items():
            names |= {inner: f"{key}.{inner}" for inner in getattr(field.annotation, "model_fields", {})}
    near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.0)
    return f"unknown key {name!r}" + (f"; did you mean {names[near[0]]!r}?" if near else "")


class Config(BaseModel):
    """Base of the sections: immutable; unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        with _told(type(self)):
            super().__init__(**values)

    # pydantic's mark of its own __init__: it then builds nested sections itself and reports all their errors together
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; ConfigError lists all wrong values and unknown keys, each with the nearest known."""
        with _told(cls):
            return cls.model_validate(values)


class NetworkConfig(Config):
    """The residual U-Net; names follow the original GAP code."""

    dim: Literal[2, 3] = Field(2, description="spatial dimensions; those of the images when not given")
    channels: PositiveInt = Field(1, description="image channels, denoised jointly")
    anchor: bool = Field(True, description="correct smoothed counts, on the scale of the photons; False: a plain U-Net")
    anchor_version: Literal[1, 2, 3] = Field(
        3, description="1: smoothed by errors; 2: by a fit; 3: volumes along edges"
    )
    levels: PositiveInt = Field(10, description="plain U-Nets: sine encodings sin(x 10^-i), i < levels")
    log1p: bool = Field(True, description="plain U-Nets: add log(1 + x) to the encoding; the original's have none")
    depth: int = Field(5, ge=1, le=8, description="resolution levels of the U-Net")
    start_filts: PositiveInt = Field(32, description="filters of the first level, doubled at each next one")
    up_mode: Literal["transpose", "upsample"] = "transpose"
    merge_mode: Literal["add", "concat"] = "add"
    z_conv_stage: PositiveInt | None = Field(None, description="3D only: levels that convolve along z; all by default")
    stem: Literal[1, 2, 4] = Field(1, description="fold so many pixels in y and x into one: less time at full size")

    @model_validator(mode="before")
    @classmethod
    def _encoding_is_of_plain_networks(cls, values: Any) -> Any:
        """Read settings with an encoding, as all had before anchors existed, as those of a plain U-Net."""
        if not isinstance(values, dict):
            return values
        if "anchor" not in values:
            return {**values, "anchor": False} if "levels" in values or "log1p" in values else values
        # complete sections, recognised by their levels, lack the version if they are older than version 2
        return {"anchor_version": 1, **values} if "levels" in values else values

    @model_validator(mode="after")
    def _z_stage_needs_z(self) -> Self:
        if "dim" in self.model_fields_set and self.dim == 2 and self.z_conv_stage is not None:
            raise ValueError("z_conv_stage is for dim 3 only")
        return self


class ThinningConfig(Config):
    """How photons are split into input and target, and how bright inputs are."""

    min_db: float = Field(-40.0, description="darkest input, pseudo-PSNR in dB (10 log10 photons per pixel)")
    max_db: float | None = Field(None, description="brightest input in dB; the training data's own when not given")
    max_fraction: float = Field(0.8, gt=0, lt=1, description="largest share of the photons used as input, not target")
    read_noise: bool = Field(
        False,
        description="thinned camera images keep all of the read noise, as images of less light do; "
        "chosen for anchored networks that are not for samples",
    )
    binned: float = Field(
        0.0, ge=0, le=1, description="share of windows with 2 x 2 pixels in one; when not given 0.4 with purpose=sample"
    )
    ceiling: PositiveInt | None = Field(None, description="largest count: the number of one-bit frames in each image")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_db is not None and self.max_db <= self.min_db:
            raise ValueError(f"max_db {self.max_db:g} must be above min_db {self.min_db:g}")
        if self.binned and self.ceiling is not None:
            raise ValueError("binned is for counts without a ceiling: sums of one-bit pixels have another")
        return self


class TrainConfig(Config):
    """Training length, optimiser, windows and validation."""

    steps: PositiveInt = Field(
        20_000, description="optimiser steps; when not given as many as a CPU does in minutes, 10 000 on accelerators"
    )
    patience: PositiveInt | None = Field(
        None, description="validations of the second half without a better one until training ends; chosen with steps"
    )
    batch_size: PositiveInt = Field(16, description="windows per step and device; chosen by their size when not given")
    patch_px: tuple[PositiveInt, ...] | None = Field(
        None, description="window (y, x) or (z, y, x); chosen by the machine when not given"
    )
    min_photons: NonNegativeInt = Field(50, description="windows with fewer are drawn anew: background is seen less")
    optimizer: Literal["adam", "muon"] = Field("adam", description="muon for anchored networks when not given")
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = Field(200, description="steps of a rising rate; in the second half it falls to 1 %")
    gradient_clip: PositiveFloat = 0.5
    total_weight: NonNegativeFloat | None = Field(
        None, description="weight of the likelihood of the photons' number; when not given 1, for plain networks 0"
    )
    brightness_power: NonNegativeFloat | None = Field(
        None, description="images weigh as their photons to this power; when not given 0.7, but for old networks 0"
    )
    ema_decay: float | None = Field(
        None, ge=0, lt=1, description="of an exponential moving average of the weights, used instead of the last ones"
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="bf16-mixed for anchored networks on CPUs that have it when not given"
    )
    channels_last: bool = True
    validate_every: PositiveInt = Field(
        500, description="steps between validations and checkpoints; when not given a twentieth of the steps"
    )
    validation_share: float = Field(
        0.1, gt=0, lt=0.5, description="share of the images, or of each image's largest axis, held out"
    )
    validation_windows: PositiveInt = 32
    purpose: Literal["denoise", "sample", "generate"] | None = Field(
        None, description="what the model is for, which decides the range of brightness; all of it when not given"
    )
    size: Literal["small", "base", "large"] | None = Field(None, description="of the network; base when not given")
    repeats: Literal["t"] | None = Field(
        None, description="axis of noisy repeats of a still scene: one frame is the input, others are the target"
    )
    tensorboard: bool = False
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _without_workers(cls, values: Any) -> Any:
        """Drop the number of worker processes, which older runs stored and which is no longer used."""
        return {name: v for name, v in values.items() if name != "workers"} if isinstance(values, dict) else values


class Camera(Config):
    """The response of a camera, ADU = offset + gain (e + N(0, read_noise^2)), as stored in ``camera.yaml``."""

    gain: PositiveFloat = Field(description="ADU per electron; where electrons are multiplied, per effective photon")
    offset: float = Field(description="ADU without light")
    read_noise: NonNegativeFloat = Field(0.0, description="electrons RMS per pixel, that of digitisation included")
    saturation: float | None = Field(None, description="ADU from which on pixels are saturated")
    multiplying: bool = Field(False, description="EMCCD, photomultiplier: effective photons, fewer than were detected")
    maps: str | None = Field(
        None, description="TIFF beside the yaml with two channels: offset (ADU) and read noise (electrons) per pixel"
    )
    measured: dict[str, Any] = Field({}, description="how this was measured: method, images, intervals, fit")

    @model_validator(mode="after")
    def _light_is_seen(self) -> Self:
        if self.saturation is not None and self.saturation <= self.offset:
            raise ValueError(f"saturation is {self.saturation:g}, expected more than the offset of {self.offset:g} ADU")
        return self


class SamplingConfig(Config):
    """How photons are added to draw a posterior sample or to generate an image."""

    schedule: Literal["sqrt", "geometric"] = Field(
        "sqrt",
        description="sqrt: steps equal in 1/sqrt(photons), with the variance of frozen rates restored; "
        "geometric: the paper's, each step adds beta times the photons",
    )
    steps: PositiveInt = Field(10, description="network evaluations per sample of the sqrt schedule")
    beta: PositiveFloat = Field(0.1, description="growth per step of the geometric schedule")
    stop_db: float | None = Field(
        None, description="dB to stop at; when not given 20 dB above the image, never beyond the trained range"
    )


class RunConfig(Config):
    """All settings of a training run, as stored in its ``config.yaml``."""

    network: NetworkConfig = NetworkConfig()
    thinning: ThinningConfig = ThinningConfig()
    train: TrainConfig = TrainConfig()
    camera: Camera | None = Field(None, description="the camera of the images, where they are no counts yet")

    @model_validator(mode="after")
    def _patch_fits(self) -> Self:
        patch = self.train.patch_px
        given = "dim" in self.network.model_fields_set
        if patch is not None and (len(patch) != self.network.dim if given else len(patch) not in (2, 3)):
            raise ValueError(f"train.patch_px has {len(patch)} entries, network.dim is {self.network.dim}")
        if patch is not None and math.prod(patch) < _LEAST_PATCH:
            raise ValueError(f"train.patch_px is {patch}: where photons land in it is learned, give at least 8 x 8 px")
        return self

    @property
    def window_px(self) -> tuple[int, ...]:
        """The training window, (y, x) or (z, y, x)."""
        return self.train.patch_px or ((128, 128) if self.network.dim == 2 else (16, 64, 64))

    @classmethod
    def read(cls, path: Path | str | None = None, overrides: list[str] | None = None) -> Self:
        """Read a yaml file and apply ``section.key=value`` overrides.

        Raises
        ------
        ConfigError
            If the file is not a yaml mapping, or a key or value is wrong.
        """
        values = read_yaml(path) if path is not None else {}
        values = {name: section for name, section in values.items() if section is not None}
        for override in overrides or []:
            _assign(values, override)
        return cls.from_dict(values)

    def to_yaml(self) -> str:
        """Return the settings as yaml."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a yaml mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not yaml: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, expected a mapping of settings")
    return values


def _assign(values: dict[str, Any], override: str) -> None:
    key, _, text = override.partition("=")
    *sections, last = key.strip().split(".")
    try:
        for section in sections:
            values = values.setdefault(section, {})
        values[last] = yaml.safe_load(text)
    except (AttributeError, TypeError, yaml.YAMLError):  # a value in place of a section, or no yaml
        text = ""
    if not last or not text:
        raise ConfigError(f"--set takes section.key=value, got {override!r}; for example --set train.steps=500")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that differ, by ``section.key``, each with its difference in words."""
    sections = [{n: of if isinstance(of, dict) else {"": of} for n, of in each.items()} for each in (before, now)]
    old, new = ({f"{n}.{k}".rstrip("."): v for n, of in each.items() for k, v in of.items()} for each in sections)
    told = {n: f"{n}={old.get(n)}, not {new.get(n)}" for n in {**old, **new} if old.get(n) != new.get(n)}
    return {name: words if len(words) < _SHORT else name for name, words in told.items()}  # not of long hashes
