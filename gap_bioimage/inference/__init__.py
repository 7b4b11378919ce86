"""From counts to denoised images."""
