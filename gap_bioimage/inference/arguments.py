"""Numbers that callers give, checked before work begins."""

from __future__ import annotations

import operator
from typing import Any

from gap_bioimage.errors import ConfigError


def check_whole(name: str, value: Any, least: int, below: int | None = None) -> None:
    """Refuse what is no whole number, or out of its range.

    Parameters
    ----------
    name
        What to call it.
    value
        As it was given.
    least, below
        The smallest number, and the first that is too large.

    Raises
    ------
    ConfigError
        If it is another value.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (below is not None and number >= below):
        shown = repr(value) if isinstance(value, str) else value
        upto = "" if below is None else f" and below 2^{below.bit_length() - 1}"
        raise ConfigError(f"{name} is {shown}, expected a whole number of at least {least}{upto}")
