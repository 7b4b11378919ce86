"""The README and the cover of a zip, with numbers measured on the model itself; the text is ``readme.md.jinja``."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.exporting.rdf import COVER, ONLY_CORE
from gap_bioimage.exporting.weights import TORCHSCRIPT
from gap_bioimage.inference.tiling import round_up
from gap_bioimage.sampler import GAIN, WINDOW_PX

if TYPE_CHECKING:
    from PIL.Image import Image

    from gap_bioimage.exporting.card import Card
    from gap_bioimage.exporting.kinds import Product
    from gap_bioimage.exporting.measures import Measured
    from gap_bioimage.model import Model

_TEMPLATE = Path(__file__).with_name("readme.md.jinja")
_TILE_PX = {2: 512, 3: 64}
_PANEL_PX, _LARGEST_PX, _LINE_PX = 400, 256, 2


def write_readme(path: Path, model: Model, card: Card, product: Product, measured: Measured) -> None:
    """Write the documentation that travels in the zip."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # noqa: S701  (markdown, not HTML)
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "wrap": lambda text: (
            textwrap.fill(" ".join(text.split()), 110, break_long_words=False, break_on_hyphens=False) + "\n"
        ),
        "px": lambda sizes: f"{' x '.join(map(str, sizes))} px",
        "third": lambda size: -(-size // 3),
        "n": lambda number: f"{number:.3g}",
        "told": _told,
        "percents": lambda found: "; ".join(f"{rms:.2%} at {exposure:g}" for exposure, rms in found.items()),
    }
    sizes, dim, sampling, intake = measured.sizes, model.config.dim, product.sampling, product.intake
    block = round_up(max(1, _TILE_PX[dim] - min(sizes.min_px)), math.lcm(*sizes.pool_px))
    drawn = "" if sampling is None else f" --samples {sampling.n_samples} --seed {sampling.seed}"
    steps = ["preprocessing"] * bool(intake.preprocessing) + ["postprocessing"] * bool(product.operations)
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        card=card,
        cover=COVER,
        only_core=ONLY_CORE,
        torchscript=TORCHSCRIPT,
        product=product,
        measured=measured,
        sizes=sizes,
        scores=measured.scores,
        sampling=sampling,
        noun=intake.noun,
        detector=intake.detector,
        scale=intake.preprocessing[0]["kwargs"] if intake.preprocessing else None,
        axes=list("zyx"[-dim:]),
        channels=model.config.channels,
        trained_db=model.trained_range_db,
        low=10 ** (model.trained_range_db[0] / 10),
        high=10 ** (model.trained_range_db[1] / 10),
        block=block // max(sizes.step_px),
        tile_px=[low + block for low in sizes.min_px],
        command=f"{'denoise' if sampling is None else 'sample'} model.zip image.tif out.tif{drawn}",
        inside=f", but for its {' and '.join(steps)}" if steps else ": no pre- or postprocessing is needed",
        gain_db=10 * math.log10(GAIN),
        window_px=WINDOW_PX[dim],
    )
    path.write_text(text, encoding="utf-8")


def _told(value: Any) -> str:
    """How a camera was measured, in words."""
    if isinstance(value, dict):
        return "; ".join(
            f"{key.replace('_95', ' (95 % confidence)').replace('_', ' ')}: {_told(v)}" for key, v in value.items()
        )
    if isinstance(value, (list, tuple)):
        return " to ".join(map(_told, value)) if len(value) == 2 else ", ".join(map(_told, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_cover(path: Path, counts: np.ndarray, rate: np.ndarray) -> None:
    """Draw counts (c, [z,] y, x) and denoised image side by side, with labels and a thin line between them.

    At most 256 x 256 px of the middle of both, each pixel a square of whole pixels, on one grey scale.
    """
    from PIL import Image

    planes = [array[0] if array.ndim == 3 else array[0, array.shape[1] // 2] for array in (counts, rate)]
    side = min(_LARGEST_PX, *planes[0].shape)
    width = side * -(-_PANEL_PX // side)
    top = float(np.percentile(planes[1], 99.8)) or 1.0
    cover = Image.new("L", (2 * width + _LINE_PX, width), 255)
    for number, (plane, label) in enumerate(zip(planes, ("counts", "denoised"), strict=True)):
        y, x = ((size - side) // 2 for size in plane.shape)
        grey = 255 * np.clip(plane[y : y + side, x : x + side] / top, 0, 1)
        panel = Image.fromarray(grey.astype(np.uint8)).resize((width, width), Image.Resampling.NEAREST)
        _label(panel, label)
        cover.paste(panel, (number * (width + _LINE_PX), 0))
    cover.save(path, optimize=True)


def _label(image: Image, text: str) -> None:
    """Write into the corner of a grey image, on black."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(10, image.width // 22))
    left, top, right, bottom = draw.textbbox((6, 4), text, font=font)
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=0)
    draw.text((6, 4), text, fill=255, font=font)
