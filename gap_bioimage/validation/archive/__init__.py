"""A model package, opened without trust: its zip, description, files, pickles, arrays and TorchScript code."""
