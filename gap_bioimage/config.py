"""All settings, as frozen pydantic models that are read from and written to yaml."""

import difflib
import math
import re
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
def _config_errors(model: type[BaseModel]) -> Iterator[None]:
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
        message = {"missing": "is missing", "tuple_type": "expected a list, [a, b]"}.get(error["type"], error["msg"])
        message = re.sub("Input should be|String should (have|match)", "expected", message)
        return f"{name}: {message.removeprefix('Value error, ')}{given}"
    owner: Any = model
    for part in error["loc"][:-1]:
        if isinstance(part, str):
            owner = owner.model_fields[part].annotation
            owner = next(iter(typing.get_args(owner)), owner)  # list[Author] -> Author
    known = getattr(owner, "model_fields", {})
    section = ".".join(location[:-1])
    names = {key: f"{section}.{key}" if section else key for key in known}
    if not section:  # the key may belong to one of the sections
        for key, field in known.items():
            names |= {inner: f"{key}.{inner}" for inner in getattr(field.annotation, "model_fields", {})}
    nearest = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.4)
    return f"unknown key {name!r}" + (f"; did you mean {names[nearest[0]]!r}?" if nearest else "")


class Config(BaseModel):
    """Base of the sections: immutable; unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        with _config_errors(type(self)):
            super().__init__(**values)

    # pydantic's mark of its own __init__: it then builds nested sections itself and reports all their errors together
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; ConfigError lists wrong values, and unknown keys with the nearest known one."""
        with _config_errors(cls):
            return cls.model_validate(values)


class NetworkConfig(Config):
    """The residual U-Net; names follow the original GAP code."""

    dim: Literal[2, 3] = Field(2, description="spatial dimensions; default: those of the images")
    channels: PositiveInt = Field(1, description="image channels, denoised jointly")
    anchor: bool = Field(True, description="correct smoothed counts, on the scale of the photons; False: a plain U-Net")
    anchor_version: Literal[1, 2, 3, 4, 5, 6, 7] = Field(
        4,
        description="1: filters weighted by errors; 2: by a local fit; 3: in volumes along edges; 4: bounded changes; "
        "5: for volumes that change slowly along z, such as movies; 6, 7: 4, 5 for channels that share structures; "
        "4 to 7 are chosen by held-out photons",
    )
    levels: PositiveInt = Field(10, le=100, description="plain U-Nets: sine encodings sin(x 10^-i), i < levels")
    log1p: bool = Field(True, description="plain U-Nets: add log(1 + x) to the encoding; the original has none")
    depth: int = Field(5, ge=1, le=8, description="resolution levels of the U-Net")
    start_filts: PositiveInt = Field(32, le=1024, description="filters of the first level, doubled at each further one")
    up_mode: Literal["transpose", "upsample"] = "transpose"
    merge_mode: Literal["add", "concat"] = "add"
    z_conv_stage: PositiveInt | None = Field(None, description="3D only: levels that convolve along z; default: all")
    stem: Literal[1, 2, 4] = Field(1, description="pixels in y and x folded into one before the U-Net, to save time")

    @model_validator(mode="before")
    @classmethod
    def _plain_if_encoded(cls, values: Any) -> Any:
        """Read settings with an encoding, as all had before anchors existed, as those of a plain U-Net."""
        if not isinstance(values, dict):
            return values
        if "anchor" not in values:
            return {**values, "anchor": False} if "levels" in values or "log1p" in values else values
        # complete sections, recognised by their levels, lack the version if they are older than version 2
        return {"anchor_version": 1, **values} if "levels" in values and values["anchor"] else values

    @model_validator(mode="after")
    def _z_stage_needs_z(self) -> Self:
        if "dim" in self.model_fields_set and self.dim == 2 and self.z_conv_stage is not None:
            raise ValueError("z_conv_stage is for networks of dim 3 only")
        return self


class ThinningConfig(Config):
    """How photons are split into input and target, and how bright inputs are."""

    min_db: float = Field(-40.0, ge=-100, description="darkest input, pseudo-PSNR in dB (10 log10 photons per pixel)")
    max_db: float | None = Field(None, description="brightest input in dB; default: that of the training images")
    max_fraction: float = Field(0.8, gt=0, lt=1, description="largest fraction of the photons in the input")
    read_noise: bool = Field(
        False, description="keep all read noise in thinned camera images; default: in anchored networks not for samples"
    )
    binned: float = Field(0.0, ge=0, le=1, description="share of windows with 2 x 2 pixels summed; 0.4 for samples")
    ceiling: PositiveInt | None = Field(None, description="largest count: the number of one-bit frames per image")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_db is not None and self.max_db <= self.min_db:
            raise ValueError(f"max_db {self.max_db:g} must be above min_db {self.min_db:g}")
        if self.binned and self.ceiling is not None:
            raise ValueError("binned needs counts without a ceiling, since sums of pixels have another; leave it out")
        return self


