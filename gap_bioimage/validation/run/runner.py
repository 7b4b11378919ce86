"""A model that is loaded, by bioimageio.core's own pipeline: the subject of every check in this package."""

from __future__ import annotations

import math
import re
import zipfile
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gap_bioimage.validation.check import NotApplicable, one_sentence
from gap_bioimage.validation.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
    Sizes = dict[str, dict[str, int]]

MAX_VOXELS = 2**22
"""Larger inputs (channels included) are not made: a U-Net needs some hundred bytes for each."""
SHARED_SEED = 1
"""Torch's random state before the runs that several checks look at."""


class ModelError(Exception):
    """What a model, or a library that runs it, raised: the model's failure, and never one of the checks."""


@contextmanager
def of_the_model(file: Path | None = None) -> Iterator[None]:
    """Take whatever is raised inside the block for the model's failure."""
    try:
        yield
    except Exception as error:
        raise ModelError(explained(error, file)) from error


def explained(error: BaseException, file: Path | None = None) -> str:
    """What a library raised, in one plain sentence.

    Parameters
    ----------
    error
        The error.
    file
        The weights that were being loaded.
    """
    kind, text = type(error).__name__, re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if isinstance(error, KeyError):
        return f"a processing step refers to {text}, which is not there: name a tensor of the model (reference_tensor)"
    if file is not None and re.search(r"constants\.pkl|PytorchStreamReader|miniz", text):
        return _not_torchscript(file)
    if found := re.search(r"Unsupported (?:global|class|operand)\D*? ([\w.]+)", text):
        return f"the weights hold Python objects ({found[1]}) beside the tensors: save the state_dict alone"
    return f"{kind}: {one_sentence(text, 200)}" if text else kind


def _not_torchscript(file: Path) -> str:
    try:
        names = zipfile.ZipFile(file).namelist()
    except (OSError, zipfile.BadZipFile):
        return f"{file.name} is not a file of weights, or is cut off"
    if any(name.endswith("data.pkl") for name in names) and not any("/code/" in name for name in names):
        return f"{file.name} is a state_dict saved by torch.save, not TorchScript: save it with torch.jit.save"
    return f"{file.name} is not TorchScript, or parts of it are missing"


