"""FixRes, re-runnable: does a larger test resolution pay on my images, and at what cost?

Conventions of the whole package: sizes are in pixels of a square crop, accuracies and probabilities
are fractions in [0, 1], seconds are wall-clock, memory is in bytes, images are (N, 3, H, W), logits
(N, C), targets (N,).
"""

__version__ = "0.1.0"
