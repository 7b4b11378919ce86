"""Trained models from run folders, checkpoints (ours and the original GAP's), bare weights and bioimage.io zips."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gap_bioimage import pretrained
from gap_bioimage.camera.camera import Detector, read_camera
from gap_bioimage.config import Camera, NetworkConfig
from gap_bioimage.errors import CheckpointError, ConfigError
from gap_bioimage.foreign import describe, network_config, read_safetensors, read_weights
from gap_bioimage.network import UNet

CHECKPOINT_KEY = "gap_bioimage"
"""Section of gap-bioimage checkpoints that describes the model."""
CAMERA_FILE, CAMERA_MAPS = "camera.yaml", "camera_maps.tif"
"""The camera in a run folder, and the maps that ``write_camera`` writes next to it."""
CameraLike = Detector | Camera | str | Path | None
"""A camera, its yaml file, "model" for the camera of the model's training, or None if images are counts."""
_MODULE_ARGUMENTS = "box_px rounded background ceiling shift n_samples n_steps seed gain brightest window_px".split()
"""Arguments of the modules in exported zips that are not those of the network."""
_AVERAGE = "average.module."  # averaged weights, stored in addition to the last ones
_KINDS = {"run": "training run", "checkpoint": "checkpoint of gap-bioimage"}


@dataclass(frozen=True)
class History:
    """Where a model comes from."""

    # third-party weights: where each setting was found: "given", "sidecar", "hyper_parameters", "weights", "default"
    settings_from: dict[str, str] | None = None
    range_from: str = "training"  # where the trained range was found: "training", one of the above, or "assumed"
    epochs: int | None = None
    steps: int | None = None
    validation_loss: float | None = None  # the lowest, nats per photon
    # name, origin, trained range and sha256 of the weights that training started from
    init: dict[str, Any] | None = None
    training: dict[str, Any] | None = None  # settings of the training, section ``train``
    thinning: dict[str, Any] | None = field(default=None, compare=False)  # section ``thinning``


@dataclass(frozen=True)
class Model:
    """A trained network."""

    network: UNet  # counts (b, c, [z,] y, x) float32 to log-rate of the same shape, in evaluation mode
    config: NetworkConfig
    trained_range_db: tuple[float, float]  # pseudo-PSNR of the inputs it was trained on, darkest and brightest
    camera: Detector | None = None  # camera of the training images; None if these were counts
    n_frames: int | None = None  # one-bit frames per image; None if counts have no such limit
    history: History = History()
    source: Path = Path()  # file that it was read from
    # "run", "checkpoint" (ours), "original GAP checkpoint", "state_dict" (third-party) or "bioimage.io zip"
    origin: str = "run"

    def __post_init__(self) -> None:
        if self.camera is not None:
            object.__setattr__(self, "camera", self.camera.for_network(self.network.anchored))

    @property
    def kind(self) -> str:
        """A short description, such as "original GAP checkpoint, 3D anisotropic, z in 1 of 3 levels"."""
        config, stages = self.config, self.config.z_conv_stage
        words = [_KINDS.get(self.origin, self.origin), f"{config.dim}D"]
        if config.channels > 1:
            words.append("RGB" if config.channels == 3 else f"{config.channels} channels")
        if stages is not None and stages < config.depth:
            words[1] += " anisotropic"
            words.append(f"z in {stages} of {config.depth} levels")
        return ", ".join(words)

    @property
    def brightest(self) -> float:
        """Photons per pixel in the brightest window of the training."""
        return float(10 ** (self.trained_range_db[1] / 10))

    def describe(self) -> dict[str, Any]:
        """Return a description in plain values: kind, network, trained range, camera, history."""
        from gap_bioimage.inference.reach import receptive_field_px

        camera, history = self.camera, asdict(self.history)
        del history["training"], history["thinning"]
        return {
            "source": str(self.source),
            "origin": self.origin,
            "kind": self.kind,
            **self.config.model_dump(mode="json"),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "receptive_field_px": receptive_field_px(self.network),
            "step_px": list(self.network.step_px),
            "trained_range_db": list(self.trained_range_db),
            "camera": None if camera is None else camera.camera.model_dump(mode="json", exclude={"measured"}),
            "one_bit_frames": self.n_frames,
            **history,
        }

    def camera_for(self, camera: CameraLike) -> Detector | None:
        """Return the requested camera, with "model" for the model's own; None if images are counts."""
        if camera == "model":
            return self.camera
        return None if camera is None else Detector.of(camera).for_network(self.network.anchored)


def load_model(path: str | Path, hyper_parameters: Mapping[str, Any] | None = None) -> Model:
    """Load a model from a run folder, a checkpoint (ours or the original GAP's), bare weights or an exported zip.

    Files are read as weights only: code in them is never run. Bare weights (a state_dict, as .pt, .pth, .ckpt or
    .safetensors) have no description of the model. Its settings follow from the names and shapes of the tensors; the
    remaining ones are read from ``weights.yaml`` next to ``weights.pt``, or taken from ``hyper_parameters``.

    Parameters
    ----------
    path
        The folder or file; or "nuclei", a model that comes with the package.
    hyper_parameters
        For third-party weights: settings of ``NetworkConfig``, and ``trained_range_db``. They override settings in the
        file or next to it, and must agree with the weights.

    Raises
    ------
    CheckpointError
        If the path holds no such model, its settings are unknown or contradict its weights, or ``hyper_parameters``
        are given for a model that has a description.
    """
    path, origin = pretrained.resolve(path), "checkpoint"
    if path.is_dir():
        checkpoints = [file for name in ("best.ckpt", "last.ckpt") if (file := path / name).is_file()]
        if not checkpoints:
            raise CheckpointError(f"{path} is a folder without best.ckpt or last.ckpt; expected a training run")
        path, origin = checkpoints[0], "run"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a run folder, a checkpoint or a model zip")
    model = _from_zip(path) if _is_bioimageio_zip(path) else _from_file(path, origin, hyper_parameters or {})
    if hyper_parameters and model.history.settings_from is None:
        raise CheckpointError(f"hyper_parameters are for third-party weights, {path} has its own; leave them out")
    return model


