"""Options that several verbs share, single and in groups."""

import dataclasses
import functools
import inspect
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
from gap_bioimage.files import check_output_path

Quiet = Annotated[bool, Option("--quiet", help="Print only errors and warnings.")]
Device = Annotated[str, Option(help="Device to run on: auto, cpu, cuda, ...")]
Seed = Annotated[int, Option(min=0, help="Seed of all random numbers.")]
Json = Annotated[Path | None, Option("--json", help="Write the report as JSON to this file; - prints it.")]
Image = Annotated[Path, Argument(help="Image of photon counts, or of a camera (see --camera).")]
Images = Annotated[list[Path], Argument(help="Images or folders of photon counts, or of a camera (see --camera).")]
Out = Annotated[Path, Argument(help="Image to write (.tif, .ome.tif, .ome.zarr, .h5, .npy).")]
OutOrFolder = Annotated[Path, Argument(help="Image to write, as .tif, .ome.tif, .ome.zarr, .h5 or .npy; or a folder.")]
RunCode = Annotated[bool, Option("--run-code", help="Allow Python code in the model to run.")]
ModelPath = Annotated[Path, Argument(help="Run folder, checkpoint (ours or the original GAP's), state_dict or zip.")]
_PRETRAINED = f"Use a model from the package in place of MODEL: {', '.join(pretrained.names())}."
Pretrained = Annotated[str | None, Option(metavar="NAME", help=_PRETRAINED)]
_CAMERA = "Camera file from calibrate, or none for photon counts; by default the model's own camera."
Camera = Annotated[str | None, Option(metavar="YAML", help=_CAMERA)]
SumFrames = Annotated[int | None, Option(min=1, help="Sum this many frames (t) of a one-bit (single-photon) camera.")]
TimeAsZ = Annotated[bool, Option("--time-as-z", help="Take a movie for a stack: a 3D network uses the frames around.")]
_PRECISION = "float32, bf16 (0.1 % error, faster on GPUs and some CPUs), or auto: bf16 on GPUs if it changes little."
_SIDE_OUTPUTS = ("json_out", "plot", "truth", "movie", "html", "junit")  # outputs other than ``out``
_EACH_CHANNEL = "Run a one-channel model on each channel separately."
SeparateChannels = Annotated[bool, Option("--separate-channels", help=_EACH_CHANNEL)]


@dataclass(frozen=True)
class Selection:
    """Which part of a file to read, and its axes."""

    axes: Annotated[str | None, Option(help="Axes of the stored array, such as zyx, if the file has no names.")] = None
    channel: Annotated[str | None, Option(help="Use only this channel: index from 0, or name.")] = None
    time: Annotated[str | None, Option(help="Use only this frame (from 0), or a range such as 0:50 or ::2.")] = None
    series: Annotated[str | None, Option(help="Image to read from a file with several: index from 0, or name.")] = None
    level: Annotated[int | None, Option(min=0, help="Pyramid level; by default 0, the full resolution.")] = None


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

    tile: Annotated[str | None, Option(help="Tile size with halo, such as 512,512; by default automatic.")] = None
    halo: Annotated[str | None, Option(help="Halo of tiles; by default as far as pixels have influence.")] = None
    device: Device = "auto"
    precision: Annotated[str, Option(help=_PRECISION)] = "auto"

    def options(self) -> dict[str, Any]:
        """Return the options as arguments of the library."""
        tile, halo = parse_pixels(self.tile, "--tile"), parse_pixels(self.halo, "--halo")
        return {"tile_px": tile, "halo_px": halo, "device": self.device, "precision": self.precision}


def camera_option(value: str | None) -> Path | str | None:
    """Return ``--camera`` as the library takes it: a yaml file, None for "none", "model" when not given."""
    if value is None:
        return "model"
    return None if value.lower() == "none" else Path(value)


def parse_pixels(text: str | None, option: str) -> tuple[int, ...] | None:
    """Parse pixels per axis, such as 512,512."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} is {text!r}, expected pixels such as 512,512") from None


def check_paths(arguments: Mapping[str, Any]) -> None:
    """Check, before the work, that outputs can be written, and overwrite neither inputs nor each other."""
    values = [(name, item) for name, of in arguments.items() for item in (of if isinstance(of, list) else [of])]
    paths = [(name, path) for name, path in values if isinstance(path, Path) and str(path) != "-"]
    outputs = [path for name, path in paths if name in ("out", *_SIDE_OUTPUTS)]
    inputs = [path for name, path in paths if name not in ("out", *_SIDE_OUTPUTS)]
    for name, path in paths:
        if name in _SIDE_OUTPUTS:
            check_output_path(path, folder=path.suffix.lower() == ".zarr")
    for number, path in enumerate(outputs, 1):
        for other in outputs[number:] + inputs:
            same = path.samefile(other) if path.exists() and other.exists() else path.absolute() == other.absolute()
            if same:
                raise OutputError(f"{path} is the input itself, or another output, and is kept; choose another name")


class Verb(TyperCommand):
    """A command that takes ``--pretrained NAME`` in place of its first argument, the model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the pretrained model as the first argument; refuse empty ones, which would name the current folder."""
        if "" in args:
            raise typer.BadParameter(f"argument {args.index('') + 1} is empty; give a value, or leave it out", ctx)
        name = self.make_parser(ctx).parse_args(list(args))[0].get("pretrained")
        return super().parse_args(ctx, args if name is None else [str(pretrained.path_of(name)), *args])


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Expand each dataclass parameter of a verb into options, one per field."""
    hints = typing.get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    kind, options = inspect.Parameter.KEYWORD_ONLY, list[inspect.Parameter]()
    for name, parameter in inspect.signature(verb).parameters.items():
        if name not in groups:
            options.append(parameter.replace(kind=kind, annotation=hints[name]))
            continue
        fields = typing.get_type_hints(groups[name], include_extras=True)
        for field in inspect.signature(groups[name]).parameters.values():
            options.append(field.replace(kind=kind, annotation=fields[field.name]))
    if hints.get("model") == ModelPath:
        options.append(inspect.Parameter("pretrained", kind, default=None, annotation=Pretrained))

    @functools.wraps(verb)
    def call(pretrained: str | None = None, **values: Any) -> None:  # ``Verb`` has put it in place of the model
        check_paths(values)
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        verb(**values)

    call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return call
