"""The kinds of zips, and what differs between them; the rest of the export is the same for all."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from gap_bioimage.errors import ExportError
from gap_bioimage.exporting import hook as hook_source
from gap_bioimage.exporting.intake import Intake
from gap_bioimage.exporting.operation import Operation
from gap_bioimage.exporting.weights import (
    NETWORK_FILE,
    SAMPLER_WEIGHTS,
    architecture_source,
    denoiser_of,
    sampler_arguments,
    sampler_of,
    torchscript_of,
    write_state,
    write_weights,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from gap_bioimage.model import Model
    from gap_bioimage.sampler import PosteriorSampler

Kind = Literal["denoise", "sample", "sample-hook"]
REQUIRES = "bioimageio.core>=0.10.3"
"""What runs custom postprocessing."""
HOOK_FILE = "sample_posterior.py"


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
    """What a zip of one kind holds and says.

    ``module`` is what its weights are of, made with ``arguments`` as ``source`` defines it in ``source_file``;
    ``output`` the id of the output tensor, ``facts`` what ``config.gap_bioimage`` says. Where something is drawn,
    ``sampler`` draws it, and ``hook`` where the graph does not; ``own`` is the user's postprocessing.
    """

    module: nn.Module
    source: str
    source_file: str
    arguments: dict[str, Any]
    output: str
    description: str
    channel_names: list[str]
    facts: dict[str, Any]
    sampling: Sampling | None = None
    sampler: PosteriorSampler | None = None
    hook: Operation | None = None
    own: Operation | None = None
    intake: Intake = field(default_factory=Intake)

    @property
    def operations(self) -> list[Operation]:
        """The custom postprocessing, in order."""
        return [operation for operation in (self.hook, self.own) if operation is not None]

    @property
    def attachments(self) -> list[str]:
        """Files that only Python users of the zip read."""
        return [SAMPLER_WEIGHTS] if self.hook is not None else []

    def write(self, folder: Path) -> None:
        """Write weights and sources into the folder of the zip."""
        write_weights(folder, self.module, self.source, self.source_file)
        for operation in self.operations:
            (folder / operation.file_name).write_bytes(operation.source)
        if self.hook is not None and self.sampler is not None:
            write_state(folder / SAMPLER_WEIGHTS, self.sampler)

    def run(self, photons: np.ndarray) -> np.ndarray:
        """Return the output for preprocessed input (b, c, [z,] y, x); the user's postprocessing is checked on it."""
        with torch.inference_mode():
            output: np.ndarray = self.module(torch.from_numpy(photons)).numpy()
        if self.hook is not None:
            output = self.hook.load()(output)
        return output if self.own is None else self.own.apply_checked(output)


def product_of(
    kind: Kind,
    model: Model,
    box_px: list[int],
    sampling: Sampling,
    own: Operation | None = None,
    intake: Intake | None = None,
) -> Product:
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
        module=denoiser_of(model, box_px, **intake.arguments),
        source=architecture_source(),
        source_file=NETWORK_FILE,
        arguments={"box_px": list(box_px), **intake.arguments, **model.config.model_dump(mode="json")},
        output="rate",
        description="expected photons per pixel (posterior mean)",
        channel_names=["rate"] if channels == 1 else [f"rate{i}" for i in range(channels)],
        facts=facts,
        own=own,
        intake=intake,
    )


def counts_sampler(model: Model, box_px: list[int], sampling: Sampling) -> PosteriorSampler:
    """Return the sampler of a zip whose input are counts without further ado."""
    return sampler_of(model, sampler_arguments(model, box_px, sampling.n_samples, sampling.n_steps, sampling.seed))


def _sampling_product(
    model: Model, box_px: list[int], sampling: Sampling, intake: Intake, facts: dict[str, Any]
) -> Product:
    """What a zip holds whose graph samples."""
    channels, names = model.config.channels, sampling.channels
    drawn = {"n_samples": sampling.n_samples, "n_steps": sampling.n_steps, "seed": sampling.seed}
    arguments = sampler_arguments(model, box_px, **drawn) | intake.arguments
    sampler = sampler_of(model, arguments)
    return Product(
        module=sampler,
        source=architecture_source(sampling=True),
        source_file=NETWORK_FILE,
        arguments=arguments,
        output="posterior",
        description="mean and standard deviation of samples of the clean image, then the samples: photons per pixel",
        channel_names=names if channels == 1 else [f"{name}_{i}" for name in names for i in range(channels)],
        facts={**facts, "stochastic": True, **drawn},
        sampling=sampling,
        sampler=sampler,
        intake=intake,
    )


def _hooked(graph: Product) -> Product:
    """The same, sampled by an operation; the network only hands the counts on."""
    assert graph.sampler is not None and graph.sampling is not None  # noqa: S101
    copies = len(graph.sampling.channels)
    source = sampling_source(graph.sampler)
    kwargs = {"n_steps": graph.sampler.n_steps, "seed": graph.sampler.seed, "device": "cpu"}
    sampler = {"source": SAMPLER_WEIGHTS, "kwargs": graph.arguments}
    return replace(
        graph,
        module=hook_source.PhotonCopies(copies).eval().requires_grad_(False),
        source=source,
        source_file=HOOK_FILE,
        arguments={"copies": copies},
        facts={**graph.facts, "requires": REQUIRES, "sampler": sampler},
        hook=Operation(HOOK_FILE, source.encode(), hook_source.SamplePosterior.__name__, kwargs),
    )


def sampling_source(sampler: PosteriorSampler) -> str:
    """Return the file ``hook.py`` with a sampler filled in."""
    # of the ways to write bytes as text this is decoded the fastest, and in the zip none is smaller
    text = base64.encodebytes(zlib.compress(torchscript_of(sampler))).decode()
    source = Path(hook_source.__file__).read_text(encoding="utf-8")
    source = source.replace("\nCHANNELS = 1\n", f"\nCHANNELS = {sampler.network.channels}\n")
    return source.replace('\nTORCHSCRIPT = """\n"""\n', f'\nTORCHSCRIPT = """\n{text}"""\n')


def check_kind(kind: str) -> None:
    """Refuse other kinds than those there are.

    Raises
    ------
    ExportError
        If it is another.
    """
    *kinds, last = map(repr, get_args(Kind))
    if repr(kind) not in (*kinds, last):
        raise ExportError(f"kind {kind!r} is not one that can be exported; expected {', '.join(kinds)} or {last}")
