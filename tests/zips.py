"""Tiny model zips for the validation's tests: a good one, and mutations of it."""

import functools
import hashlib
import io
import linecache
import types
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

Mutation = Callable[[dict[str, Any]], Any]

BLUR = """
from typing import List

import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.blur = nn.Conv2d(1, 1, size, padding=size // 2, bias=False)
        nn.init.constant_(self.blur.weight, 1.0 / size**2)
        self.other = nn.Identity()

    def forward(self, photons: torch.Tensor) -> torch.Tensor:
        rate = self.blur(photons.float())
        return rate
"""


def tiny(body: str = "", init: str = "") -> str:
    """Source of a network that changes the blurred ``rate`` by ``body``, with ``init`` in its constructor."""
    source = BLUR.replace("return rate\n", f"{body}\n        return rate\n") if body else BLUR
    return source.replace("self.other = nn.Identity()", init) if init else source


def png(width: int, height: int) -> bytes:
    """A black image."""
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _holder(rdf: dict[str, Any], where: tuple[str | int, ...]) -> Any:
    target: Any = rdf
    for key in where[:-1]:
        target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
    return target


def put(*where: str | int, value: Any) -> Mutation:
    """A mutation that sets one field of the description."""
    return lambda rdf: _holder(rdf, where).__setitem__(where[-1], value)


def drop(*where: str | int) -> Mutation:
    """A mutation that removes one field of the description."""
    return lambda rdf: _holder(rdf, where).__delitem__(where[-1])


def both(*mutations: Mutation) -> Mutation:
    """A mutation that makes several, one after the other."""
    return lambda rdf: [mutate(rdf) for mutate in mutations]


def torchscript_only(rdf: dict[str, Any]) -> None:
    """A mutation that leaves the TorchScript weights alone."""
    del rdf["weights"]["pytorch_state_dict"]
    del rdf["weights"]["torchscript"]["parent"]


@functools.cache
def model_files(source: str = BLUR, freeze: bool = False, train: bool = False) -> dict[str, bytes]:
    """Files of a tiny model with this source: weights in two formats, test tensors, cover, README.

    The TorchScript weights are frozen, or saved in training mode, where that is asked for.
    """
    import torch

    # TorchScript tells classes of one name apart by a number, and writes down the file
    name = f"tiny_{zlib.crc32(repr((source, freeze, train)).encode()):08x}"
    module = types.ModuleType(name)
    linecache.cache[f"{name}.py"] = (len(source), None, source.splitlines(keepends=True), f"{name}.py")
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    network = module.Tiny(size=3).eval()
    scripted = torch.jit.script(network.train(train))
    network.eval()
    if freeze:
        scripted = torch.jit.freeze(scripted)
    shape = (1, 1, 16, 16, 32) if "Conv3d" in source else (1, 1, 32, 32)
    photons = np.random.default_rng(0).poisson(np.linspace(1, 40, 32), shape).astype(np.float32)
    with torch.no_grad():
        torch.manual_seed(0)
        rate = network(torch.from_numpy(photons)).numpy()
    weights, script = io.BytesIO(), io.BytesIO()
    torch.save(network.state_dict(), weights)
    torch.jit.save(scripted, script)
    return {
        "tiny.py": source.encode(),
        "weights.pt": weights.getvalue(),
        "torchscript.pt": script.getvalue(),
        "input.npy": npy(photons),
        "output.npy": npy(rate),
        "cover.png": png(64, 32),
        "README.md": b"# Tiny\n\n## Validation\nLook at it.\n",
    }


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _axes(of_input: bool) -> list[dict[str, Any]]:
    sizes: list[dict[str, Any]] = [{"size": {"min": 16, "step": 4}} for _ in "yx"]
    if not of_input:
        sizes = [{"size": {"tensor_id": "photons", "axis_id": name}, "halo": 2} for name in "yx"]
    spatial = [{"type": "space", "id": name, **size} for name, size in zip("yx", sizes, strict=True)]
    return [{"type": "batch"}, {"type": "channel", "channel_names": ["photons" if of_input else "rate"]}, *spatial]


