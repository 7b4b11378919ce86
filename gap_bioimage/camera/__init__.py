"""Cameras: from ADU to counts and back, their calibration, and the noise that tells of them."""
