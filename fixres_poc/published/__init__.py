"""Published figures that the notebooks compare with, kept as data with their source."""

from importlib import resources

import pandas as pd

STANFORD_DOGS_2020_BASELINE = 0.910  # the best of that table, 94.73 %, less the gain that it names, 3.7 points


def imagenet() -> pd.DataFrame:
    """ImageNet top-1 (fraction) of published networks.

    Returns:
        Columns model, year, parameters_millions, train_size and test_size (px), adapted (were the last layers
        fine-tuned at the test size?), top1, extra_data, source.
    """
    return _read("imagenet.csv").fillna({"extra_data": "none"})


def stanford_dogs_2020() -> pd.DataFrame:
    """The 2020 proof of concept's table: ResNeXt-101 32x48d WSL on Stanford Dogs, one GPU, 4 to 6 h a run.

    Returns:
        Columns train_size, test_size (px), top1 (fraction, NaN where it gives none), note.
    """
    return _read("stanford_dogs_2020.csv").fillna({"note": ""})


def _read(name: str) -> pd.DataFrame:
    with resources.as_file(resources.files(__package__) / name) as path:
        return pd.read_csv(path)
