"""The kinds of zips and the differences between them; the rest of the export is common to all.

Custom postprocessing is a Python file in a zip that changes the network's output. bioimageio.core 0.10.3 and newer call
``op = NAME(**kwargs)`` once and ``op(array)`` for every output or tile, before its halo is cropped. No other program
runs it.
"""

import base64
import hashlib
import importlib.util
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import yaml
from torch import nn

from gap_bioimage.errors import ExportError
from gap_bioimage.exporting import hook, weights
from gap_bioimage.exporting.intake import Intake
from gap_bioimage.model import Model
from gap_bioimage.sampler import PosteriorSampler

Kind = Literal["denoise", "sample", "sample-hook"]
_REQUIRES = {"requires": "bioimageio.core>=0.10.3"}  # runs custom postprocessing
HOOK_FILE, OWN_FILE = "sample_posterior.py", "postprocessing.py"
"""File names in the zip: our postprocessing, and the user's, whatever its original name."""
_DTYPES = ("float32", "float64", *(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)))


@dataclass(frozen=True)
class Operation:
    """A class or factory ``callable`` in a file of a zip, with its keyword arguments."""

    file_name: str
    source: bytes
    callable: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The call in Python."""
        return f"{self.callable}({', '.join(f'{name}={value!r}' for name, value in self.kwargs.items())})"

    @classmethod
    def read(cls, spec: str, kwargs: Mapping[str, Any] | None = None) -> Self:
        """Read a user's own operation, "FILE.py:NAME"; raise `ExportError` if it cannot be created."""
        file, _, name = spec.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ExportError(f"the postprocessing is {spec!r}, expected FILE.py:NAME, such as threshold.py:Threshold")
        arguments = {} if kwargs is None else kwargs
        try:
            is_plain = yaml.safe_load(yaml.safe_dump(arguments)) == arguments
        except yaml.YAMLError:
            is_plain = False
        if not (is_plain and isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments)):
            expected = "names and plain values of yaml, such as {threshold: 2.5}"
            raise ExportError(f"the postprocessing's kwargs are {kwargs!r}, expected {expected}")
        try:
            operation = cls(OWN_FILE, Path(file).read_bytes(), name, arguments)
        except OSError as error:
            raise ExportError(f"the postprocessing file {file} cannot be read: {error.strerror}") from None
        operation.load()
        return operation

    def load(self) -> Any:
        """Create the operation from its file alone, as bioimageio.core does; raise `ExportError` if that fails."""
        name = f"gap_bioimage_operation_{hashlib.sha256(self.source).hexdigest()}"
        with tempfile.TemporaryDirectory(prefix="gap-bioimage-") as folder:
            path = Path(folder) / self.file_name
            path.write_bytes(self.source)
            spec: Any = importlib.util.spec_from_file_location(name, path)
            module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
            try:
                spec.loader.exec_module(module)
                return getattr(module, self.callable)(**self.kwargs)
            except Exception as error:  # a third-party file may raise anything
                raise ExportError(
                    f"the postprocessing {self} cannot be created: {_named(error)}; give its arguments with "
                    "postprocessing_kwargs; it may import installed packages, but no files next to it"
                ) from error

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Apply the operation to (b, c, [z,] y, x); raise `ExportError` if a zip cannot rely on the result."""
        operation = self.load()
        try:
            result, repeated = operation(array.copy()), operation(array.copy())
        except Exception as error:  # a third-party function may raise anything
            argument = f"an array of shape {array.shape}, {array.dtype}"
            raise ExportError(f"the postprocessing {self} raised {_named(error)} for {argument}") from error
        if not isinstance(result, np.ndarray) or result.shape != array.shape or result.dtype.name not in _DTYPES:
            returned = f"a {type(result).__name__} of {getattr(result, 'dtype', 'no dtype')}, shape {np.shape(result)}"
            problem = f"{returned}; expected an array of shape {array.shape} and one of {', '.join(_DTYPES)}"
        elif not np.isfinite(result).all():
            problem = "values that are not finite; guard its divisions and logarithms"
        elif not np.array_equal(result, repeated):
            problem = "a different result when called again on the same array; keep no state, and seed it"
        else:
            return result
        raise ExportError(f"the postprocessing {self} returned {problem}")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass(frozen=True)
class Sampling:
    """Settings of a sampling zip: samples (at least 1), steps per sample (at least 1) and seed (at least 0)."""

    n_samples: int = 4
    n_steps: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_samples", 1), ("n_steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value < 2**63:  # TorchScript's integers have 64 bits
                raise ExportError(f"{name} is {value}, expected {least} or more, a whole number below 2**63")


@dataclass(frozen=True)
class Product:
    """The contents of a zip of one kind."""

    model: Model
    module: nn.Module  # whose weights are in the zip
    arguments: dict[str, Any]  # of the module
    output: str  # id of the output tensor
    description: str
    channel_names: list[str]
    facts: dict[str, Any]  # for config.gap_bioimage
    intake: Intake
    own: Operation | None = None  # the user's postprocessing
    sampler: PosteriorSampler | None = None  # of kinds that sample
    hook: Operation | None = None  # samples instead of the graph

    @property
    def operations(self) -> list[Operation]:
        """The custom postprocessing, in order."""
        return [operation for operation in (self.hook, self.own) if operation is not None]

    def write(self, folder: Path) -> None:
        """Write weights and sources into the folder of the zip."""
        (folder / weights.TORCHSCRIPT).write_bytes(weights.torchscript_of(self.module))
        weights.write_state(folder / weights.STATE_DICT, self.module)
        for operation in self.operations:
            (folder / operation.file_name).write_bytes(operation.source)
        if self.hook is None:
            source = weights.architecture_source(sampling=self.sampler is not None)
            (folder / weights.NETWORK_FILE).write_text(source, encoding="utf-8")
        elif self.sampler is not None:
            weights.write_state(folder / weights.SAMPLER_WEIGHTS, self.sampler)

    def run(self, photons: np.ndarray) -> np.ndarray:
        """Return the output for preprocessed input (b, c, [z,] y, x)."""
        with torch.inference_mode():
            output: np.ndarray = self.module(torch.from_numpy(photons)).numpy()
        if self.hook is not None:
            output = self.hook.load()(output)
        return output if self.own is None else self.own.apply(output)


def product_of(
    kind: Kind, model: Model, sampling: Sampling, own: Operation | None = None, intake: Intake | None = None
) -> Product:
    """Return the contents of a zip of this kind, with the user's own postprocessing as last step."""
    intake, channels = intake or Intake.of(model), model.config.channels
    facts = {
        # the input of a camera or of one-bit frames is not in photons
        "kind": kind, "conserves_photons": own is None and not intake.arguments,
        "trained_range_db": list(model.trained_range_db), "pooling_px": list(model.network.step_px),
        **intake.facts, **({} if own is None else _REQUIRES),
    }  # fmt: skip
    if kind == "denoise":
        denoiser = weights.denoiser_of(model, **intake.arguments)
        return Product(
            model, denoiser, {"box_px": denoiser.box_px, **intake.arguments, **model.config.model_dump(mode="json")},
            output="rate", description="expected photons per pixel (posterior mean)",
            channel_names=["rate"] if channels == 1 else [f"rate{i}" for i in range(channels)],
            facts=facts, intake=intake, own=own,
        )  # fmt: skip
    settings, names = asdict(sampling), ["mean", "std", *(f"sample{n + 1}" for n in range(sampling.n_samples))]
    arguments = weights.sampler_arguments(model, **settings) | intake.arguments
    sampler = weights.sampler_of(model, arguments)
    graph = Product(
        model, sampler, arguments, output="posterior",
        description="mean and standard deviation of samples of the clean image, then the samples: photons per pixel",
        channel_names=names if channels == 1 else [f"{name}_{i}" for name in names for i in range(channels)],
        facts={**facts, "stochastic": True, **settings}, intake=intake, own=own, sampler=sampler,
    )  # fmt: skip
    return graph if kind == "sample" else _hooked(graph, sampler, len(names))


def _hooked(graph: Product, sampler: PosteriorSampler, copies: int) -> Product:
    """Move the sampler into an operation; the network only passes the counts on."""
    # base64 decodes faster than other text encodings, and none is smaller in the zip
    archive = base64.encodebytes(zlib.compress(weights.torchscript_of(sampler))).decode()
    source = Path(hook.__file__).read_text(encoding="utf-8")
    source = source.replace("\nCHANNELS = 1\n", f"\nCHANNELS = {sampler.network.channels}\n")
    source = source.replace('\nTORCHSCRIPT = """\n"""\n', f'\nTORCHSCRIPT = """\n{archive}"""\n')
    kwargs = {"n_steps": sampler.n_steps, "seed": sampler.seed, "device": "cpu"}
    requirements = {**_REQUIRES, "sampler": {"source": weights.SAMPLER_WEIGHTS, "kwargs": graph.arguments}}
    return replace(
        graph, module=hook.PhotonCopies(copies).eval().requires_grad_(False), arguments={"copies": copies},
        facts={**graph.facts, **requirements},
        hook=Operation(HOOK_FILE, source.encode(), hook.SamplePosterior.__name__, kwargs),
    )  # fmt: skip
