"""From a trained network to a bioimage.io model zip; the only room besides ``validation/`` that knows bioimageio."""
