"""Checks of an untrusted model package: its zip, description, files, pickles, arrays and TorchScript code."""
