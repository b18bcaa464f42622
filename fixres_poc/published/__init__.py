"""Published figures that the notebooks compare with, kept as data with their source."""

from importlib import resources

import pandas as pd

STANFORD_DOGS_2020_BASELINE = 0.910  # the best of that table, 94.73 %, less the gain that it names, 3.7 points
PERMISSIVE = ("apache-2.0", "bsd-3-clause", "mit")
"""Licences in `networks` that allow commercial use."""


def imagenet() -> pd.DataFrame:
    """ImageNet top-1 (fraction) of networks in the two FixRes papers.

    Returns:
        Columns model, year, parameters_millions, gmacs (10^9 multiply-adds of one picture at the test size, as
        `preflight.parameters_and_flops` counts them), train_size and test_size (px), adapted (were the last layers
        fine-tuned at the test size?), batch_norm (does one stand before the global pooling, so that every adaptation
        works?), top1, extra_data, licence (of the weights), source.
    """
    return _read("imagenet.csv").fillna({"extra_data": "none"})


def networks() -> pd.DataFrame:
    """The rows of `imagenet` and those of other networks up to 2024, the same columns and three more.

    timm's own results give top1, parameters and multiply-adds, its release 1.0.31 the sizes (of the last training)
    and the licence. Rows of one network differ in the test size alone. What was not read is missing.

    Returns:
        Further columns: weights (timm's name, or the authors'), paper (its first version gives the year), ratio (test
        size / train size).
    """
    since = _read("imagenet_since.csv").fillna({"extra_data": "none"})
    table = pd.concat([imagenet(), since], ignore_index=True)
    return table.assign(ratio=table["test_size"] / table["train_size"])


def frontier(models: pd.DataFrame, cost: str) -> pd.Series:
    """Which rows no other row beats: none is as accurate at less cost, or more accurate at no more.

    Args:
        models: columns top1 and `cost`; a row without a cost is not on it.
        cost: such as parameters_millions or gmacs.

    Returns:
        Booleans, with the index of `models`.
    """
    known = models.dropna(subset=cost).sort_values([cost, "top1"], ascending=[True, False])
    best = known["top1"] > known["top1"].cummax().shift(fill_value=-1.0)
    return best.reindex(models.index, fill_value=False)


def size_gains(models: pd.DataFrame) -> pd.DataFrame:
    """What another test size alone changed, for networks with a row at test size = train size and others beside it.

    Returns:
        Columns model, train_size, test_size, ratio, adapted, gain (fraction, against test size = train size).
    """
    same = models[models["ratio"] == 1].drop_duplicates(["model", "train_size"])
    pairs = models[models["ratio"] != 1].merge(same, on=["model", "train_size"], suffixes=("", "_same"))
    pairs["gain"] = pairs["top1"] - pairs["top1_same"]
    return pairs[["model", "train_size", "test_size", "ratio", "adapted", "gain"]]


def stanford_dogs() -> pd.DataFrame:
    """Published accuracies on Stanford Dogs (fraction), oldest first; few, since only what was read is here.

    Returns:
        Columns model, year, top1, pretraining ("not read" where the text that was read does not say), note, source.
    """
    return _read("stanford_dogs.csv").fillna({"pretraining": "none", "note": ""})


def stanford_dogs_2020() -> pd.DataFrame:
    """The 2020 proof of concept's table: ResNeXt-101 32x48d WSL on Stanford Dogs, one GPU, 4 to 6 h a run.

    Returns:
        Columns train_size, test_size (px), top1 (fraction, NaN where it gives none), note.
    """
    return _read("stanford_dogs_2020.csv").fillna({"note": ""})


def _read(name: str) -> pd.DataFrame:
    with resources.as_file(resources.files(__package__) / name) as path:
        return pd.read_csv(path)
