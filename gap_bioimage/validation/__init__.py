"""Checks of anybody's bioimage.io model; imports nothing of the network, training or export."""
