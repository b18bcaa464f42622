"""A finished run as a network to use: predictions, evaluation, export."""
