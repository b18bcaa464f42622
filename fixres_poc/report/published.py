"""Published figures that notebooks compare with, and a sweep beside the table of 2020.

That table is from the proof of concept on Stanford Dogs that this project started from. It does
not give split, epochs, rates or the tuning of the last layers, so a difference is one between two
experiments. Accuracies are fractions.
"""

from importlib import resources

import pandas as pd

from fixres_poc.analysis.cells import PAIR, Cell, keys, read_table, same_images
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Accuracy, of_one_training
from fixres_poc.config.settings import BASELINE_SIZE

DATASET = "stanford_dogs"
# the best of that table, 94.73 %, less the gain that it names, 3.7 points
STANFORD_DOGS_2020_BASELINE = 0.910
PERMISSIVE = ("apache-2.0", "bsd-3-clause", "mit")
"""Licences in `networks` that allow commercial use."""


def imagenet() -> pd.DataFrame:
    """ImageNet top-1 (fraction) of networks in the two FixRes papers.

    Returns:
        Columns model, year, parameters_millions, gmacs (10^9 multiply-adds of one image at the test
        resolution, as `parameters_and_flops` counts them), train_size and test_size (px),
        adapted (were the last layers fine-tuned at the test resolution?), batch_norm (does one
        stand before the global pooling, so that every adaptation works?), top1, extra_data, licence
        (of the weights), source.
    """
    return _read("imagenet.csv").fillna({"extra_data": "none"})


def networks() -> pd.DataFrame:
    """The rows of `imagenet` and those of other networks up to 2024, with three more columns.

    timm's own results give top1, parameters and multiply-adds, its release 1.0.31 the sizes (of the
    last training) and the licence. Rows of one network differ in the test resolution alone. What
    was not read is missing.

    Returns:
        Further columns: weights (timm's name, or the authors'), paper (its first version gives the
        year), ratio (test size / train resolution).
    """
    since = _read("imagenet_since.csv").fillna({"extra_data": "none"})
    table = pd.concat([imagenet(), since], ignore_index=True)
    return table.assign(ratio=table["test_size"] / table["train_size"])


def undominated(models: pd.DataFrame, cost: str) -> pd.Series:
    """The Pareto front: no other row is as accurate at less cost, or more accurate at no more.

    Args:
        models: columns top1 and `cost`; a row without a cost is not on the front.
        cost: such as parameters_millions or gmacs.

    Returns:
        Booleans, with the index of `models`.
    """
    known = models.dropna(subset=cost).sort_values([cost, "top1"], ascending=[True, False])
    best = known["top1"] > known["top1"].cummax().shift(fill_value=-1.0)
    return best.reindex(models.index, fill_value=False)


def size_gains(models: pd.DataFrame) -> pd.DataFrame:
    """What another test resolution changed, for networks that have a row at test = train.

    Returns:
        Columns model, train_size, test_size, ratio, adapted, gain (fraction, against test = train).
    """
    same = models[models["ratio"] == 1].drop_duplicates(["model", "train_size"])
    pairs = models[models["ratio"] != 1].merge(
        same, on=["model", "train_size"], suffixes=("", "_same")
    )
    pairs["gain"] = pairs["top1"] - pairs["top1_same"]
    return pairs[["model", "train_size", "test_size", "ratio", "adapted", "gain"]]


def gains() -> pd.DataFrame:
    """`imagenet` for a reader, with the gain over test = train where that was published."""
    models = imagenet()
    at_train = models[models["train_size"] == models["test_size"]]
    same = at_train.drop_duplicates("model").set_index("model")["top1"]
    gain = (models["top1"] - models["model"].map(same)) * 100
    texts = gain.map("{:+.1f}".format).mask(gain == 0, "reference")
    texts = texts.mask(gain.isna(), "no reference")
    names = {"model": "network", "train_size": "train px", "test_size": "test px"}
    table = models.rename(columns=names)[[*names.values(), "adapted"]]
    return table.assign(**{"top-1 %": (models["top1"] * 100).round(1), "gain in points": texts})


