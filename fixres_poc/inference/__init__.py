"""A finished run as a network: predict, evaluate, export; and a network of one's own, adapted."""
