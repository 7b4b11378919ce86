"""Options that several verbs share, single and in groups."""

import dataclasses
import functools
import inspect
import itertools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from gap_bioimage import pretrained
from gap_bioimage.errors import OutputError
from gap_bioimage.files import check_place

Quiet = Annotated[bool, Option("--quiet", help="Print errors only.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, ...")]
Seed = Annotated[int, Option(min=0, help="Seed of everything random.")]
Json = Annotated[Path | None, Option("--json", help="Write the report as JSON to this file; - prints it.")]
Image = Annotated[Path, Argument(help="Photon counts, or a camera image with its camera.")]
Out = Annotated[Path, Argument(help="The image to write (.tif, .ome.tif, .ome.zarr, .h5, .npy).")]
RunCode = Annotated[bool, Option("--run-code", help="Allow Python code of the model to run.")]
ModelPath = Annotated[Path, Argument(help="Run folder, checkpoint (ours or the original GAP's), state_dict or zip.")]
_PRETRAINED = f"A model that comes with the package, in the place of MODEL: {', '.join(pretrained.names())}."
Pretrained = Annotated[str | None, Option(metavar="NAME", help=_PRETRAINED)]
_OF_MODEL = "The camera of the images, from calibrate; the model's own when not given, none for counts."
Camera = Annotated[str | None, Option(metavar="YAML", help=_OF_MODEL)]
SumFrames = Annotated[int | None, Option(min=1, help="Sum so many frames t of a one-bit (single-photon) camera.")]
TimeAsZ = Annotated[bool, Option("--time-as-z", help="Let a 3D model see a movie as a stack.")]
_PRECISION = "float32, bf16 (a thousandth off, faster on GPUs and some CPUs), auto: bf16 on GPUs if it changes little."
_BESIDES = ("json_out", "plot", "truth", "movie", "html", "junit")  # outputs other than ``out``
_EACH_CHANNEL = "Let a model of one channel see each channel by itself."
SeparateChannels = Annotated[bool, Option("--separate-channels", help=_EACH_CHANNEL)]


@dataclass(frozen=True)
class Selection:
    """Which part of a file to read, and its axes."""

    axes: Annotated[str | None, Option(help="Axes of the stored array, such as zyx, for files without them.")] = None
    channel: Annotated[str | None, Option(help="Use this channel only, counted from 0, or by its name.")] = None
    time: Annotated[str | None, Option(help="This frame only, counted from 0, or a range such as 0:50 or ::2.")] = None
    series: Annotated[str | None, Option(help="Which image of a file of several, counted from 0, or its name.")] = None
    level: Annotated[int | None, Option(min=0, help="Level of a pyramid; when not given 0, the full size.")] = None


@dataclass(frozen=True)
class Layout:
    """How a model processes an image with more axes than its own."""

    planes: Annotated[bool, Option("--planes", help="Run a 2D model on a stack plane by plane.")] = False
    time_as_z: TimeAsZ = False
    separate_channels: SeparateChannels = False


@dataclass(frozen=True)
class Detector:
    """What recorded the image."""

    camera: Camera = None
    sum_frames: SumFrames = None


@dataclass(frozen=True)
class Running:
    """Device, precision and tiles of a network."""

    tile: Annotated[str | None, Option(help="Tile with halo, such as 512,512; chosen when not given.")] = None
    halo: Annotated[str | None, Option(help="Halo; when not given, as far as pixels matter.")] = None
    device: Device = "auto"
    precision: Annotated[str, Option(help=_PRECISION)] = "auto"

    def options(self) -> dict[str, Any]:
        """Return the options as arguments of the library."""
        tile, halo = parse_pixels(self.tile, "--tile"), parse_pixels(self.halo, "--halo")
        return {"tile_px": tile, "halo_px": halo, "device": self.device, "precision": self.precision}


def camera_asked(option: str | None) -> Path | str | None:
    """Return the value of ``--camera`` for the library: a yaml file, None for "none", "model" when not given."""
    if option is None:
        return "model"
    return None if option.lower() == "none" else Path(option)


def parse_pixels(text: str | None, option: str) -> tuple[int, ...] | None:
    """Parse pixels per axis, such as 512,512."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} is {text!r}, expected pixels such as 512,512") from None


def check_places(given: Mapping[str, Any]) -> None:
    """Check, before the work, that outputs can be written, and overwrite neither inputs nor each other."""
    named = [(name, path) for name, of in given.items() for path in (of if isinstance(of, list) else [of])]
    paths = [(name, path) for name, path in named if isinstance(path, Path) and str(path) != "-"]
    for name, path in paths:
        if name in _BESIDES:
            check_place(path, folder=path.suffix.lower() == ".zarr")
    for (name, path), (other, there) in itertools.combinations(paths, 2):
        same = path.samefile(there) if path.exists() and there.exists() else path.absolute() == there.absolute()
        if same and not {name, other}.isdisjoint(("out", *_BESIDES)):
            raise OutputError(f"{path} is the input itself, or another output, and is kept; choose another name")


class Verb(TyperCommand):
    """A command that takes ``--pretrained NAME`` in place of its first argument, the model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the pretrained model as the first argument."""
        name = self.make_parser(ctx).parse_args(list(args))[0].get("pretrained")
        return super().parse_args(ctx, args if name is None else [str(pretrained.named(name)), *args])


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Expand each dataclass parameter of a verb into options, one per field."""
    hints = typing.get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb).parameters.items():
        if name not in groups:
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        fields = typing.get_type_hints(groups[name], include_extras=True)
        for own in inspect.signature(groups[name]).parameters.values():
            shown.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=fields[own.name]))
    if hints.get("model") == ModelPath:
        kind = inspect.Parameter.KEYWORD_ONLY
        shown.append(inspect.Parameter("pretrained", kind, default=None, annotation=Pretrained))

    @functools.wraps(verb)
    def call(pretrained: str | None = None, **given: Any) -> None:  # ``Verb`` has put it in place of the model
        check_places(given)
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        verb(**given)

    call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return call
