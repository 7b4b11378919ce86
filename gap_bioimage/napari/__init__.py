"""The napari plugin; ``napari.yaml`` is its manifest."""
