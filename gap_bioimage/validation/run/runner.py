"""A model loaded by bioimageio.core's own pipeline: the subject of every check in this package."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gap_bioimage.validation import quiet
from gap_bioimage.validation.check import NotApplicable, counted, one_sentence
from gap_bioimage.validation.rules import section

Arrays = dict[str, NDArray[Any]]
Sizes = dict[str, dict[str, int]]
Axis = tuple[str, str]  # tensor id, axis id

MAX_VOXELS = 2**22  # larger inputs (channels included) are not run: a U-Net needs some hundred bytes per voxel
SHARED_SEED = 1  # seeds torch before runs that several checks share


class ModelError(Exception):
    """An exception of a model, or of a library that runs it: a failure of the model, never of a check."""


@contextmanager
def of_the_model(part: str = "") -> Iterator[None]:
    """Turn any exception inside the block into a `ModelError` of one plain sentence, which names the part if given."""
    try:
        yield
    except Exception as error:
        while isinstance(error, ExceptionGroup):  # from bioimageio.core, one exception per device
            error = error.exceptions[0]
        if isinstance(error, ImportError) and isinstance(error.__cause__, Exception):  # why code cannot be imported
            error = error.__cause__
        kind, message = type(error).__name__, re.sub(r"(?<=_)[0-9a-f]{64}", "", str(error))
        text = one_sentence(message, 200).rstrip(": ").removeprefix("RuntimeError: ")  # torch.jit's prefix
        if isinstance(error, KeyError):
            text = f"KeyError: there is no {text}; if a processing step refers to it, name a tensor of the model"
        elif not re.match(r"[\w.]+(Error|Exception)\b", text):
            text = ": ".join(filter(None, (kind, text)))
        text = re.sub(r" does not map to axes \[.*", " is not a declared size", text)
        raise ModelError(f"{part}: {text}" if part else text) from error


class Runner(AbstractContextManager["Runner"]):
    """A loaded model, whose inputs and outputs are numpy arrays by tensor id, axes as declared; a context manager.

    ``file`` holds the weights if they are a file of the package. ``rdf`` is the description as written: bioimageio.spec
    adds steps, such as ``ensure_dtype``, to its own version. Errors while loading and running are a `ModelError`.
    """

    def __init__(
        self, descr: Any, weights_format: str, device: str, file: Path | None = None,
        rdf: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        from bioimageio.core import create_prediction_pipeline
        from bioimageio.core.backends import create_model_adapter
        from bioimageio.core.digest_spec import get_test_input_sample, get_test_output_sample

        self.descr, self.weights_format, self.device, self.file = descr, weights_format, device, file
        self.rdf: Mapping[str, Any] = rdf or {}
        weights = cast("Any", weights_format)
        with quiet(), of_the_model():
            # The adapter loads the model when it is made; entering a pipeline would load it again.
            adapter = create_model_adapter(
                model_description=descr, devices=[device], weight_format_priority_order=[weights]
            )
            # a new one for each run, since a used one carries statistics of earlier images
            self._pipeline: Callable[[], Any] = partial(
                create_prediction_pipeline, descr, weight_format=weights, devices=[device], model_adapter=adapter
            )
            self._unload: Callable[[], None] = adapter.unload
        with quiet(), of_the_model("the processing"):
            self._pipeline()  # raises if bioimageio.core lacks a step
        with quiet(), of_the_model("the test tensors"):
            self._inputs, outputs = get_test_input_sample(descr), get_test_output_sample(descr)
        self._statistics: Mapping[Any, Any] = {}  # of the inputs preprocessed last
        self.test_inputs, self.test_outputs = _arrays(self._inputs), _arrays(outputs)
        members = {**self._inputs.members, **outputs.members}
        self._axes = {str(name): tuple(map(str, tensor.dims)) for name, tensor in members.items()}
        is_new = hasattr(descr, "get_tensor_sizes")  # sizes of format 0.4 that cannot be upgraded count as fixed
        axes = {(str(t.id), str(a.id)): a for t in (*descr.inputs, *descr.outputs) for a in t.axes} if is_new else {}
        # of parameterized input sizes
        self.steps: dict[Axis, int] = {key: a.size.step for key, a in axes.items() if hasattr(a.size, "step")}
        # whether input sizes refer to those of other inputs, so that no axis can vary alone
        self.has_linked_sizes = is_new and any(hasattr(a.size, "tensor_id") for t in descr.inputs for a in t.axes)
        # in output pixels
        self.halo: dict[Axis, int] = {key: int(a.halo) for key, a in axes.items() if getattr(a, "halo", 0)}

    def __exit__(self, *_: object) -> None:
        with quiet():
            self._unload()

    @property
    def is_stochastic(self) -> bool:
        """Whether ``config.gap_bioimage`` declares a sampler, which is slow and draws other samples in each tile."""
        config = section(self.rdf, "gap_bioimage")
        return isinstance(config, dict) and config.get("stochastic") is True

    @property
    def postprocesses_whole_images(self) -> bool:
        """Whether postprocessing needs statistics of the whole output, so that no tile can be finished alone."""
        return bool(self._pipeline().has_non_blockwise_postprocessing)

    @cached_property
    def produced(self) -> Arrays:
        """The outputs for the test inputs, from one run that several checks share."""
        return self.run_seeded(self.test_inputs)

    @cached_property
    def _small(self) -> tuple[Arrays, Arrays] | None:
        """Inputs of the smallest declared size and their outputs, from one run; None if that size does not run."""
        smallest = self.sizes(0)[0]
        if voxels(smallest) > MAX_VOXELS:
            raise NotApplicable("the smallest declared input is too large to run here")
        inputs = self.inputs_of(smallest)
        if all(np.array_equal(inputs[name], array) for name, array in self.test_inputs.items()):
            return inputs, self.produced
        with suppress(ModelError):
            return inputs, self.run_seeded(inputs)
        return None

    @property
    def takes_declared_sizes(self) -> bool:
        """Whether the smallest declared size runs; ``run.sizes`` reports if it does not."""
        return not self.steps or self._small is not None

    @property
    def small_inputs(self) -> Arrays:
        """The test inputs at the smallest declared size, or unchanged if sizes are fixed or that size does not run."""
        return self._small[0] if self.steps and self._small is not None else self.test_inputs

    @property
    def small_outputs(self) -> Arrays:
        """The outputs for `small_inputs`, from one run that several checks share."""
        return self._small[1] if self.steps and self._small is not None else self.produced

    @cached_property
    def script(self) -> Script:
        """The TorchScript alone, as an engine loads it."""
        if self.file is None:
            raise NotApplicable("the weights are not a file of the package")
        return Script(self.file, list(self.preprocess(self.small_inputs).values()))

    def run_seeded(self, inputs: Arrays, *, postprocess: bool = True) -> Arrays:
        """Run from a known random state; later runs can start from another one."""
        import torch

        torch.manual_seed(SHARED_SEED)
        return self.run(inputs, postprocess=postprocess)

    def axes(self, name: str) -> tuple[str, ...]:
        """Axis ids of a tensor."""
        return self._axes[name]

    def sizes(self, ns: Mapping[Axis, int] | int) -> tuple[Sizes, dict[str, Any]]:
        """Return input sizes, and the output sizes that the description declares, at size parameters ``ns``."""
        sizes = self.descr.get_tensor_sizes(dict.fromkeys(self.steps, ns) if isinstance(ns, int) else ns, 1)
        inputs = {str(t): {str(a): int(s) for a, s in axes.items()} for t, axes in sizes.inputs.items()}
        return inputs, {str(t): {str(a): s for a, s in axes.items()} for t, axes in sizes.outputs.items()}

    def shape_of(self, sizes: Sizes) -> tuple[int, ...]:
        """Sizes of the first flexible input along its flexible axes, in pixels."""
        first = next(iter(self.steps))[0]
        return tuple(sizes[tensor][axis] for tensor, axis in self.steps if tensor == first)

    def inputs_of(self, sizes: Sizes) -> Arrays:
        """Return the test inputs, cropped or mirrored up to the given sizes."""
        members = self._inputs.members.items()
        with quiet():
            return {str(name): tensor.resize_to(cast("Any", sizes[str(name)])).to_numpy() for name, tensor in members}

    def preprocess(self, inputs: Arrays) -> Arrays:
        """Apply the declared preprocessing to whole inputs; keep its statistics, which postprocessing may need."""
        sample = self._sample(inputs, {})
        with quiet(), of_the_model():
            self._pipeline().apply_preprocessing(sample)
        self._statistics = sample.stat
        return _arrays(sample)

    def run(self, inputs: Arrays, *, preprocessed: bool = False, postprocess: bool = True) -> Arrays:
        """Run the model and its processing on whole inputs, or on parts of the last result of `preprocess`."""
        with quiet(), of_the_model():
            result = self._pipeline().predict_sample_without_blocking(
                self._sample(inputs, self._statistics if preprocessed else {}), skip_preprocessing=preprocessed,
                skip_postprocessing=not postprocess, skip_input_padding=True, skip_output_cropping=True,
            )  # fmt: skip
        outputs = _arrays(result)
        if missing := [name for name in self.test_outputs if name not in outputs]:
            raise ModelError(f"the model gives {counted(len(outputs), 'output')}, {missing[0]!r} is not among them")
        return outputs

    def _sample(self, inputs: Arrays, stat: Mapping[Any, Any]) -> Any:
        from bioimageio.core import Sample, Tensor

        tests = self._inputs.members.items()
        members = {name: Tensor(np.ascontiguousarray(inputs[str(name)]), dims=test.dims) for name, test in tests}
        # A fresh sample each time: processing changes members and statistics in place.
        return Sample(members=members, stat=dict(stat), id="validation")


class Script:
    """A TorchScript module, run on preprocessed inputs in the mode in which it was saved, then in `eval` mode."""

    def __init__(self, file: Path, inputs: Sequence[NDArray[Any]]) -> None:
        import torch

        with of_the_model():
            self._module: Any = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
        parts = self._module.named_modules()
        self.training = [name or "the module" for name, part in parts if getattr(part, "training", False)]
        self.as_saved = self.run(inputs)
        self._module.eval()

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]] | str:
        """Return the arrays from the graph, or the name of the type that it returns instead of a tensor."""
        import torch

        torch.manual_seed(SHARED_SEED)
        with torch.no_grad(), of_the_model():
            returned = self._module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
        outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        others = [type(output).__name__ for output in outputs if not isinstance(output, torch.Tensor)]
        return others[0] if others else [output.numpy() for output in outputs]


def voxels(sizes: Sizes) -> int:
    """Number of elements of the largest input."""
    return max(math.prod(axes.values()) for axes in sizes.values())


def _arrays(sample: Any) -> Arrays:
    return {str(name): tensor.to_numpy() for name, tensor in sample.members.items()}
