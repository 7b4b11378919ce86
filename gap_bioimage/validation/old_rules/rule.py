"""What a consumer rule is, and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gap_bioimage.validation.checks import Check, one_sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.validation.archive.facts import Facts
    from gap_bioimage.validation.checks import Status


class NotApplicable(Exception):
    """Raised by a rule that does not apply to a model; its text says why."""


@dataclass(frozen=True)
class Rule:
    """One thing that a consumer needs of a model's description or files.

    Parameters
    ----------
    id
        Stable name, ``consumer.what``.
    breaks
        What happens to that consumer's users where the rule is violated.
    fix
        What the author does about it.
    test
        Returns None where the rule is kept, else what was found; raises `NotApplicable` if it says nothing.
        The first line of its docstring says what is asked for.
    advice
        The consumer works regardless, only worse; a violation is never more than a warning.
    formats
        ``"0.5"`` for rules about tensors as format 0.5 writes them; ``"any"`` otherwise.
    fix_of
        What the author of this very model does about it, where that depends on what was found.
    """

    id: str
    breaks: str
    fix: str
    test: Callable[[Facts], str | None]
    advice: bool = False
    formats: str = "any"
    fix_of: Callable[[Facts], str] | None = None

    @property
    def consumer(self) -> str:
        """Who needs it: the id up to the dot."""
        return self.id.split(".", 1)[0]

    @property
    def asks(self) -> str:
        """What is asked for, in one sentence."""
        return (self.test.__doc__ or "").strip().splitlines()[0]

    def judge(self, facts: Facts) -> Check:
        """Apply the rule. Malformed descriptions skip it, since the format check reports them."""
        try:
            if self.formats == "0.5" and not facts.is_05:
                return Check(self.id, self.consumer, "skipped", "is about descriptions of format 0.5")
            found = self.test(facts)
        except NotApplicable as reason:
            return Check(self.id, self.consumer, "skipped", one_sentence(reason))
        except Exception as error:  # anybody's description may hold anything anywhere
            text = f"the description could not be understood here: {one_sentence(error, 120)}"
            return Check(self.id, self.consumer, "skipped", text)
        if found is None:
            return Check(self.id, self.consumer, "passed", "kept")
        status: Status = "warning" if self.advice else "failed"
        fix = self.fix if self.fix_of is None else self.fix_of(facts)
        return Check(self.id, self.consumer, status, f"{one_sentence(found)}: {self.breaks}", fix)
