"""How large objects appear at train and at test time: formulas, and crops drawn by the transforms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "crops": ["neutral_test_sizes", "pair_ratios", "predicted_object_sizes", "sample_crops"],
        "formulas": ["neutral_test_size", "size_ratio"],
    },
)