def stanford_dogs() -> pd.DataFrame:
    """Published accuracies on Stanford Dogs (fraction), oldest first.

    Returns:
        Columns model, year, top1, pretraining ("not read" if the source, as far as it was read,
        does not name it), note, source.
    """
    return _read("stanford_dogs.csv").fillna({"pretraining": "none", "note": ""})


def stanford_dogs_2020() -> pd.DataFrame:
    """The 2020 table: ResNeXt-101 32x48d WSL on Stanford Dogs, one GPU, 4 to 6 h a run.

    Returns:
        Columns train_size, test_size (px), top1 (fraction, NaN where it gives none), note.
    """
    return _read("stanford_dogs_2020.csv").fillna({"note": ""})


def use() -> pd.DataFrame:
    """How libraries use a higher test resolution or another crop.

    Returns:
        Columns who, network, what, points (of top-1, as published), note, source.
    """
    return _read("use.csv")


def _read(name: str) -> pd.DataFrame:
    with resources.as_file(resources.files(__package__) / "published_data" / name) as path:
        return read_table(path)


def compared_with_2020(results: Results) -> pd.DataFrame | None:
    """The pairs of sizes that the sweep and the table of 2020 share, on one usual centre crop.

    That table shows no stage 2, so it is compared with `none`. Its figures are of one run each, so
    each is held against the interval in which one training is expected.

    Returns:
        One row per shared pair: the columns of `stanford_dogs_2020`, estimate (of this sweep, the
        mean over seeds), low and high (the 95 % prediction interval of one training), and inside
        (does the figure of 2020 lie in it? "" where one of the two is lacking). None where there is
        nothing to compare: another dataset, or no such pair.
    """
    plain = results.usual.query("adaptation == 'none'")
    hits = [results.hits(cell) for cell in keys(plain)]
    expected = [
        of_one_training(same_images(*seeds.values())) if seeds else Accuracy() for seeds in hits
    ]
    rows = stanford_dogs_2020().merge(
        plain[PAIR].join(pd.DataFrame(expected, index=plain.index)), on=PAIR
    )
    if results.settings["dataset"] != DATASET or rows.empty:
        return None
    inside = rows["top1"].between(rows["low"], rows["high"]).map({True: "yes", False: "no"})
    return rows.assign(inside=inside.mask(rows[["top1", "estimate"]].isna().any(axis=1), ""))


def beside_2020(results: Results, compared: pd.DataFrame) -> str:
    """The comparison in words: the figures of 2020, and its 320/224 against 320/320."""
    counts = compared["inside"].value_counts()
    inside = counts.get("yes", 0)
    judged = inside + counts.get("no", 0)
    probes = results.usual.query("adaptation == 'probe'")
    probe = probes.loc[probes["test_size"] == BASELINE_SIZE, "top1"].dropna()
    here = f"{probe.iloc[0] * 100:.1f} %" if len(probe) else "not run"
    smaller, same = (Cell(320, size, "none", crop_pct=results.usual_crop) for size in (224, 320))
    within = results.difference(smaller, same)
    return (
        f"{inside} of {judged} accuracies of 2020 lie where one training of this sweep is "
        f"expected. Linear probe: {STANFORD_DOGS_2020_BASELINE * 100:.1f} % in 2020, {here} here. "
        f"Network: resnext101_32x48d_wsl in 2020, {results.settings['backbone']} here, "
        f"on {results.sweep['images']['test']:,} test images. "
        f"Within one training, 320/224 against 320/320: +0.3 points in 2020, "
        f"{within.points() if within else 'not run'} here. One run each has a half-width of 0.6 "
        "points there, and an epoch chosen at the test resolution would favour either: that "
        "320/224 is better was not shown in 2020."
    )
