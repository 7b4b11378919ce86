"""Checks that run a model, in a subprocess."""
