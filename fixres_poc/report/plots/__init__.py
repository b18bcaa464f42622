"""Figures."""

from fixres_poc.report.plots.answers import curves, differences, forest, forest_of, front
from fixres_poc.report.plots.datasets import (
    apparent_sizes,
    class_distribution,
    method,
    sample_sheet,
    short_sides,
)
from fixres_poc.report.plots.networks import accuracy_by_cost, size_gains
from fixres_poc.report.plots.results import (
    accuracy_by_size,
    activations,
    confusions,
    gain_path,
    reliability,
    training_history,
)
from fixres_poc.report.plots.style import use_style

__all__ = [
    "accuracy_by_cost",
    "accuracy_by_size",
    "activations",
    "apparent_sizes",
    "class_distribution",
    "confusions",
    "curves",
    "differences",
    "forest",
    "forest_of",
    "front",
    "gain_path",
    "method",
    "reliability",
    "sample_sheet",
    "short_sides",
    "size_gains",
    "training_history",
    "use_style",
]
