"""ONNX weights of a denoiser, for engines without torch."""

from __future__ import annotations

import importlib
import io
import itertools
import warnings
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from gap_bioimage.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from gap_bioimage.export.halo import Sizes

ONNX, OPSET = "weights.onnx", 17
"""deepImageJ's engine reads opset 18 and IR version 8 at most."""
_TOLERANCE = 1e-4  # of the largest value


def check_onnx(kind: str) -> None:
    """See that ONNX weights can be made.

    Raises
    ------
    ExportError
        If they cannot be for this kind of zip, or the packages are missing.
    """
    if kind != "denoise":
        raise ExportError(
            f"kind {kind!r} has no ONNX weights, only 'denoise' has: another engine rounds otherwise and then draws "
            "other samples, which no test could tell from wrong ones; leave --onnx out"
        )
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ExportError(
            f"ONNX weights need the packages onnx and onnxruntime ({error}); pip install 'gap-bioimage[onnx]'"
        ) from None


def write_onnx(folder: Path, denoiser: nn.Module, channels: int, sizes: Sizes) -> None:
    """Write ONNX weights, if they compute what torch does at several sizes.

    Parameters
    ----------
    folder
        Of the zip's files.
    denoiser
        The module.
    channels
        Image channels.
    sizes
        Declared ones; the graph takes these only.

    Raises
    ------
    ExportError
        If the results differ.
    """
    content = _converted(denoiser, _counts(1, channels, sizes.min_px))
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch, n in itertools.product((1, 2), (0, 1, 2)):
        size = [low + n * step for low, step in zip(sizes.min_px, sizes.step_px, strict=True)]
        photons = _counts(batch, channels, size)
        with torch.inference_mode():
            expected = denoiser(photons).numpy()
        (got,) = session.run(None, {"photons": photons.numpy()})
        difference = float(np.abs(got - expected).max()) if got.shape == expected.shape else np.inf
        if not difference <= _TOLERANCE * float(expected.max()):
            raise ExportError(
                f"the ONNX weights differ from torch's by {difference:.2g} at size {size}, batch {batch}, where values "
                f"go up to {float(expected.max()):.2g}; leave --onnx out, and please report it"
            )
    (folder / ONNX).write_bytes(content)


def _converted(denoiser: nn.Module, example: torch.Tensor) -> bytes:
    axes = {0: "b"} | {number + 2: name for number, name in enumerate("zyx"[-(example.dim() - 2) :])}
    target, export = io.BytesIO(), cast("Any", torch.onnx.export)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sizes that become constants: those of multiples of step do not
        try:
            export(
                denoiser,
                (example,),
                target,
                dynamo=False,  # the other exporter writes newer versions than the consumers read
                opset_version=OPSET,
                input_names=["photons"],
                output_names=["rate"],
                dynamic_axes={"photons": axes, "rate": axes},
            )
        except Exception as error:  # what that raises differs between versions of torch
            told = " ".join(str(error).split())[:200]
            raise ExportError(f"torch could not convert the network to ONNX ({told}); leave --onnx out") from error
    onnx = importlib.import_module("onnx")
    model: Any = onnx.load_from_string(target.getvalue())
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Transpose" and attribute.name == "perm":  # torch writes axes counted from the end
                attribute.ints[:] = [axis % len(attribute.ints) for axis in attribute.ints]
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _counts(batch: int, channels: int, size: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scene = torch.linspace(0.1, 10.0, int(np.prod(size))).reshape(tuple(size)).expand(batch, channels, *size)
    return torch.poisson(scene, generator)
