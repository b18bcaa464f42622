"""Figures."""

from fixres_poc.report.plots.datasets import (
    apparent_sizes,
    class_distribution,
    framing,
    sample_sheet,
    size_distribution,
    size_ratios,
)
from fixres_poc.report.plots.networks import accuracy_by_cost, compared_costs, size_gains
from fixres_poc.report.plots.results import (
    accuracy_by_test_size,
    activations,
    arms,
    confusions,
    gain_path,
    reliability,
    training_history,
)
from fixres_poc.report.plots.style import use_style

__all__ = [
    "accuracy_by_cost",
    "accuracy_by_test_size",
    "activations",
    "apparent_sizes",
    "arms",
    "class_distribution",
    "compared_costs",
    "confusions",
    "framing",
    "gain_path",
    "reliability",
    "sample_sheet",
    "size_distribution",
    "size_gains",
    "size_ratios",
    "training_history",
    "use_style",
]
