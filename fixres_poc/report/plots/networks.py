"""Figures of published networks: accuracy against cost, and gains by the test resolution."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fixres_poc.report import published
from fixres_poc.report.plots.style import label_points, legend, logarithmic, note

EXTRA_DATA = {  # a marker each as well as a colour
    "ImageNet-1k alone": ("C0", "o"),
    "and ImageNet-21k": ("C1", "s"),
    "and other images": ("C2", "^"),
}


def extra_data(models: pd.DataFrame) -> pd.Series:
    """The key of `EXTRA_DATA` that a row's pre-training belongs to."""
    kinds = {"none": "ImageNet-1k alone", "ImageNet-21k": "and ImageNet-21k"}
    return models["extra_data"].map(lambda data: kinds.get(data, "and other images"))


def accuracy_by_cost(models: pd.DataFrame, ringed: str) -> Figure:
    """ImageNet top-1 (%) against multiply-adds, by pre-training, with the Pareto front.

    Args:
        models: as `published.networks` returns; rows without multiply-adds are left out.
        ringed: model whose rows get a ring.
    """
    models = models.dropna(subset="gmacs").assign(top1=models["top1"] * 100)
    figure, axis = plt.subplots(figsize=(5.6, 4.8))
    for name, (colour, marker) in EXTRA_DATA.items():
        rows = models[extra_data(models) == name]
        x, y = rows["gmacs"], rows["top1"]
        axis.scatter(x, y, 28, color=colour, marker=marker, label=name, alpha=0.85)
    ring = models[models["model"] == ringed]
    axis.scatter(ring["gmacs"], ring["top1"], 80, facecolor="none", edgecolor="black", label=ringed)
    best = models[published.undominated(models, "gmacs")].sort_values("gmacs")
    (line,) = axis.step(best["gmacs"], best["top1"], where="post", label="Pareto front")
    line.set(color="#555555", linewidth=1, zorder=0)
    logarithmic(axis, 1, 3)
    axis.set(xlabel="multiply-adds of one image (billions)", ylabel="ImageNet top-1 (%)")
    axis.set_xlim(left=best["gmacs"].min() / 9)
    legend(figure)
    named = best.drop_duplicates("model", keep="last")[["model", "gmacs", "top1"]]
    above = [(-3, 5), (-3, 12), (-3, 19)]  # there is room above the line
    label_points(axis, list(named.itertuples(index=False)), above, fontsize=7.5)
    return figure


def size_gains(gains: pd.DataFrame) -> Figure:
    """Gain in ImageNet top-1 (points) of each network at larger test resolutions.

    Args:
        gains: as `published.size_gains` returns.
    """
    names = list(gains.groupby("model")["gain"].max().sort_values().index)
    figure, axis = plt.subplots(figsize=(5.6, 1 + 0.3 * len(names)))
    kinds = {"C0o": "as trained", "C1D": "last layers adapted at the test resolution"}
    for adapted, (mark, label) in zip(("no", "yes"), kinds.items(), strict=True):
        rows = gains[gains["adapted"] == adapted]
        axis.plot(rows["gain"] * 100, rows["model"].map(names.index), mark, label=label)
    largest = gains.groupby("model")["gain"].transform("max")
    for row in gains.assign(largest=largest).to_dict("records"):
        across, align = (7, "left") if row["gain"] == row["largest"] else (-7, "right")
        text = f"{row['train_size']}/{row['test_size']}, ×{row['ratio']:.2f}"
        place = names.index(row["model"])
        note(axis, text, row["gain"] * 100, place, (across, 0), ha=align, fontsize=7.5)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("gain in ImageNet top-1 over test = train resolution (points)")
    axis.set_xlim(0, gains["gain"].max() * 140)
    legend(figure)
    return figure
