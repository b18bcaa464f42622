"""The synthetic data set: ten made-up dog breeds, drawn."""
