"""From counts to a trained network."""
