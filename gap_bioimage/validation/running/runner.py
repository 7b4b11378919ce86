"""Run a model through bioimageio.core's own pipeline, one weights format at a time."""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gap_bioimage.validation.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
    Sizes = dict[str, dict[str, int]]
    Slices = tuple[slice, ...]


SHARED_SEED = 1
"""Torch's random state before the runs that several checks look at."""


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
    adapter
        bioimageio.core's object for weights that are loaded already.
    """

    def __init__(
        self,
        descr: Any,
        weights_format: str,
        device: str,
        file: Path | None = None,
        rdf: Mapping[str, Any] | None = None,
        adapter: Any = None,
    ) -> None:
        from bioimageio.core import create_prediction_pipeline
        from bioimageio.core.backends import create_model_adapter
        from bioimageio.core.digest_spec import get_test_input_sample, get_test_output_sample

        self.descr = descr
        self.weights_format = weights_format
        self.device = device
        self.file = file
        self.rdf = rdf
        with quiet():
            # The adapter loads the model when it is made; entering the pipeline would load it again.
            self._adapter = adapter or create_model_adapter(
                model_description=descr, devices=[device], weight_format_priority_order=[cast("Any", weights_format)]
            )
            self._pipeline = create_prediction_pipeline(
                descr, weight_format=cast("Any", weights_format), devices=[device], model_adapter=self._adapter
            )
            self._inputs = get_test_input_sample(descr)
            self._outputs = get_test_output_sample(descr)

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with quiet():
            cast("Any", self._pipeline).close()

    def described_as(self, descr: Any) -> Runner:
        """The same loaded weights under another description; it must not be closed."""
        return Runner(descr, self.weights_format, self.device, self.file, self.rdf, self._adapter)

    @property
    def is_sized(self) -> bool:
        """Whether the description declares sizes that this class can vary (format 0.5)."""
        return hasattr(self.descr, "get_tensor_sizes")

    @property
    def steps(self) -> dict[tuple[str, str], int]:
        """Step in pixels of each input axis whose size is ``min + n step``, by (tensor id, axis id)."""
        if not self.is_sized:
            return {}
        return {
            (str(tensor.id), str(axis.id)): axis.size.step
            for tensor in self.descr.inputs
            for axis in tensor.axes
            if getattr(axis.size, "step", None) is not None
        }

    @property
    def halo(self) -> dict[str, dict[str, int]]:
        """The declared halo in input pixels, by input id and axis id; axes without one are left out."""
        return {
            str(tensor): {str(axis): max(halo) for axis, halo in axes.items() if max(halo) > 0}
            for tensor, axes in self._halos().items()
        }

    @property
    def batch_is_free(self) -> bool:
        """Whether every input has a batch axis of any size."""
        if not self.is_sized:
            return False
        kinds = [[axis for axis in tensor.axes if axis.type == "batch"] for tensor in self.descr.inputs]
        return all(axes and axes[0].size is None for axes in kinds)

    @property
    def postprocesses_whole_images(self) -> bool:
        """Whether postprocessing takes statistics of the whole output, so that no tile can be finished alone."""
        return bool(self._pipeline.has_non_blockwise_postprocessing)

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
        return self.inputs_of(self.sizes(0)[0]) if self.steps else self.test_inputs

    @cached_property
    def small_outputs(self) -> Arrays:
        """The outputs for the small inputs, of one run that several checks share."""
        small, test = self.small_inputs, self.test_inputs
        if all(np.array_equal(small[name], test[name]) for name in small):
            return self.produced
        return self._run_seeded(small)

    def _run_seeded(self, inputs: Arrays) -> Arrays:
        """Run from a known random state, so that a later run can start from another one."""
        import torch

        torch.manual_seed(SHARED_SEED)
        return self.run(inputs)

    @property
    def has_custom_postprocessing(self) -> bool:
        """Whether an output goes through Python code of the package."""
        steps = [step for tensor in self.descr.outputs for step in getattr(tensor, "postprocessing", None) or []]
        return any(getattr(step, "id", None) == "custom" for step in steps)

    def axes(self, name: str) -> tuple[str, ...]:
        """Axis ids of a tensor."""
        members = {**self._inputs.members, **self._outputs.members}
        return next(tuple(map(str, tensor.dims)) for key, tensor in members.items() if str(key) == name)

    def sizes(self, ns: Mapping[tuple[str, str], int] | int, batch: int = 1) -> tuple[Sizes, dict[str, Any]]:
        """Input sizes, and the output sizes that the description promises, at size parameters ``n``."""
        if isinstance(ns, int):
            ns = dict.fromkeys(self.steps, ns)
        found = self.descr.get_tensor_sizes(ns, batch)
        inputs = {str(t): {str(a): int(s) for a, s in axes.items()} for t, axes in found.inputs.items()}
        outputs = {str(t): {str(a): s for a, s in axes.items()} for t, axes in found.outputs.items()}
        return inputs, outputs

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
        with quiet():
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
        with quiet():
            result = self._pipeline.predict_sample_without_blocking(
                self._sample(inputs),
                skip_preprocessing=preprocessed,
                skip_postprocessing=not postprocess,
                skip_input_padding=not padded,
                skip_output_cropping=not padded,
            )
        return {str(name): tensor.to_numpy() for name, tensor in result.members.items()}

    def run_tiles(
        self, inputs: Arrays, tile: Sizes, most: int, *, postprocess: bool = True
    ) -> Iterator[tuple[Arrays, dict[str, Slices]]]:
        """Run the model on some of the tiles of preprocessed inputs, as users' tiled predictions do.

        Parameters
        ----------
        inputs
            By tensor id, axes as declared; at least as large as the tile.
        tile
            Size of a tile, the declared halo included.
        most
            At most so many tiles are run, spread evenly over the image.
        postprocess
            Apply the postprocessing to each tile.

        Yields
        ------
        The outputs of a tile without their halo, and where in the whole output they belong, by output id.
        """
        pipeline = cast("Any", self._pipeline)
        n_tiles, blocks = self._sample(inputs).split_into_blocks(
            cast("Any", tile), halo=self._halos(), pad_mode=pipeline.pad_mode
        )
        chosen = {int(index) for index in np.linspace(0, n_tiles - 1, min(most, n_tiles))}
        for index, block in enumerate(blocks):
            if index not in chosen:
                continue
            with quiet():
                result = pipeline.predict_sample_block(
                    block, skip_preprocessing=True, skip_postprocessing=not postprocess
                )
            found = result.blocks.items()
            outputs = {str(name): piece.inner_data.to_numpy() for name, piece in found}
            places = {
                str(name): tuple(
                    slice(piece.inner_slice[dim].start, piece.inner_slice[dim].stop) for dim in piece.data.dims
                )
                for name, piece in found
            }
            yield outputs, places

    def _halos(self) -> Any:
        """The declared halo as bioimageio.core wants it."""
        from bioimageio.core.digest_spec import get_input_halo

        return get_input_halo(self.descr) if self.is_sized else {}

    def _sample(self, inputs: Arrays) -> Any:
        from bioimageio.core import Sample, Tensor

        dims = {name: tensor.dims for name, tensor in self._inputs.members.items()}
        members = {
            name: Tensor(np.ascontiguousarray(inputs[str(name)]), dims=dims[name]) for name in self._inputs.members
        }
        # A fresh sample each time: processing changes members and statistics in place.
        return Sample(members=members, stat=deepcopy(self._inputs.stat), id="validation")
