"""Export of trained networks as bioimage.io zips; with ``validation/`` the only folder that imports bioimageio."""
