"""Repairs of what needs no judgement in anybody's model, each named at the rule that asks for it."""
