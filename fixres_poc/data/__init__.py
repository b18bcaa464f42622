"""Images: which, from where, how they are decoded, transformed and loaded; leakage."""
