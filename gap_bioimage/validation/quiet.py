"""Call the libraries without their logs and progress bars, and without leaving traces in the process."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def quiet() -> Iterator[None]:
    """Silence bioimageio's loguru logs, tqdm bars (stderr) and warnings inside the block."""
    from loguru import logger

    logger.disable("bioimageio")
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        logger.enable("bioimageio")


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Put back the random states and the determinism flag that bioimageio.core's tests set globally."""
    import numpy as np
    import torch

    numpy_state = np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            np.random.set_state(numpy_state)
