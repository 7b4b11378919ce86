"""CUDA graphs and fused convolutions: launching many small kernels one by one takes longer than running them."""

import contextlib
import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gap_bioimage.filters import cached_matrices
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
        self._called: set[tuple[torch.Size, ...]] = set()
        self._recorded: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Any, list[Tensor]]] = {}
        self._memory: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the result of the function."""
        if not inputs[0].is_cuda or sum(tensor.numel() for tensor in inputs) > self.most:
            return self.function(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._recorded:
            if shapes not in self._called or len(self._recorded) >= _MOST_SHAPES:
                self._called.add(shapes)
                return self.function(*inputs)
            self._recorded[shapes] = self._record(inputs)
        graph, static_inputs, result, _ = self._recorded[shapes]
        torch._foreach_copy_(static_inputs, inputs)
        graph.replay()
        return result

    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any, list[Tensor]]:
        static_inputs, graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        # other threads may continue to use the device
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            result = self.function(*static_inputs)
        return graph, static_inputs, result, cached_matrices()


def record_training(network: UNet, photons: Tensor) -> list[Tensor]:
    """Record forward and backward pass for batches of this shape; return tensors to keep alive with the network."""
    kind = photons.device.type
    # cached casts would be missing from the recording
    uncached: Any = torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)
    with uncached if torch.is_autocast_enabled(kind) else contextlib.nullcontext():
        torch.cuda.make_graphed_callables(network, (photons.clone(),))
    return cached_matrices()


def with_fused_kernels(network: UNet, bf16: bool) -> UNet:
    """Return a copy in bfloat16 or float32, with fused kernels where cuDNN or oneDNN has them."""
    network, weight = copy.deepcopy(network), network.conv_final.weight
    with_cudnn = torch.version.cuda is not None and torch.backends.cudnn.is_acceptable(weight)  # type: ignore[no-untyped-call]
    on_gpu = with_cudnn and has_bf16(weight.device)
    for block in network.modules() if on_gpu or _with_onednn(weight.device, bf16) else ():
        if isinstance(block, ConvBlock):
            if on_gpu:
                # tensor cores need multiples of 8 channels, or the first convolution takes as long as five others
                missing = -block.conv1.in_channels % 8
                block.conv1.weight = nn.Parameter(_more_channels(block.conv1.weight, missing), requires_grad=False)
            convolve = _convolve if on_gpu else _convolve_on_cpu
            block.convolve = types.MethodType(convolve, block)  # type: ignore[method-assign]
    return network.to(torch.bfloat16) if bf16 else network


def _with_onednn(device: torch.device, bf16: bool) -> bool:
    if device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return not bf16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_bf16(device: torch.device) -> bool:
    """Return whether a device is a GPU with native bfloat16 (Nvidia: since Ampere)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _convolve(block: ConvBlock, x: Tensor) -> Tensor:
    first, second, third = block.conv1, block.conv2, block.conv3
    shortcut = first(_more_channels(x, first.weight.shape[1] - x.shape[1]))
    arguments = second.stride, second.padding, second.dilation, 1
    x = torch.cudnn_convolution_relu(shortcut, second.weight, second.bias, *arguments)
    return torch.cudnn_convolution_add_relu(x, third.weight, shortcut, 1.0, third.bias, *arguments)


def _convolve_on_cpu(block: ConvBlock, x: Tensor) -> Tensor:
    """Convolve as ``ConvBlock`` does, but also single small volumes with oneDNN, and without passes for sums and ReLU.

    These are the operators that torch.compile calls.
    """
    fused, order = torch.ops.mkldnn, CHANNELS_LAST[x.dim() - 2]

    def settings(layer: Any) -> tuple[Any, ...]:
        return layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, 1

    x = x.contiguous(memory_format=order)
    shortcut = fused._convolution_pointwise(x, *settings(block.conv1), "none", [], "")
    x = fused._convolution_pointwise(shortcut, *settings(block.conv2), "relu", [], "")
    result: Tensor = fused._convolution_pointwise_.binary(
        shortcut, x, *settings(block.conv3), "add", 1.0, "relu", [], ""
    )
    return result


def _more_channels(x: Tensor, count: int) -> Tensor:
    """Append channels of zeros in the same memory format."""
    return torch.constant_pad_nd(x, [0, 0] * (x.dim() - 2) + [0, count], 0.0) if count else x
