"""Custom postprocessing: Python files that travel in a zip and change the network's output.

bioimageio.core 0.10.3 and newer call ``op = NAME(**kwargs)`` once and ``op(array)`` for every output or tile of
one, before its halo is cut off. Nobody else runs them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from gap_bioimage.errors import ExportError, GapWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    Function = Callable[[np.ndarray], np.ndarray]

OWN_FILE = "postprocessing.py"
"""The user's file, by whatever name it came."""
_DTYPES = ("float32", "float64", *(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)))


@dataclass(frozen=True)
class Operation:
    """A class or factory ``callable`` in a file of a zip, and what it is called with."""

    file_name: str
    source: bytes
    callable: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The call as Python writes it."""
        return f"{self.callable}({', '.join(f'{name}={value!r}' for name, value in self.kwargs.items())})"

    def load(self) -> Function:
        """Import the source, by itself as bioimageio.core does, and return the operation.

        Raises
        ------
        ExportError
            If it cannot be imported, has no such callable, or that gives nothing to call.
        """
        factory = getattr(self._import(), self.callable, None)
        if not callable(factory):
            state = "is not there" if factory is None else f"is a {type(factory).__name__}"
            raise ExportError(f"{self.callable} {state} in the postprocessing file; expected a class or function")
        try:
            function = factory(**self.kwargs)
        except Exception as error:  # whatever somebody's class raises
            why = f"{_told(error)}; give what it needs with postprocessing_kwargs"
            raise ExportError(f"the postprocessing {self} cannot be made: {why}") from error
        if not callable(function):
            expected = "something to call with an array: a class with __call__, or a function that returns one"
            raise ExportError(f"the postprocessing {self} is a {type(function).__name__}, expected {expected}")
        return function  # type: ignore[no-any-return]

    def _import(self) -> ModuleType:
        name = f"gap_bioimage_operation_{hashlib.sha256(self.source).hexdigest()}"
        with tempfile.TemporaryDirectory(prefix="gap-bioimage-") as folder:
            path = Path(folder) / self.file_name
            path.write_bytes(self.source)
            spec: Any = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # where dataclasses look their module up
            try:
                spec.loader.exec_module(module)
            except Exception as error:  # whatever somebody's file raises
                why = f"{_told(error)}; it may use what is installed, but no files beside it"
                raise ExportError(f"the postprocessing file cannot be imported by itself: {why}") from error
        return module

    def apply_checked(self, array: np.ndarray) -> np.ndarray:
        """Apply the operation to (b, c, [z,] y, x), and see that a zip may rely on it.

        An operation that looks beyond each pixel is allowed, with a warning.

        Raises
        ------
        ExportError
            Unless it gives the same numbers in the same shape every time.
        """
        function = self.load()
        result = self._call(function, array)
        problem = ""
        if result.shape != array.shape:
            problem = f"turned an array of shape {array.shape} into {result.shape}; expected the same shape"
        elif result.dtype.name not in _DTYPES:
            problem = f"returns {result.dtype.name}, expected one of {', '.join(_DTYPES)}; convert it with .astype"
        elif broken := int(np.count_nonzero(~np.isfinite(result))):
            problem = f"returned {broken} values that are not finite; guard its divisions and logarithms"
        elif not all(np.array_equal(self._call(again, array), result) for again in (function, self.load())):
            problem = (
                "gives another result for the same array when it is called again; expected the same one: keep no "
                "state, and seed its random numbers in each call"
            )
        if problem:
            raise ExportError(f"the postprocessing {self.callable} {problem}")
        piece: Any = (..., *(slice(size // 4, size // 4 + max(1, size // 2)) for size in array.shape[2:]))
        small, expected = self._call(function, array[piece]), result[piece]
        scale = float(np.abs(expected).max(initial=0))
        if small.shape != expected.shape or not np.allclose(small, expected, rtol=1e-5, atol=1e-6 * scale):
            warnings.warn(
                f"the postprocessing {self.callable} gives a piece of an image another result than the whole: "
                "programs that run the model in tiles will show seams",
                GapWarning,
                stacklevel=3,
            )
        return result

    def _call(self, function: Function, array: np.ndarray) -> np.ndarray:
        try:
            result = function(array.copy())
        except Exception as error:  # whatever somebody's function raises
            given = f"an array of shape {array.shape}, {array.dtype}"
            raise ExportError(f"the postprocessing {self.callable} raised {_told(error)} for {given}") from error
        if not isinstance(result, np.ndarray):
            kind = type(result).__name__
            raise ExportError(f"the postprocessing {self.callable} returned a {kind}, expected a numpy array")
        return result


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def parse_kwargs(text: str | None) -> dict[str, Any]:
    """Read the kwargs of an operation, written as yaml or JSON; raise `ExportError` if they are not a mapping."""
    try:
        kwargs = {} if text is None else yaml.safe_load(text)
    except yaml.YAMLError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise ExportError(f"the postprocessing's kwargs are {text!r}, expected a mapping such as '{{threshold: 2.5}}'")
    return kwargs


def read_operation(place: str, kwargs: Mapping[str, Any] | None = None) -> Operation:
    """Read a user's own operation, and see that it can be made.

    Parameters
    ----------
    place
        "FILE.py:NAME".
    kwargs
        What NAME is called with; plain values of yaml.

    Raises
    ------
    ExportError
        If there is no such operation.
    """
    file, _, name = place.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ExportError(f"the postprocessing is {place!r}, expected FILE.py:NAME, such as threshold.py:Threshold")
    arguments = dict(kwargs or {})
    try:
        plain = yaml.safe_load(yaml.safe_dump(arguments)) == arguments and all(isinstance(k, str) for k in arguments)
    except yaml.YAMLError:
        plain = False
    if not plain:
        raise ExportError(f"the postprocessing's kwargs are {arguments}, expected names and plain values of yaml")
    try:
        source = Path(file).read_bytes()
    except OSError as error:
        raise ExportError(f"the postprocessing file {file} cannot be read: {error.strerror}") from None
    operation = Operation(OWN_FILE, source, name, arguments)
    operation.load()
    return operation
