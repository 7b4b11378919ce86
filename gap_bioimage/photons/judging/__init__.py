"""Whether an image holds photon counts, and what it is otherwise."""
