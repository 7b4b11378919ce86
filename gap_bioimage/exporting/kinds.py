"""The kinds of zips, and what differs between them; the rest of the export is the same for all.

Custom postprocessing are Python files that travel in a zip and change the network's output. bioimageio.core 0.10.3 and
newer call ``op = NAME(**kwargs)`` once and ``op(array)`` for every output or tile of one, before its halo is cut off.
Nobody else runs them.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
import yaml
from torch import nn

from gap_bioimage.errors import ExportError, GapWarning
from gap_bioimage.exporting import hook, weights
from gap_bioimage.exporting.intake import Intake
from gap_bioimage.model import Model
from gap_bioimage.sampler import PosteriorSampler

Kind = Literal["denoise", "sample", "sample-hook"]
REQUIRES = "bioimageio.core>=0.10.3"
"""What runs custom postprocessing."""
HOOK_FILE = "sample_posterior.py"
OWN_FILE = "postprocessing.py"
"""The user's file, by whatever name it came."""
_DTYPES = ("float32", "float64", *(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)))


@dataclass(frozen=True)
class Operation:
    """A class or factory ``callable`` in a file of a zip, and what it is called with."""

    file_name: str
    source: bytes
    callable: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The call as Python writes it."""
        return f"{self.callable}({', '.join(f'{name}={value!r}' for name, value in self.kwargs.items())})"

    @classmethod
    def read(cls, place: str, kwargs: Mapping[str, Any] | None = None) -> Self:
        """Read a user's own operation, "FILE.py:NAME", and see that it can be made; raise `ExportError` otherwise."""
        file, _, name = place.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ExportError(f"the postprocessing is {place!r}, expected FILE.py:NAME, such as threshold.py:Threshold")
        arguments = dict(kwargs or {})
        try:
            is_plain = yaml.safe_load(yaml.safe_dump(arguments)) == arguments
        except yaml.YAMLError:
            is_plain = False
        if not (is_plain and all(isinstance(key, str) for key in arguments)):
            raise ExportError(f"the postprocessing's kwargs are {arguments}, expected names and plain values of yaml")
        try:
            source = Path(file).read_bytes()
        except OSError as error:
            raise ExportError(f"the postprocessing file {file} cannot be read: {error.strerror}") from None
        operation = cls(OWN_FILE, source, name, arguments)
        operation.load()
        return operation

    def load(self) -> Callable[[np.ndarray], np.ndarray]:
        """Import the source, by itself as bioimageio.core does, and return the operation; raise `ExportError`."""
        factory = getattr(self._import(), self.callable, None)
        if not callable(factory):
            state = "is not there" if factory is None else f"is a {type(factory).__name__}"
            raise ExportError(f"{self.callable} {state} in the postprocessing file; expected a class or function")
        try:
            function = factory(**self.kwargs)
        except Exception as error:  # whatever somebody's class raises
            why = f"{_told(error)}; give what it needs with postprocessing_kwargs"
            raise ExportError(f"the postprocessing {self} cannot be made: {why}") from error
        if not callable(function):
            expected = "something to call with an array: a class with __call__, or a function that returns one"
            raise ExportError(f"the postprocessing {self} is a {type(function).__name__}, expected {expected}")
        return function  # type: ignore[no-any-return]

    def _import(self) -> ModuleType:
        name = f"gap_bioimage_operation_{hashlib.sha256(self.source).hexdigest()}"
        with tempfile.TemporaryDirectory(prefix="gap-bioimage-") as folder:
            path = Path(folder) / self.file_name
            path.write_bytes(self.source)
            spec: Any = importlib.util.spec_from_file_location(name, path)
            module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look it up
            try:
                spec.loader.exec_module(module)
            except Exception as error:  # whatever somebody's file raises
                why = f"{_told(error)}; it may use what is installed, but no files beside it"
                raise ExportError(f"the postprocessing file cannot be imported by itself: {why}") from error
        return module

    def apply_checked(self, array: np.ndarray) -> np.ndarray:
        """Apply the operation to (b, c, [z,] y, x), and see that a zip may rely on it.

        `ExportError` unless it gives the same numbers in the same shape every time; one that looks beyond each pixel
        is allowed, with a warning.
        """
        function = self.load()
        result = self._call(function, array)
        problem = ""
        if result.shape != array.shape:
            problem = f"turned an array of shape {array.shape} into {result.shape}; expected the same shape"
        elif result.dtype.name not in _DTYPES:
            problem = f"returns {result.dtype.name}, expected one of {', '.join(_DTYPES)}; convert it with .astype"
        elif broken := int(np.count_nonzero(~np.isfinite(result))):
            problem = f"returned {broken} values that are not finite; guard its divisions and logarithms"
        elif not all(np.array_equal(self._call(again, array), result) for again in (function, self.load())):
            problem = "gives another result for the same array when it is called again; keep no state, and seed it"
        if problem:
            raise ExportError(f"the postprocessing {self.callable} {problem}")
        piece: Any = (..., *(slice(size // 4, size // 4 + max(1, size // 2)) for size in array.shape[2:]))
        small, expected = self._call(function, array[piece]), result[piece]
        scale = float(np.abs(expected).max(initial=0))
        if small.shape != expected.shape or not np.allclose(small, expected, rtol=1e-5, atol=1e-6 * scale):
            warnings.warn(
                f"the postprocessing {self.callable} gives a piece of an image another result than the whole: "
                "programs that run the model in tiles will show seams", GapWarning, stacklevel=3,
            )  # fmt: skip
        return result

    def _call(self, function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
        try:
            result = function(array.copy())
        except Exception as error:  # whatever somebody's function raises
            given = f"an array of shape {array.shape}, {array.dtype}"
            raise ExportError(f"the postprocessing {self.callable} raised {_told(error)} for {given}") from error
        if not isinstance(result, np.ndarray):
            kind = type(result).__name__
            raise ExportError(f"the postprocessing {self.callable} returned a {kind}, expected a numpy array")
        return result


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def parse_kwargs(text: str | None) -> dict[str, Any]:
    """Read the kwargs of an operation, written as yaml or JSON; raise `ExportError` if they are not a mapping."""
    try:
        kwargs = {} if text is None else yaml.safe_load(text)
    except yaml.YAMLError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise ExportError(f"the postprocessing's kwargs are {text!r}, expected a mapping such as '{{threshold: 2.5}}'")
    return kwargs


@dataclass(frozen=True)
class Sampling:
    """What a sampling zip draws: samples (at least 1), in so many steps each (at least 1), with a seed (at least 0)."""

    n_samples: int = 4
    n_steps: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_samples", 1), ("n_steps", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ExportError(f"{name} is {value}, expected {least} or more")

    @property
    def evaluations(self) -> int:
        """Runs of the network for one image or tile."""
        return 1 + self.n_samples * self.n_steps

    @property
    def channels(self) -> list[str]:
        """What the channels of the output are, for each image channel, in the order of the graph."""
        return ["mean", "std", *(f"sample{number + 1}" for number in range(self.n_samples))]


@dataclass(frozen=True)
class Product:
    """What a zip of one kind holds and says."""

    module: nn.Module  # its weights are of this,
    source: str  # which this text defines,
    source_file: str
    arguments: dict[str, Any]  # and which is made with these
    output: str  # id of the output tensor
    description: str
    channel_names: list[str]
    facts: dict[str, Any]  # for config.gap_bioimage
    intake: Intake
    sampling: Sampling | None = None
    sampler: PosteriorSampler | None = None  # draws, where something is drawn
    hook: Operation | None = None  # draws, where the graph does not
    own: Operation | None = None  # the user's postprocessing

    @property
    def operations(self) -> list[Operation]:
        """The custom postprocessing, in order."""
        return [operation for operation in (self.hook, self.own) if operation is not None]

    @property
    def attachments(self) -> list[str]:
        """Files that only Python users of the zip read."""
        return [weights.SAMPLER_WEIGHTS] if self.hook is not None else []

    def write(self, folder: Path) -> None:
        """Write weights and sources into the folder of the zip."""
        weights.write_weights(folder, self.module, self.source, self.source_file)
        for operation in self.operations:
            (folder / operation.file_name).write_bytes(operation.source)
        if self.hook is not None and self.sampler is not None:
            weights.write_state(folder / weights.SAMPLER_WEIGHTS, self.sampler)

    def run(self, photons: np.ndarray) -> np.ndarray:
        """Return the output for preprocessed input (b, c, [z,] y, x); the user's postprocessing is checked on it."""
        with torch.inference_mode():
            output: np.ndarray = self.module(torch.from_numpy(photons)).numpy()
        if self.hook is not None:
            output = self.hook.load()(output)
        return output if self.own is None else self.own.apply_checked(output)


def product_of(
    kind: Kind, model: Model, box_px: list[int], sampling: Sampling, own: Operation | None = None,
    intake: Intake | None = None,
) -> Product:  # fmt: skip
    """Return what a zip of this kind holds, with the user's own postprocessing at its end."""
    intake = intake or Intake.of(model)
    facts = {
        "kind": kind,
        # photons are not what is given, where a camera or one-bit frames stand between
        "conserves_photons": own is None and not intake.arguments,
        "trained_range_db": list(model.trained_range_db),
        "pooling_px": list(model.network.step_px),
        **intake.facts,
        **({} if own is None else {"requires": REQUIRES}),
    }
    if kind != "denoise":
        graph = _sampling_product(model, box_px, sampling, intake, facts)
        return replace(graph if kind == "sample" else _hooked(graph), own=own)
    channels = model.config.channels
    return Product(
        module=weights.denoiser_of(model, box_px, **intake.arguments),
        source=weights.architecture_source(), source_file=weights.NETWORK_FILE,
        arguments={"box_px": list(box_px), **intake.arguments, **model.config.model_dump(mode="json")},
        output="rate", description="expected photons per pixel (posterior mean)",
        channel_names=["rate"] if channels == 1 else [f"rate{i}" for i in range(channels)],
        facts=facts, intake=intake, own=own,
    )  # fmt: skip


def counts_sampler(model: Model, box_px: list[int], sampling: Sampling) -> PosteriorSampler:
    """Return the sampler of a zip whose input are counts without further ado."""
    arguments = weights.sampler_arguments(model, box_px, sampling.n_samples, sampling.n_steps, sampling.seed)
    return weights.sampler_of(model, arguments)


def _sampling_product(
    model: Model, box_px: list[int], sampling: Sampling, intake: Intake, facts: dict[str, Any]
) -> Product:
    """What a zip holds whose graph samples."""
    channels, names = model.config.channels, sampling.channels
    drawn = {"n_samples": sampling.n_samples, "n_steps": sampling.n_steps, "seed": sampling.seed}
    arguments = weights.sampler_arguments(model, box_px, **drawn) | intake.arguments
    sampler = weights.sampler_of(model, arguments)
    return Product(
        module=sampler, source=weights.architecture_source(sampling=True), source_file=weights.NETWORK_FILE,
        arguments=arguments, output="posterior",
        description="mean and standard deviation of samples of the clean image, then the samples: photons per pixel",
        channel_names=names if channels == 1 else [f"{name}_{i}" for name in names for i in range(channels)],
        facts={**facts, "stochastic": True, **drawn}, intake=intake, sampling=sampling, sampler=sampler,
    )  # fmt: skip


def _hooked(graph: Product) -> Product:
    """The same, sampled by an operation; the network only hands the counts on."""
    assert graph.sampler is not None and graph.sampling is not None  # noqa: S101
    copies = len(graph.sampling.channels)
    # of the ways to write bytes as text this is decoded the fastest, and in the zip none is smaller
    archive = base64.encodebytes(zlib.compress(weights.torchscript_of(graph.sampler))).decode()
    source = Path(hook.__file__).read_text(encoding="utf-8")
    source = source.replace("\nCHANNELS = 1\n", f"\nCHANNELS = {graph.sampler.network.channels}\n")
    source = source.replace('\nTORCHSCRIPT = """\n"""\n', f'\nTORCHSCRIPT = """\n{archive}"""\n')
    kwargs = {"n_steps": graph.sampler.n_steps, "seed": graph.sampler.seed, "device": "cpu"}
    sampler = {"source": weights.SAMPLER_WEIGHTS, "kwargs": graph.arguments}
    return replace(
        graph, module=hook.PhotonCopies(copies).eval().requires_grad_(False), source=source, source_file=HOOK_FILE,
        arguments={"copies": copies}, facts={**graph.facts, "requires": REQUIRES, "sampler": sampler},
        hook=Operation(HOOK_FILE, source.encode(), hook.SamplePosterior.__name__, kwargs),
    )  # fmt: skip


def check_kind(kind: str) -> None:
    """Raise `ExportError` for other kinds than those there are."""
    *kinds, last = map(repr, get_args(Kind))
    if repr(kind) not in (*kinds, last):
        raise ExportError(f"kind {kind!r} is not one that can be exported; expected {', '.join(kinds)} or {last}")
