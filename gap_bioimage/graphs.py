"""CUDA graphs and fused convolutions: launching many small kernels one by one takes longer than running them."""

import contextlib
import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gap_bioimage.filters import kept_matrices
from gap_bioimage.network import ConvBlock, UNet

CHANNELS_LAST: dict[int, Any] = {2: torch.channels_last, 3: torch.channels_last_3d}
"""Memory format by spatial dimensions, in which convolutions take a fifth to a third less time."""
_MOST_SHAPES = 16


class Recorded:
    """A function of tensors, recorded as a CUDA graph when shapes occur for the second time.

    Results are valid until the next call. Inputs of more than ``most`` elements in total are not recorded.
    """

    def __init__(self, function: Callable[..., Any], most: float = float("inf")) -> None:
        self.function, self.most = function, most
        self._seen: set[tuple[torch.Size, ...]] = set()
        self._recorded: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Any, list[Tensor]]] = {}
        self._memory: Any = None

    def __call__(self, *given: Tensor) -> Any:
        """Return the result of the function."""
        if not given[0].is_cuda or sum(tensor.numel() for tensor in given) > self.most:
            return self.function(*given)
        shapes = tuple(tensor.shape for tensor in given)
        if shapes not in self._recorded:
            if shapes not in self._seen or len(self._recorded) >= _MOST_SHAPES:
                self._seen.add(shapes)
                return self.function(*given)
            self._recorded[shapes] = self._record(given)
        graph, places, result, _ = self._recorded[shapes]
        torch._foreach_copy_(places, given)
        graph.replay()
        return result

    def _record(self, given: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any, list[Tensor]]:
        places, graph = [tensor.clone() for tensor in given], torch.cuda.CUDAGraph()
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        # other threads may continue to use the device
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            result = self.function(*places)
        return graph, places, result, kept_matrices()


def record_training(network: UNet, photons: Tensor) -> list[Tensor]:
    """Record forward and backward pass for batches of this shape; return tensors to keep alive with the network."""
    kind, mixed = photons.device.type, torch.is_autocast_enabled(photons.device.type)
    # cached casts would be missing from the recording
    uncached: Any = torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)
    with uncached if mixed else contextlib.nullcontext():
        torch.cuda.make_graphed_callables(network, (photons.clone(),))
    return kept_matrices()


def quick(network: UNet, bf16: bool) -> UNet:
    """Return a copy in bfloat16 or float32, on GPUs with fused kernels; on CPUs in float32 the network itself."""
    weight = network.conv_final.weight
    if not (bf16 or weight.is_cuda):
        return network
    network = copy.deepcopy(network)
    acceptable = torch.version.cuda is not None and torch.backends.cudnn.is_acceptable(weight)  # type: ignore[no-untyped-call]
    if acceptable and has_bf16(weight.device):
        for block in network.modules():
            if isinstance(block, ConvBlock):
                # tensor cores need multiples of 8 channels, or the first convolution takes as long as five others
                missing = -block.conv1.in_channels % 8
                block.conv1.weight = nn.Parameter(_more_channels(block.conv1.weight, missing), requires_grad=False)
                block.convolve = types.MethodType(_convolve, block)  # type: ignore[method-assign]
    return network.to(torch.bfloat16) if bf16 else network


def has_bf16(device: torch.device) -> bool:
    """Return whether a device is a GPU with native bfloat16 (Nvidia: since Ampere)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _convolve(block: ConvBlock, x: Tensor) -> Tensor:
    first, second, third = block.conv1, block.conv2, block.conv3
    shortcut = first(_more_channels(x, first.weight.shape[1] - x.shape[1]))
    kept = second.stride, second.padding, second.dilation, 1
    x = torch.cudnn_convolution_relu(shortcut, second.weight, second.bias, *kept)
    return torch.cudnn_convolution_add_relu(x, third.weight, shortcut, 1.0, third.bias, *kept)


def _more_channels(x: Tensor, count: int) -> Tensor:
    """Append channels of zeros in the same memory format."""
    return torch.constant_pad_nd(x, [0, 0] * (x.dim() - 2) + [0, count], 0.0) if count else x
