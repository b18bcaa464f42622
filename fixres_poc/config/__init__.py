"""Settings and where they come from, paths, atomic files, progress, and a run's state: no torch, no pandas."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["InputError"],
        "files": ["run_folder"],
        "settings": [
            "BASELINE_SIZE",
            "BaselineSettings",
            "DatasetSettings",
            "OverviewSettings",
            "PairSettings",
            "ResultsSettings",
            "TrainSettings",
        ],
        "validation": ["read_parameters"],
    },
)
