"""The synthetic dataset: ten made-up dog breeds, drawn."""
