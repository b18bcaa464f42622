"""FixRes itself: stage 1, stage 2, the adaptations, and what they are compared with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adaptations": ["adapt_pair", "changed", "costs", "moved", "predict_pair", "save"],
        "baseline": ["features", "train_baseline"],
        "evaluation": ["transforms_for"],
        "stage1": ["load_training", "train_or_load"],
        "stage2": ["free"],
        "zero_shot": ["predict_zero_shot"],
    },
)
