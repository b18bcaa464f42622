"""A finished run as a network to use: predictions, evaluation, export; and a network of one's own, adapted."""