def check_model(model: Any) -> None:
    """Refuse anything that is not a ``Model``, such as its path."""
    if not isinstance(model, Model):
        problem = f"the model is of type {type(model).__name__}, expected a Model"
        raise ConfigError(f"{problem}; give the result of train or load_model({str(model)[:80]!r})")


def _from_file(path: Path, origin: str, hyper_parameters: Mapping[str, Any]) -> Model:
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_weights(path, str(path))
    if CHECKPOINT_KEY in content:
        return _from_checkpoint(content, path, origin)
    weights, config, trained_range, *sources = describe(content, path, hyper_parameters)
    progress = (n if isinstance(n := content.get(k), int) and n > 0 else None for k in ("epoch", "global_step"))
    lightning = isinstance(content.get("state_dict"), dict) and not config.log1p
    origin = "original GAP checkpoint" if lightning else "state_dict"
    history = History(*sources, *progress)  # type: ignore[arg-type]
    return Model(_network(config, weights, path), config, trained_range, history=history, source=path, origin=origin)


def _from_checkpoint(content: dict[Any, Any], path: Path, origin: str) -> Model:
    section, weights = content[CHECKPOINT_KEY], content.get("state_dict")
    if not isinstance(weights, dict) or not any(str(key).endswith("conv_final.weight") for key in weights):
        raise CheckpointError(f"{path} holds no GAP network (no conv_final.weight); expected a GAP checkpoint")
    try:
        settings, (low, high), metrics = section["config"], section["trained_range_db"], section["metrics"]
        architecture, thinning = settings["network"], settings.get("thinning") or {}
        losses = [loss for row in metrics if (loss := row.get("validation_loss", float("nan"))) == loss]
        steps = metrics[-1].get("step") if metrics else None
        lowest, init, training = min(losses, default=None), section.get("init"), settings.get("train")
        n_frames = thinning.get("ceiling")
        history = History(steps=steps, validation_loss=lowest, init=init, training=training, thinning=thinning)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"the section gap_bioimage of {path} is invalid; train or copy the model again") from None
    file = path.parent / CAMERA_FILE
    camera = read_camera(file) if origin == "run" and file.is_file() else _camera(settings.get("camera"), path)
    config, averaged = network_config(architecture, path), any(key.startswith(_AVERAGE) for key in weights)
    network = _network(config, weights, path, _AVERAGE if averaged else "network.")
    return Model(network, config, (low, high), camera, n_frames, history, path, origin)


def _from_zip(path: Path) -> Model:
    """Read a zip exported by gap-bioimage: the state_dict, and the network's arguments from the RDF."""
    with zipfile.ZipFile(path) as archive:
        try:
            rdf = yaml.safe_load(archive.read("rdf.yaml"))
            section, entry = rdf["config"][CHECKPOINT_KEY], rdf["weights"]["pytorch_state_dict"]
            # if postprocessing does the sampling, the weights of the zip only copy photons
            module = section.get("sampler") or {**entry["architecture"], "source": entry["source"]}
            arguments = {k: v for k, v in module["kwargs"].items() if k not in _MODULE_ARGUMENTS}
            low, high = section["trained_range_db"]
            weights = read_weights(io.BytesIO(archive.read(module["source"])), str(path))
        except CheckpointError:
            raise
        except (zipfile.BadZipFile, zlib.error, RuntimeError):  # RuntimeError: an encrypted zip
            raise CheckpointError(f"{path} is damaged or encrypted; copy or download it again") from None
        except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
            problem = f"{path} is a bioimage.io zip, but not one that gap-bioimage exported"
            expected = "expected config.gap_bioimage and pytorch_state_dict weights in its rdf.yaml"
            raise CheckpointError(f"{problem}; {expected}") from None
    config, camera = network_config(arguments, path), _camera(section.get("camera"), path)
    network = _network(config, weights, path, "network.")
    return Model(network, config, (low, high), camera, section.get("ceiling"), source=path, origin="bioimage.io zip")


def _camera(stored: Any, path: Path) -> Detector | None:
    """Return the camera described in a file, without its maps; ignore values in zips that derive from its settings."""
    if stored is None:
        return None
    try:
        return Detector(Camera(**{k: stored[k] for k in Camera.model_fields if k in stored and k != "maps"}))
    except (ConfigError, TypeError):
        raise CheckpointError(f"the camera described in {path} is invalid; export or train the model again") from None


def _network(config: NetworkConfig, weights: dict[str, Any], path: Path, prefix: str = "") -> UNet:
    network = UNet(**config.model_dump())
    try:
        network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"the weights in {path} do not fit the network they describe: {first}") from None
    return network.eval().requires_grad_(False)


def _is_bioimageio_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return not {"rdf.yaml", "bioimageio.yaml"}.isdisjoint(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
