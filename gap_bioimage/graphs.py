"""Networks whose kernels a GPU starts by itself: launching them one by one takes longer than running them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from gap_bioimage.anchor import kept_matrices

if TYPE_CHECKING:
    from torch import Tensor

    from gap_bioimage.network import UNet

_MOST_PX, _MOST_SHAPES = 2**21, 16  # larger images keep a GPU busy anyway


class RecordedNetwork:
    """A network that is recorded as a CUDA graph for each shape of counts that comes a second time.

    What it returns holds until the next call.
    """

    def __init__(self, network: UNet) -> None:
        self.network = network
        self._seen: set[torch.Size] = set()
        self._recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, list[Tensor]]] = {}
        self._memory: Any = None

    def __call__(self, photons: Tensor) -> Tensor:
        """Return log-rates for counts (b, c, [z,] y, x)."""
        shape = photons.shape
        if shape not in self._recorded:
            full = len(self._recorded) >= _MOST_SHAPES
            if photons.device.type != "cuda" or shape not in self._seen or photons.numel() > _MOST_PX or full:
                self._seen.add(shape)
                return self.network(photons)  # type: ignore[no-any-return]
            self._recorded[shape] = self._record(photons)
        graph, given, log_rate, _ = self._recorded[shape]
        given.copy_(photons)
        graph.replay()
        return log_rate

    def _record(self, photons: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, list[Tensor]]:
        given, graph = photons.clone(), torch.cuda.CUDAGraph()
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        # other threads may go on with what they do on the device
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            log_rate = self.network(given)
        return graph, given, log_rate, kept_matrices()


def record_training(network: UNet, photons: Tensor) -> list[Tensor]:
    """Record forward and backward pass for batches of this shape; return what must be kept with the network."""
    kind, mixed = photons.device.type, torch.is_autocast_enabled(photons.device.type)
    # casts that are cached would be missing in the recording
    uncached: Any = torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)
    with uncached if mixed else contextlib.nullcontext():
        torch.cuda.make_graphed_callables(network, (photons.clone(),))
    return kept_matrices()
