"""The table of repairs, in the order in which they are made.

To add a repair: write a function that changes a `Work` and returns what it changed, add it here, and one test with a
model that needs it. It must change nothing the second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation import repair_axes, repair_files, repair_format, repair_readme
from gap_bioimage.validation.checks import one_sentence
from gap_bioimage.validation.repair_work import unshared

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.validation.repair_work import Change, Work

FIXES: tuple[Callable[[Work], list[Change]], ...] = (
    repair_format.rename_description,
    # The format comes first, since the other repairs write what it wants.
    repair_format.convert_04,
    repair_format.lower_format,
    repair_format.plain_strings,
    repair_format.fill_id,
    repair_files.plain_paths,
    # Hashes come before any file is changed: a wrong one is then the authors' and not ours.
    repair_files.hashes,
    repair_files.remove_leftovers,
    repair_files.flatten,
    repair_files.weights_suffix,
    repair_format.identifiers,
    repair_axes.channel_names,
    repair_axes.axis_scale,
    repair_axes.min_of_step,
    repair_axes.min_halo,
    repair_axes.grid,
    repair_format.deepimagej_config,
    repair_format.sample_tensors,
    repair_readme.readme,
    repair_readme.covers,
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