class TrainConfig(Config):
    """Training length, optimiser, windows and validation."""

    steps: PositiveInt = Field(20_000, le=10**8, description="default: a few minutes on a CPU, 10 000 on accelerators")
    patience: PositiveInt | None = Field(
        None, description="validations of the second half without improvement after which training ends"
    )
    batch_size: PositiveInt = Field(16, le=4096, description="windows per step and device; default: by their size")
    patch_px: tuple[PositiveInt, ...] | None = Field(None, description="window ([z,] y, x); default: by the machine")
    min_photons: NonNegativeInt = Field(50, description="windows with fewer photons are redrawn: less background")
    optimizer: Literal["adam", "muon"] = Field("adam", description="default: muon for anchored networks")
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = Field(200, description="steps of rising rate; in the second half it falls to 1 %")
    gradient_clip: PositiveFloat = 0.5
    total_weight: NonNegativeFloat | None = Field(
        None, description="weight of the total in the loss; default 1, plain 0"
    )
    brightness_power: NonNegativeFloat | None = Field(
        None, description="power of an image's photons that weights its loss; default: 0.7, for older networks 0"
    )
    ema_decay: float | None = Field(
        None, ge=0, lt=1, description="decay of an exponential moving average of the weights, used in their place"
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="default: bf16-mixed for anchored networks on CPUs that support it"
    )
    channels_last: bool = True
    validate_every: PositiveInt = Field(500, description="steps between validations; default: a twentieth of all steps")
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="held-out share of images, or of their longest axis")
    validation_windows: PositiveInt = Field(32, le=100_000)
    purpose: Literal["denoise", "sample", "generate"] | None = Field(
        None, description="use of the model, which sets the range of brightness; default: all uses"
    )
    size: Literal["small", "base", "large"] | None = Field(None, description="size of the network; default: base")
    repeats: Literal["t"] | None = Field(
        None,
        description="axis of noisy repeats of a scene that hardly moves: one frame is the input, the nearest are "
        "the target; default: t if pixels of the camera's images share noise",
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

    gain: PositiveFloat = Field(description="ADU per electron; of electron multipliers, per effective photon")
    offset: float = Field(description="ADU without light")
    read_noise: NonNegativeFloat = Field(0.0, description="electrons RMS per pixel, digitisation noise included")
    saturation: float | None = Field(None, description="ADU at and above which pixels are saturated")
    multiplying: bool = Field(False, description="EMCCD, photomultiplier: effective photons, fewer than were detected")
    maps: str | None = Field(
        None, description="TIFF next to the yaml, two channels: offset (ADU) and read noise (electrons) per pixel"
    )
    measured: dict[str, Any] = Field({}, description="how this was measured: method, images, intervals, fit")

    @model_validator(mode="after")
    def _saturation_above_offset(self) -> Self:
        if self.saturation is not None and self.saturation <= self.offset:
            raise ValueError(f"saturation is {self.saturation:g}, expected more than the offset of {self.offset:g} ADU")
        return self


class SamplingConfig(Config):
    """How photons are added to draw a posterior sample or to generate an image."""

    schedule: Literal["sqrt", "geometric"] = Field(
        "sqrt",
        description="sqrt: equal steps in 1/sqrt(photons), with the variance lost to frozen rates restored; "
        "geometric: that of the paper, each step adds beta times the photons",
    )
    steps: PositiveInt = Field(10, le=10_000, description="network evaluations per sample of the sqrt schedule")
    beta: PositiveFloat = Field(0.1, description="growth per step of the geometric schedule")
    stop_db: float | None = Field(None, description="dB to stop at, in the trained range; default: 20 above the image")


class RunConfig(Config):
    """All settings of a training run, as stored in its ``config.yaml``."""

    network: NetworkConfig = NetworkConfig()
    thinning: ThinningConfig = ThinningConfig()
    train: TrainConfig = TrainConfig()
    camera: Camera | None = Field(None, description="camera of the images, if they are not counts")

    @model_validator(mode="after")
    def _patch_fits(self) -> Self:
        if (patch := self.train.patch_px) is None:
            return self
        expected = (self.network.dim,) if "dim" in self.network.model_fields_set else (2, 3)
        if len(patch) not in expected:
            numbers = " or ".join(map(str, expected))
            raise ValueError(f"train.patch_px has {len(patch)} entries, expected {numbers} (network.dim)")
        if math.prod(patch) < _LEAST_PATCH:
            raise ValueError(f"train.patch_px is {patch}, too small to learn where photons land; give 8 x 8 px or more")
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
        values = self.model_dump(mode="json")
        if "dim" not in self.network.model_fields_set:  # other settings, such as patch_px, may decide it
            del values["network"]["dim"]
        return yaml.safe_dump(values, sort_keys=False)


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
    old, new = _flat(before), _flat(now)
    texts = {n: f"{n}={old.get(n)}, not {new.get(n)}" for n in {**old, **new} if old.get(n) != new.get(n)}
    return {name: text if len(text) < _SHORT else name for name, text in texts.items()}  # without long hashes


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    pairs = ((name, section if isinstance(section, dict) else {"": section}) for name, section in sections.items())
    return {f"{name}.{key}".rstrip("."): value for name, section in pairs for key, value in section.items()}
