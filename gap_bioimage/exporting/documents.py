"""The documents in a zip: model description (RDF), README (from ``readme.md.jinja``) and cover.

The RDF is written in format 0.5.9 with plain strings, not through bioimageio.spec's writer: newer formats write files
as objects, which Fiji's engine and bioimageio.core up to 0.10.4 cannot read. Custom postprocessing needs 0.5.10.
"""

import datetime
import functools
import hashlib
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gap_bioimage.errors import CardError
from gap_bioimage.exporting import weights
from gap_bioimage.exporting.card import LONGEST_DESCRIPTION, Card
from gap_bioimage.exporting.kinds import HOOK_FILE, Product
from gap_bioimage.exporting.measures import Measured, Sizes
from gap_bioimage.inference.reach import bytes_per_px, round_up
from gap_bioimage.model import Model
from gap_bioimage.sampler import GAIN, WINDOW_PX

FORMAT_VERSION, FORMAT_WITH_CUSTOM = "0.5.9", "0.5.10"
TEST_INPUT, COVER, README = "test_photons.npy", "cover.png", "README.md"
ONLY_CORE = "Runs only in bioimageio.core >= 0.10.3, not in Fiji or ilastik."
"""Notice for users of a zip with custom postprocessing."""
_TAGS = ("denoising", "photon-counting", "poisson", "gap", "unet", "pytorch")
_LINKS = ["deepimagej/deepimagej", "ilastik/ilastik"]  # ids in the zoo of the programs that run a portable zip
_TILE_PX = {2: 512, 3: 64}
_fill = functools.partial(textwrap.fill, width=110, break_long_words=False, break_on_hyphens=False)
_PANEL_PX, _LARGEST_PX, _LINE_PX = 400, 256, 2
_LIMITS = {
    "known_biases": "It has learnt the structures, densities and exposures of its training images, and denoises other "
    "images as if they were like those.",
    "risks": "A denoised image is the mean of all images that are compatible with the photons: details that these do "
    "not support are smooth or absent, and sharp ones may still be wrong.",
    "recommendations": "Denoise one random half of your photons and compare the result with the other half; look at "
    "samples of the posterior before you trust a detail.",
}


def describe(folder: Path, card: Card, product: Product, measured: Measured) -> dict[str, Any]:
    """Return the RDF of a zip whose weights, architecture, test tensors, cover and README are in ``folder``."""
    people = [author.model_dump(mode="json", exclude_none=True) for author in card.authors]
    facts = _model_facts(product.model, card) | {"inference_time": measured.speed}
    return _filled({
        "format_version": FORMAT_WITH_CUSTOM if product.operations else FORMAT_VERSION,
        "type": "model",
        "id": card.identifier,
        "name": card.name,
        "description": description_of(card, custom=bool(product.operations)),
        "authors": people,
        "maintainers": [person.model_dump(mode="json", exclude_none=True) for person in card.maintainers],
        "packaged_by": people[:1],
        "uploader": card.uploader and card.uploader.model_dump(mode="json", exclude_none=True),
        "cite": card.citations,
        "license": card.license,
        "tags": _tags(card, product),
        "links": [] if product.operations else _LINKS,
        "version": card.version,
        "version_comment": card.version_comment,
        "git_repo": card.git_repo,
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "documentation": README,
        "covers": [COVER],
        "attachments": [_file(folder, weights.SAMPLER_WEIGHTS)] if product.hook else [],
        "training_data": card.dataset and {"id": card.dataset},
        "inputs": [_input(folder, measured.sizes, product)],
        "outputs": [_output(folder, measured.sizes, product)],
        "weights": _weights(folder, product, people),
        "config": {"bioimageio": _filled(facts), "gap_bioimage": {**product.facts, "measured": measured.facts}},
    })  # fmt: skip


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, [], (), {})}


def description_of(card: Card, *, custom: bool) -> str:
    """Return the card's description, with `ONLY_CORE` for custom postprocessing; raise `CardError` if too long."""
    text = card.description.rstrip()
    stop = "" if text.endswith((".", "!", "?")) else "."
    text = f"{text}{stop} {ONLY_CORE}" if custom else card.description
    if (excess := len(text) - LONGEST_DESCRIPTION) > 0:
        raise CardError(f"description: {excess} characters too long, as the zip adds {ONLY_CORE!r}; shorten it")
    return text


def _tags(card: Card, product: Product) -> list[str]:
    """Return the tags that the zoo and its partners search for, then the card's own."""
    sampling = ("posterior-sampling", "uncertainty") if product.sampler else ()
    modality = ("fluorescence-light-microscopy",) if "fluorescence" in (card.modality or "").lower() else ()
    return list(dict.fromkeys([*_TAGS, *sampling, f"{product.model.config.dim}d", *modality, *card.tags]))


