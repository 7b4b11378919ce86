"""Repairs that need no judgement, for any model; each is named at the rule that asks for it."""