class Runner:
    """A loaded model, whose inputs and outputs are numpy arrays by tensor id.

    Parameters
    ----------
    descr
        bioimageio.spec's model description, format 0.4 or 0.5.
    weights_format
        E.g. ``torchscript``.
    device
        E.g. ``cpu`` or ``cuda:0``.
    file
        The weights, where they are a file of the package.
    rdf
        The description as its author wrote it: bioimageio.spec adds steps, such as ``ensure_dtype``, to its own.

    Raises
    ------
    ModelError
        If it does not load. So does everything that runs it.
    """

    def __init__(
        self,
        descr: Any,
        weights_format: str,
        device: str,
        file: Path | None = None,
        rdf: Mapping[str, Any] | None = None,
    ) -> None:
        from bioimageio.core import create_prediction_pipeline
        from bioimageio.core.backends import create_model_adapter
        from bioimageio.core.digest_spec import get_test_input_sample, get_test_output_sample

        self.descr, self.weights_format, self.device, self.file = descr, weights_format, device, file
        self.rdf: Mapping[str, Any] = {} if rdf is None else rdf
        with quiet(), of_the_model(file):
            # The adapter loads the model when it is made; entering the pipeline would load it again.
            adapter = create_model_adapter(
                model_description=descr, devices=[device], weight_format_priority_order=[cast("Any", weights_format)]
            )
            self._pipeline = create_prediction_pipeline(
                descr, weight_format=cast("Any", weights_format), devices=[device], model_adapter=adapter
            )
            self._inputs, self._outputs = get_test_input_sample(descr), get_test_output_sample(descr)
        members = {**self._inputs.members, **self._outputs.members}
        self._axes = {str(name): tuple(map(str, tensor.dims)) for name, tensor in members.items()}

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with quiet():
            cast("Any", self._pipeline).close()

    @property
    def steps(self) -> dict[tuple[str, str], int]:
        """Step in pixels of each input axis whose size is ``min + n step``, by (tensor id, axis id)."""
        if not hasattr(self.descr, "get_tensor_sizes"):  # format 0.4 that cannot be upgraded
            return {}
        return {
            (str(tensor.id), str(axis.id)): axis.size.step
            for tensor in self.descr.inputs
            for axis in tensor.axes
            if getattr(axis.size, "step", None) is not None
        }

    @property
    def halo(self) -> dict[tuple[str, str], int]:
        """The declared halo in output pixels, by (output id, axis id)."""
        outputs = self.descr.outputs if hasattr(self.descr, "get_tensor_sizes") else ()
        return {(str(t.id), str(a.id)): int(a.halo) for t in outputs for a in t.axes if getattr(a, "halo", 0)}

    @property
    def batch_is_free(self) -> bool:
        """Whether every input has a batch axis of any size."""
        kinds = [[axis for axis in tensor.axes if getattr(axis, "type", "") == "batch"] for tensor in self.descr.inputs]
        return all(axes and axes[0].size is None for axes in kinds)

    @property
    def is_stochastic(self) -> bool:
        """Whether the model is declared to draw samples, others in each tile, and to take long for them."""
        return self.declared("stochastic") is True

    def declared(self, key: str) -> Any:
        """A value of ``config.gap_bioimage`` in the description, None if it is absent."""
        config = self.descr.config
        extra = config if isinstance(config, dict) else getattr(config, "model_extra", None)
        section = (extra or {}).get("gap_bioimage")
        return section.get(key) if isinstance(section, dict) else None

    @property
    def postprocesses_whole_images(self) -> bool:
        """Whether postprocessing takes statistics of the whole output, so that no tile can be finished alone."""
        return bool(self._pipeline.has_non_blockwise_postprocessing)

    @property
    def has_custom_postprocessing(self) -> bool:
        """Whether an output goes through Python code of the package."""
        steps = [step for tensor in self.descr.outputs for step in getattr(tensor, "postprocessing", None) or []]
        return any(getattr(step, "id", None) == "custom" for step in steps)

    @property
    def test_inputs(self) -> Arrays:
        """The packaged test inputs, axes as declared."""
        return {str(name): tensor.to_numpy() for name, tensor in self._inputs.members.items()}

    @property
    def test_outputs(self) -> Arrays:
        """The packaged expected outputs, axes as declared."""
        return {str(name): tensor.to_numpy() for name, tensor in self._outputs.members.items()}

    @cached_property
    def produced(self) -> Arrays:
        """The outputs for the test inputs."""
        return self._run_seeded(self.test_inputs)

    @cached_property
    def small_inputs(self) -> Arrays:
        """The test inputs at the smallest declared size, or as they are where that is fixed."""
        if not self.steps:
            return self.test_inputs
        smallest = self.sizes(0)[0]
        if voxels(smallest) > MAX_VOXELS:
            raise NotApplicable("the smallest declared input is too large to be run here")
        return self.inputs_of(smallest)

    @cached_property
    def small_outputs(self) -> Arrays:
        """The outputs for the small inputs, of one run that several checks share."""
        small, test = self.small_inputs, self.test_inputs
        if all(np.array_equal(small[name], test[name]) for name in small):
            return self.produced
        return self._run_seeded(small)

    @cached_property
    def graph_outputs(self) -> Arrays:
        """The outputs for the small inputs before postprocessing."""
        return self.run(self.small_inputs, postprocess=False)

    @cached_property
    def script(self) -> Script:
        """The TorchScript by itself, as an engine loads it."""
        if self.file is None:
            raise NotApplicable("the weights are not a file of the package")
        return Script(self.file, list(self.preprocess(self.small_inputs).values()))

    def _run_seeded(self, inputs: Arrays) -> Arrays:
        """Run from a known random state, so that a later run can start from another one."""
        import torch

        torch.manual_seed(SHARED_SEED)
        return self.run(inputs)

    def axes(self, name: str) -> tuple[str, ...]:
        """Axis ids of a tensor."""
        return self._axes[name]

    def sizes(self, ns: Mapping[tuple[str, str], int] | int) -> tuple[Sizes, dict[str, Any]]:
        """Input sizes, and the output sizes that the description promises, at size parameters ``n``."""
        if isinstance(ns, int):
            ns = dict.fromkeys(self.steps, ns)
        found = self.descr.get_tensor_sizes(ns, 1)
        inputs = {str(t): {str(a): int(s) for a, s in axes.items()} for t, axes in found.inputs.items()}
        outputs = {str(t): {str(a): s for a, s in axes.items()} for t, axes in found.outputs.items()}
        return inputs, outputs

    def shape_of(self, sizes: Sizes) -> tuple[int, ...]:
        """Sizes of the first flexible input along its flexible axes, in pixels."""
        first = next(iter(self.steps))[0]
        return tuple(sizes[tensor][axis] for tensor, axis in self.steps if tensor == first)

    def inputs_of(self, sizes: Sizes) -> Arrays:
        """The test inputs, cropped or continued by mirroring to the given sizes."""
        with quiet():
            return {
                str(name): tensor.resize_to(cast("Any", sizes[str(name)])).to_numpy()
                for name, tensor in self._inputs.members.items()
            }

    def preprocess(self, inputs: Arrays) -> Arrays:
        """Apply the declared preprocessing to whole inputs, axes as declared."""
        sample = self._sample(inputs)
        with quiet(), of_the_model():
            self._pipeline.apply_preprocessing(sample)
        return {str(name): tensor.to_numpy() for name, tensor in sample.members.items()}

    def run(
        self, inputs: Arrays, *, preprocessed: bool = False, padded: bool = False, postprocess: bool = True
    ) -> Arrays:
        """Run the model and its processing on whole inputs.

        Parameters
        ----------
        inputs
            By tensor id, axes as declared.
        preprocessed
            The inputs have been through `preprocess`.
        padded
            Mirror the inputs outwards by the halo and crop the outputs, as users' predictions do.
        postprocess
            Apply the postprocessing.
        """
        sample = self._sample(inputs)
        with quiet(), of_the_model():
            result = self._pipeline.predict_sample_without_blocking(
                sample,
                skip_preprocessing=preprocessed,
                skip_postprocessing=not postprocess,
                skip_input_padding=not padded,
                skip_output_cropping=not padded,
            )
        return {str(name): tensor.to_numpy() for name, tensor in result.members.items()}

    def _sample(self, inputs: Arrays) -> Any:
        from bioimageio.core import Sample, Tensor

        members = {
            name: Tensor(np.ascontiguousarray(inputs[str(name)]), dims=tensor.dims)
            for name, tensor in self._inputs.members.items()
        }
        # A fresh sample each time: processing changes members and statistics in place.
        return Sample(members=members, stat=deepcopy(self._inputs.stat), id="validation")


class Script:
    """A TorchScript file in the state in which it was saved, and what it makes of some inputs before `eval`.

    Parameters
    ----------
    file
        The weights.
    inputs
        Preprocessed, in the order of the graph's arguments.
    """

    def __init__(self, file: Path, inputs: Sequence[NDArray[Any]]) -> None:
        import torch

        with of_the_model(file):
            self._module: Any = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
        parts = self._module.named_modules()
        self.training = [name or "the module" for name, part in parts if getattr(part, "training", False)]
        self.as_saved = self.run(inputs)
        self._module.eval()

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]] | str:
        """The arrays that the graph returns, or the name of the type that it returns instead of tensors."""
        import torch

        with torch.no_grad(), of_the_model():
            returned = self._module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
        outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        strange = [type(output).__name__ for output in outputs if not isinstance(output, torch.Tensor)]
        return strange[0] if strange else [output.numpy() for output in outputs]


def voxels(sizes: Sizes) -> int:
    """Number of elements of the largest input."""
    return max(math.prod(axes.values()) for axes in sizes.values())
