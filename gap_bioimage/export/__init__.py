"""From a trained network to a bioimage.io model zip."""