def _model_facts(model: Model, card: Card) -> dict[str, Any]:
    network, dim = model.network, model.config.dim
    memory = f"about {bytes_per_px(network) / 1e3:.1f} GB per 10^6 {'pixels' if dim == 2 else 'voxels'}"
    return {
        "task": "denoising", "modality": card.modality, "target_structure": list(card.target_structure),
        "architecture_type": f"{dim}D U-Net",
        "architecture_description": f"Residual {dim}D U-Net of depth {model.config.depth} that predicts where the next "
        "photon lands (Generative Accumulation of Photons, arXiv 2307.06607).",
        "model_parameter_count": sum(parameter.numel() for parameter in network.parameters()),
        "memory_requirements_inference": memory,
        "out_of_scope_use": card.out_of_scope_use, "funded_by": card.funded_by, "training": _training(model),
        "bias_risks_limitations": _filled({**_LIMITS, "limitations": card.limitations}),
    }  # fmt: skip


def _training(model: Model) -> dict[str, Any]:
    """Return how the network was trained, if its file records it."""
    settings = model.history.training
    if not isinstance(settings, dict):
        return {}
    low, high = model.trained_range_db
    average = f", average of the weights with decay {settings['ema_decay']}" if settings.get("ema_decay") else ""
    return _filled({
        "training_preprocessing": "Each window's photons are split at random (binomial thinning) into an input of "
        f"{low:g} to {high:g} dB and an independent target; no normalisation.",
        "training_batch_size": settings.get("batch_size"),
        "initial_learning_rate": settings.get("learning_rate"),
        "learning_rate_schedule": f"linear warm-up over {settings.get('warmup_steps')} steps, decay to 1 % "
        f"at step {settings.get('steps')}",
        "loss_function": "log-likelihood of the target's photons given the input's (arXiv 2307.06607)",
        "loss_function_kwargs": {"total_weight": settings.get("total_weight")},
        "optimizer": "Muon (arXiv 2502.16982)" if settings.get("optimizer") == "muon" else "torch.optim.Adam",
        "optimizer_kwargs": {"lr": settings.get("learning_rate")},
        "regularization": f"gradients clipped at {settings.get('gradient_clip')}{average}",
    })  # fmt: skip


def _input(folder: Path, sizes: Sizes, product: Product) -> dict[str, Any]:
    channels, scale = product.model.config.channels, product.intake.scale
    names = ["photons"] if channels == 1 else [f"photons{i}" for i in range(channels)]
    pairs = zip(sizes.min_px, sizes.step_px, strict=True)
    return {
        "id": "photons", "description": product.intake.description,
        "axes": _axes(names, [{"size": {"min": low, "step": step}} for low, step in pairs]),
        "data": {"type": "float32", "range": [0.0, None]}, "test_tensor": _file(folder, TEST_INPUT),
        **({} if scale is None else {"preprocessing": [{"id": "scale_linear", "kwargs": scale}]}),
    }  # fmt: skip


def _output(folder: Path, sizes: Sizes, product: Product) -> dict[str, Any]:
    steps = [
        {"id": "custom", "callable": operation.callable, "kwargs": operation.kwargs}
        | _file(folder, operation.file_name)
        for operation in product.operations
    ]
    space = [
        {"size": {"tensor_id": "photons", "axis_id": axis, "offset": 0}, **({"halo": halo} if halo else {})}
        for axis, halo in zip("zyx"[-len(sizes.halo_px) :], sizes.halo_px, strict=True)
    ]
    test, suffix = f"test_{product.output}.npy", "" if product.own is None else f"; then {product.own.callable}"
    # custom postprocessing may return negative values, and so may dark pixels of a camera
    lowest = {"range": [0.0, None]} if product.own is None and product.intake.detector is None else {}
    return {
        "id": product.output, "description": product.description + suffix, "axes": _axes(product.channel_names, space),
        "data": {"type": str(np.load(folder / test, mmap_mode="r").dtype.name), **lowest},
        "test_tensor": _file(folder, test), **({"postprocessing": steps} if steps else {}),
    }  # fmt: skip


