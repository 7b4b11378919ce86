"""Who reads a model: the parts that every program rests on, and the programs, each declared beside its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Consumer:
    """A program that reads models, or a part of a model that every program rests on.

    Parameters
    ----------
    id
        First part of the ids of its checks.
    title
        What people call it.
    about
        Two sentences for who does not know it.
    place
        Its place in reports, lowest first.
    base
        What it needs makes a model valid at all: a violation fails the report for everybody.
    reads
        Weights formats that it reads; empty for those that bioimageio.core reads.
    """

    id: str
    title: str
    about: str
    place: int
    base: bool = False
    reads: tuple[str, ...] = ()


_CONSUMERS: dict[str, Consumer] = {}


def consumer(
    name: str, title: str, about: str, place: int, *, base: bool = False, reads: tuple[str, ...] = ()
) -> Consumer:
    """Declare a `Consumer`."""
    _CONSUMERS[name] = Consumer(name, title, about, place, base, reads)
    return _CONSUMERS[name]


def consumers() -> Mapping[str, Consumer]:
    """All consumers by id, in the order of reports."""
    from gap_bioimage.validation.check import import_checks

    import_checks()
    return dict(sorted(_CONSUMERS.items(), key=lambda entry: entry[1].place))


def known(names: Iterable[str]) -> None:
    """Refuse names that are not consumers'.

    Raises
    ------
    ConfigError
        If there are any.
    """
    from gap_bioimage.errors import ConfigError

    unknown = sorted(set(names) - set(consumers()))
    if unknown:
        raise ConfigError(f"There is no consumer {', '.join(unknown)}; give some of {', '.join(consumers())}.")


consumer(
    "archive", "the zip file", "The zip itself: whether it is whole, and safe to unpack and to load.", 0, base=True
)
consumer(
    "format", "the description", "The description, `rdf.yaml`, as the bioimage.io format defines it.", 1, base=True
)
consumer(
    "run",
    "running the model",
    "What everybody expects of a model: its weights are loaded and run on images of other sizes, dark ones, tiles.",
    3,
    base=True,
)
