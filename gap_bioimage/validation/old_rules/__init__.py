"""Rules of the programs that read bioimage.io models, one table per consumer.

To add a rule: write a function from `Facts` to None (kept) or a text (what was found), whose docstring says what is
asked for; add one `Rule` to the consumer's table, and one test with a model that keeps it and one that breaks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.old_rules import biapy, bioengine, core, fiji, ilastik, qupath, zoo

if TYPE_CHECKING:
    from gap_bioimage.validation.old_rules.rule import Rule


def all_rules() -> tuple[Rule, ...]:
    """Every static rule, in the order of the report."""
    tables = (core, zoo, fiji, ilastik, biapy, qupath, bioengine)
    return tuple(rule for table in tables for rule in table.RULES)