def _axes(channels: list[str], space: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sized = [{"type": "space", "id": n, **size} for n, size in zip("zyx"[-len(space) :], space, strict=True)]
    return [{"type": "batch"}, {"type": "channel", "id": "channel", "channel_names": channels}, *sized]


def _weights(folder: Path, product: Product, people: list[dict[str, Any]]) -> dict[str, Any]:
    version = torch.__version__.split("+")[0]
    source = _file(folder, weights.NETWORK_FILE if product.hook is None else HOOK_FILE)
    architecture = {**source, "callable": type(product.module).__name__, "kwargs": product.arguments}
    entries = {
        "pytorch_state_dict": {
            **_file(folder, weights.STATE_DICT), "architecture": architecture, "pytorch_version": version,
            "authors": people, "comment": "Needs torch only; gap-bioimage reads it back.",
        },
        "torchscript": {
            **_file(folder, weights.TORCHSCRIPT), "parent": "pytorch_state_dict", "pytorch_version": version,
            "authors": people, "comment": "Runs in libtorch 1.13 and newer; pads images of any size by itself.",
        },
    }  # fmt: skip
    if not (folder / weights.ONNX).exists():
        return entries
    onnx = {**_file(folder, weights.ONNX), "parent": "pytorch_state_dict", "opset_version": weights.OPSET}
    return {"onnx": onnx, **entries}


def _file(folder: Path, name: str) -> dict[str, str]:
    return {"source": name, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}


def write_readme(path: Path, card: Card, product: Product, measured: Measured) -> None:
    """Write the documentation that travels in the zip."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701  (markdown, not HTML)
        loader=PackageLoader("gap_bioimage", "exporting"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "wrap": lambda text: "\n\n".join(_fill(" ".join(part.split())) for part in text.strip().split("\n\n")) + "\n",
        "px": lambda sizes: f"{' x '.join(map(str, sizes))} px", "third": lambda size: -(-size // 3),
        "n": lambda number: f"{number:.3g}", "in_words": _in_words,
        "percents": lambda errors: "; ".join(f"{rms:.2%} at {exposure:g}" for exposure, rms in errors.items()),
    }  # fmt: skip
    sizes, sampler, dim = measured.sizes, product.sampler, product.model.config.dim
    pool_px = math.lcm(*sizes.pool_px)
    block = round_up(max(1, _TILE_PX[dim] - min(sizes.min_px)), pool_px)
    options = "" if sampler is None else f" --samples {sampler.n_samples} --seed {sampler.seed}"
    steps = ["preprocessing"] * (product.intake.scale is not None) + ["postprocessing"] * bool(product.operations)
    text = environment.get_template("readme.md.jinja").render(
        model=product.model, card=card, product=product, measured=measured, cover=COVER, only_core=ONLY_CORE,
        weights=weights, gain_db=10 * math.log10(GAIN), window_px=WINDOW_PX[dim],
        pool_px=pool_px, block=block // max(sizes.step_px), tile_px=[low + block for low in sizes.min_px],
        command=f"{'denoise' if sampler is None else 'sample'} model.zip image.tif out.tif{options}",
        inside=f", except its {' and '.join(steps)}" if steps else ": no pre- or postprocessing is needed",
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        named = {key.replace("_95", " (95 % confidence)").replace("_", " "): _in_words(v) for key, v in value.items()}
        return "; ".join(f"{key}: {text}" for key, text in named.items())
    if isinstance(value, (list, tuple)):
        return " to ".join(map(_in_words, value)) if len(value) == 2 else ", ".join(map(_in_words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_cover(path: Path, counts: np.ndarray, rate: np.ndarray, label: str = "counts") -> None:
    """Draw counts and denoised image (c, [z,] y, x) side by side, with labels and a line between them.

    The cover shows at most 256 x 256 px from the middle, each enlarged to a square of whole pixels, on one grey scale.
    """
    from PIL import Image, ImageDraw, ImageFont

    planes = [array[0] if array.ndim == 3 else array[0, array.shape[1] // 2] for array in (counts, rate)]
    side = min(_LARGEST_PX, *planes[0].shape)
    width = side * -(-_PANEL_PX // side)
    white = float(np.percentile(planes[1], 99.8)) or 1.0
    cover = Image.new("L", (2 * width + _LINE_PX, width), 255)
    font = ImageFont.load_default(size=max(10, width // 22))
    for number, (plane, text) in enumerate(zip(planes, (label, "denoised"), strict=True)):
        y, x = ((size - side) // 2 for size in plane.shape)
        grey = 255 * np.clip(plane[y : y + side, x : x + side] / white, 0, 1)
        panel = Image.fromarray(grey.astype(np.uint8)).resize((width, width), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(panel)
        box = draw.textbbox((6, 4), text, font=font)
        draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=0)
        draw.text((6, 4), text, fill=255, font=font)
        cover.paste(panel, (number * (width + _LINE_PX), 0))
    cover.save(path, optimize=True)
