"""Figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "datasets": [
            "apparent_sizes",
            "class_distribution",
            "framing",
            "sample_sheet",
            "size_distribution",
            "size_ratios",
        ],
        "networks": ["accuracy_by_cost", "compared_costs", "size_gains"],
        "results": [
            "accuracy_by_test_size",
            "activations",
            "confusions",
            "cost_accuracy",
            "gain_path",
            "reliability",
            "training_cost",
            "training_history",
        ],
        "style": ["use_style"],
    },
)
