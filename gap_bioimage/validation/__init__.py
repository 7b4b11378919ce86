"""Checks of anybody's bioimage.io model; imports nothing of the network, training or export."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence bioimageio's loguru logs, tqdm bars (stderr) and warnings inside the block."""
    from loguru import logger

    for name in ("bioimageio", "pydantic"):  # spec's own warnings may come from pydantic's frames
        logger.disable(name)
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        logger.enable("bioimageio")
        logger.enable("pydantic")