def description(files: dict[str, bytes]) -> dict[str, Any]:
    """A description in format 0.5.9 with plain strings that keeps every consumer's rules."""
    hashed = {name: {"source": name, "sha256": sha256(data)} for name, data in files.items()}
    architecture = {**hashed["tiny.py"], "callable": "Tiny", "kwargs": {"size": 3}}
    return {
        "format_version": "0.5.9",
        "type": "model",
        "id": "tiny-blur",
        "name": "Tiny blur",
        "description": "Blurs photon counts.",
        "authors": [{"name": "Ada Example"}],
        "maintainers": [{"name": "Ada Example", "github_user": "fynnbe"}],
        "license": "MIT",
        "documentation": "README.md",
        "covers": ["cover.png"],
        "cite": [{"text": "A paper", "doi": "10.1234/tiny"}],
        "tags": ["denoising", "2d"],
        "git_repo": "https://github.com/example/tiny",
        "inputs": [{"id": "photons", "axes": _axes(True), "test_tensor": hashed["input.npy"]}],
        "outputs": [{"id": "rate", "axes": _axes(False), "test_tensor": hashed["output.npy"]}],
        "weights": {
            "pytorch_state_dict": {**hashed["weights.pt"], "architecture": architecture, "pytorch_version": "2.5.0"},
            "torchscript": {**hashed["torchscript.pt"], "pytorch_version": "2.5.0", "parent": "pytorch_state_dict"},
        },
    }  # fmt: skip


def make_zip(
    folder: Path, mutate: Mutation | None = None, *, source: str = BLUR, files: dict[str, bytes | None] | None = None,
    freeze: bool = False, train: bool = False, rdf_name: str = "rdf.yaml",
) -> Path:  # fmt: skip
    """Write a model zip into a folder; ``mutate`` changes the description in place.

    ``files`` are replaced or added before hashing; None leaves one out of the zip, though it stays hashed. ``freeze``
    the TorchScript weights, or save them in training mode (``train``).
    """
    own = model_files(source, freeze, train)
    contents: dict[str, bytes | None] = {**own, **(files or {})}
    rdf = description({name: own.get(name, b"") if data is None else data for name, data in contents.items()})
    if mutate is not None:
        mutate(rdf)
    path = folder / "tiny.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(rdf_name), yaml.safe_dump(rdf, sort_keys=False))
        for name, data in contents.items():
            if data is not None:
                archive.writestr(zipfile.ZipInfo(name), data)
    return path


def to_format_0_4(version: str = "0.4.9", **fields: Any) -> Mutation:
    """A mutation that describes the torchscript weights in format 0.4; ``fields`` are added at the top level."""

    def mutate(rdf: dict[str, Any]) -> None:
        common = {"axes": "bcyx", "data_type": "float32", "data_range": [float("-inf"), float("inf")]}
        same = {"reference_tensor": "photons", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]}
        torchscript_only(rdf)
        for key in ("inputs", "outputs", "id"):
            del rdf[key]
        rdf.update(
            format_version=version,
            timestamp="2024-05-01T10:00:00",
            inputs=[{"name": "photons", "shape": [1, 1, 32, 32], **common}],
            outputs=[{"name": "rate", "shape": same, "halo": [0, 0, 2, 2], **common}],
            test_inputs=["input.npy"],
            test_outputs=["output.npy"],
        )
        rdf.update(fields)

    return mutate


def scripted(folder: Path, source: str, train: bool = False, mutate: Any = None, **files: np.ndarray[Any, Any]) -> Path:
    """A zip whose TorchScript alone is that of another source, which need not return a tensor, with more arrays."""
    import torch

    def both(rdf: dict[str, Any]) -> None:
        torchscript_only(rdf)
        (mutate or bool)(rdf)

    file, buffer, namespace = folder / "scripted.py", io.BytesIO(), dict[str, Any](__name__="scripted")
    file.write_text(f"from typing import Dict, List, Tuple\n{source}")
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    torch.jit.save(torch.jit.script(namespace["Tiny"]().train(train)), buffer)
    more = {f"{name}.npy": npy(array) for name, array in files.items()}
    return make_zip(folder, both, files={"torchscript.pt": buffer.getvalue(), **more})
