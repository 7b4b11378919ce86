"""Training: from counts to a network."""
