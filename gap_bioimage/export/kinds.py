"""The kinds of zips, and what differs between them; the rest of the export is the same for all."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from gap_bioimage.errors import ExportError
from gap_bioimage.export import copies, sampling_op
from gap_bioimage.export.copies import PhotonCopies
from gap_bioimage.export.intake import Intake
from gap_bioimage.export.operation import Operation, apply_checked
from gap_bioimage.export.weights import (
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

    from gap_bioimage.sampler import PosteriorSampler
    from gap_bioimage.training.checkpoint import Model

Kind = Literal["denoise", "sample", "sample-hook"]
REQUIRES = "bioimageio.core>=0.10.3"
"""What runs custom postprocessing."""
SAMPLING_FILE = "sample_posterior.py"


@dataclass(frozen=True)
class Sampling:
    """What a sampling zip draws.

    Attributes
    ----------
    n_samples, n_steps
        How many samples, and in how many steps each; at least 1.
    seed
        At least 0.

    Raises
    ------
    ExportError
        If one of them is less.
    """

    n_samples: int = 4
    n_steps: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("samples", self.n_samples, 1),
            ("steps", self.n_steps, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ExportError(f"{name} is {value}, expected {least} or more; give another --{name}")

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

    Attributes
    ----------
    module, source, source_file, arguments
        What its weights are of, the file that defines it, and what it is made with.
    output, description
        Id of the output tensor, and what its values are.
    channel_names
        Of the output.
    facts
        For ``config.gap_bioimage``.
    tags
        Beyond those of every zip.
    sampling, sampler
        What is drawn, and by which module; None where nothing is.
    hook
        The operation that samples, where the graph does not.
    own
        The user's postprocessing.
    intake
        What the zip is given.
    """

    module: nn.Module
    source: str
    source_file: str
    arguments: dict[str, Any]
    output: str
    description: str
    channel_names: list[str]
    facts: dict[str, Any]
    tags: tuple[str, ...] = ()
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
        return output if self.own is None else apply_checked(self.own, output)


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
    if kind != "denoise":
        return _sampling_product(kind, model, box_px, sampling, own, intake)
    channels = model.config.channels
    return Product(
        intake=intake,
        module=denoiser_of(model, box_px, **intake.arguments),
        source=architecture_source(),
        source_file=NETWORK_FILE,
        arguments={"box_px": list(box_px), **intake.arguments, **model.config.model_dump(mode="json")},
        output="rate",
        description="expected photons per pixel (posterior mean)",
        channel_names=["rate"] if channels == 1 else [f"rate{i}" for i in range(channels)],
        facts=_facts(kind, own, intake, model),
        own=own,
    )


def counts_sampler(model: Model, box_px: list[int], sampling: Sampling) -> PosteriorSampler:
    """Return the sampler of a zip whose input are counts without further ado."""
    return sampler_of(model, sampler_arguments(model, box_px, sampling.n_samples, sampling.n_steps, sampling.seed))


def _sampling_product(
    kind: Kind, model: Model, box_px: list[int], sampling: Sampling, own: Operation | None, intake: Intake
) -> Product:
    channels, names = model.config.channels, sampling.channels
    arguments = sampler_arguments(model, box_px, sampling.n_samples, sampling.n_steps, sampling.seed)
    arguments |= intake.arguments
    sampler = sampler_of(model, arguments)
    in_graph = Product(
        intake=intake,
        module=sampler,
        source=architecture_source(sampling=True),
        source_file=NETWORK_FILE,
        arguments=arguments,
        output="posterior",
        description="mean and standard deviation of samples of the clean image, then the samples: photons per pixel",
        channel_names=names if channels == 1 else [f"{name}_{i}" for name in names for i in range(channels)],
        facts={
            **_facts(kind, own, intake, model),
            "stochastic": True,
            "n_samples": sampling.n_samples,
            "n_steps": sampling.n_steps,
            "seed": sampling.seed,
        },
        tags=("posterior-sampling", "uncertainty"),
        sampling=sampling,
        sampler=sampler,
        own=own,
    )
    if kind == "sample":
        return in_graph
    facts = {"requires": REQUIRES, "sampler": {"source": SAMPLER_WEIGHTS, "kwargs": arguments}}
    return replace(
        in_graph,
        module=PhotonCopies(len(names)).eval().requires_grad_(False),
        source=Path(copies.__file__).read_text(encoding="utf-8"),
        source_file=Path(copies.__file__).name,
        arguments={"copies": len(names)},
        facts={**in_graph.facts, **facts},
        hook=sampling_operation(sampler),
    )


def _facts(kind: Kind, own: Operation | None, intake: Intake, model: Model) -> dict[str, Any]:
    facts = {
        "kind": kind,
        # photons are not what is given, where a camera or one-bit frames stand between
        "conserves_photons": own is None and not intake.arguments,
        "trained_range_db": list(model.trained_range_db),
        **intake.facts,
    }
    return facts if own is None else {**facts, "requires": REQUIRES}


def sampling_operation(sampler: PosteriorSampler) -> Operation:
    """Return the operation that samples: the file ``sampling_op.py`` with a network filled in."""
    # of the ways to write bytes as text this is decoded the fastest, and in the zip none is smaller
    text = base64.encodebytes(zlib.compress(torchscript_of(sampler))).decode()
    source = Path(sampling_op.__file__).read_text(encoding="utf-8")
    for empty, filled in (
        ("\nCHANNELS = 1\n", f"\nCHANNELS = {sampler.network.channels}\n"),
        ('\nTORCHSCRIPT = """\n"""\n', f'\nTORCHSCRIPT = """\n{text}"""\n'),
    ):
        source = source.replace(empty, filled)
    kwargs = {"n_steps": sampler.n_steps, "seed": sampler.seed, "device": "cpu"}
    return Operation(SAMPLING_FILE, source.encode(), sampling_op.SamplePosterior.__name__, kwargs)


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
