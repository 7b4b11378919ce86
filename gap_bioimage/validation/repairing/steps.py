"""The table of repairs, in the order in which they are made.

To add a repair: write a function that changes a `Work` and returns what it changed, add it here, and one test with a
model that needs it. It must change nothing the second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.checks import one_sentence
from gap_bioimage.validation.repairing import axes, files, formats, readme
from gap_bioimage.validation.repairing.work import unshared

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.validation.repairing.work import Change, Work

FIXES: tuple[Callable[[Work], list[Change]], ...] = (
    formats.rename_description,
    # The format comes first, since the other repairs write what it wants.
    formats.convert_04,
    formats.lower_format,
    formats.plain_strings,
    formats.fill_id,
    files.plain_paths,
    # Hashes come before any file is changed: a wrong one is then the authors' and not ours.
    files.hashes,
    files.remove_leftovers,
    files.flatten,
    files.weights_suffix,
    formats.identifiers,
    axes.channel_names,
    axes.axis_scale,
    axes.min_of_step,
    axes.min_halo,
    axes.grid,
    formats.deepimagej_config,
    formats.sample_tensors,
    readme.readme,
    readme.covers,
)


def apply_all(work: Work) -> list[Change]:
    """Make all repairs that a model needs; one that does not understand the description leaves it as it was."""
    changes = []
    for fix in FIXES:
        before, notes = unshared(work.rdf), list(work.notes)
        try:
            changes += fix(work)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            # anybody's description may hold anything anywhere; the validation says what is wrong with it
            work.rdf, work.notes = before, notes
            text = one_sentence(error, 120)
            work.notes.append(f"{fix.__name__.replace('_', ' ')}: the description could not be understood here: {text}")
    return changes
