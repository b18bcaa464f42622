"""Figures."""

from fixres_poc.report.plots.answers import curves, differences, forest, forest_of, front
from fixres_poc.report.plots.datasets import (
    apparent_sizes,
    class_distribution,
    framing,
    sample_sheet,
    size_distribution,
)
from fixres_poc.report.plots.networks import accuracy_by_cost, size_gains
from fixres_poc.report.plots.results import (
    activations,
    confusions,
    gain_path,
    reliability,
    training_history,
)
from fixres_poc.report.plots.style import use_style

__all__ = [
    "accuracy_by_cost",
    "activations",
    "apparent_sizes",
    "class_distribution",
    "confusions",
    "curves",
    "differences",
    "forest",
    "forest_of",
    "framing",
    "front",
    "gain_path",
    "reliability",
    "sample_sheet",
    "size_distribution",
    "size_gains",
    "training_history",
    "use_style",
]
