"""The plugin for napari; ``napari.yaml`` tells napari what is in it."""
