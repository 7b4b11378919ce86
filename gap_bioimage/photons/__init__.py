"""Photon counts: files, checks, thinning, simulation."""
