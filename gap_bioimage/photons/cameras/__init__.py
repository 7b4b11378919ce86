"""Camera values to photon counts, and how a camera's numbers are measured."""
