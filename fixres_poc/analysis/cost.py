"""What an image costs, and what a training costs: the cells that no other one beats at their cost.

The cost of an image depends on the test resolution and on the number of crops alone: the train
resolution and the adaptation leave the network's shape as it is. So speeds are medians over all
runs of one test resolution and view. A multiply-add counts as 2 FLOPs, and a training step as three
forward passes.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import PAIR, Cell, keys
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.settings import CROPS, SPLITS
from fixres_poc.data.transforms import Resize
from fixres_poc.method.apparent_size import neutral_test_sizes, pair_ratios, sample_crops
from fixres_poc.model.memory_plan import parameters_and_flops

COST = ["test_size", "view"]


def training_cost(results: Results, cell: Cell) -> tuple[float, float]:
    """What a cell's training took: FLOPs of the probe, of stage 1 at the chosen rate and of stage 2; and seconds.

    Choosing rates is not counted, nor is reading of images (in FLOPs). nan where it is not known.
    """
    settings, counts, row = results.sweep["settings"], results.sweep["images"], results.row(cell)
    seconds = float(row["train_seconds"]) + (
        0.0 if cell.adaptation == "none" else float(row["adapt_seconds"])
    )
    runs = (
        run
        for run in results.sweep["runs"]
        if run["train_size"] == cell.train_size and run.get("choices")
    )
    training = next(runs, None)
    if training is None:
        return float("nan"), seconds
    backbone, classes = settings["backbone"], len(results.sweep["classes"])
    forward = {
        size: parameters_and_flops(backbone, classes, size)[1]
        for size in (cell.train_size, cell.test_size)
    }
    probed = (counts["train"] + counts["val"]) * (settings["head_start"] == "probe")
    trained = (
        training["epochs"]
        * (3 * counts["train"] + counts["val"])
        * (training["choices"]["learning_rate"] > 0)
    )
    adapt = (
        training["choices"]["adapt"].get(cell.adaptation, {"epochs": 0})["epochs"] * counts["train"]
    )
    return (probed + trained) * forward[cell.train_size] + adapt * forward[cell.test_size], seconds


def training_front(results: Results) -> pd.DataFrame:
    """Accuracy and training cost of every one-crop cell that may be chosen, and is it on its test resolution's front?

    Returns:
        Rows of `Results.ranked` with the columns flops and seconds (`training_cost`) and front: no
        cell of that test size is as good on validation for fewer FLOPs.
    """
    rows = results.ranked()
    rows = rows[rows["view"] == "center"]
    costs = pd.DataFrame(
        [training_cost(results, cell) for cell in keys(rows)], columns=["flops", "seconds"]
    )
    rows = rows.reset_index(drop=True).join(costs).sort_values(["test_size", "flops", "loss"])
    best = rows.groupby("test_size")["loss"].transform(
        lambda loss: loss.cummin().shift(fill_value=2.0)
    )
    return rows.assign(front=rows["loss"] < best).reset_index(drop=True)


def speeds(results: Results) -> pd.DataFrame:
    """Evaluation speeds (images/s) over runs: median, min and max, by test resolution and view."""
    ran = results.table[results.table["status"] == "done"]
    # all adaptations of a run were measured together
    runs = ran.drop_duplicates([*PAIR, "view", "seed"])
    pairs = runs["train_size"].notna()
    # sizes that the probe alone was measured at
    alone = ~runs["test_size"].isin(runs["test_size"][pairs])
    return runs[pairs | alone].groupby(COST)["eval_images_per_second"].agg(["median", "min", "max"])


def pareto_front(results: Results) -> pd.DataFrame:
    """The cells that no other one beats: none is better on validation, with fewer FLOPs and faster, or equal in these.

    Besides the candidates of `Results.choose` the probe and full fine-tuning compete, since they
    can be used too.

    Returns:
        Rows of `Results.ranked`, cheapest first, with the further columns flops (of one image, all
        its crops) and images_per_second (median over runs; slowest and fastest: their range; nan
        where no run measured it). Empty where no pair was run to its end.
    """
    measured = speeds(results)
    best = results.ranked(("full", "probe")).drop_duplicates(COST)
    backbone, classes = results.sweep["settings"]["backbone"], len(results.sweep["classes"])
    flops = [
        CROPS[view] * parameters_and_flops(backbone, classes, size)[1]
        for size, view in zip(best["test_size"], best["view"], strict=True)
    ]
    own = measured.reindex(pd.MultiIndex.from_frame(best[COST]))
    best = best.assign(flops=flops, images_per_second=own["median"].to_numpy())
    best = best.assign(slowest=own["min"].to_numpy(), fastest=own["max"].to_numpy())
    seconds = 1 / best["images_per_second"].fillna(float("inf"))
    kept: list[int] = []  # best on validation first, so a row can only be beaten by one before it
    for place in range(len(best)):
        cost = best["flops"].iloc[place], seconds.iloc[place]
        if not any(
            best["flops"].iloc[other] <= cost[0] and seconds.iloc[other] <= cost[1]
            for other in kept
        ):
            kept.append(place)
    return best.iloc[kept].sort_values(["flops", "val_top1"]).reset_index(drop=True)


def steps(results: Results, front: pd.DataFrame) -> pd.DataFrame:
    """The frontier as the report shows it, cheapest first, each step with its gain over the one before on test."""
    each = keys(front)
    gains = [results.difference(cell, before) for before, cell in pairwise(each)]
    words = [
        "" if gain is None else _against(gain.low, gain.high, gain.points())
        for gain in [None, *gains]
    ]
    return pd.DataFrame(
        {
            "train": front["train_size"].astype(object).where(front["train_size"].notna(), "–"),
            "test": front["test_size"],
            "adaptation": front["adaptation"],
            **({"view": front["view"]} if front["view"].nunique() > 1 else {}),
            "images/s": front["images_per_second"].map("{:.0f}".format, na_action="ignore"),
            "range": [
                f"{a:.0f} to {b:.0f}"
                for a, b in zip(front["slowest"], front["fastest"], strict=True)
            ],
            "GFLOP/image": front["flops"].map(lambda flops: f"{flops / 1e9:.3g}"),
            "val top-1 %": (front["val_top1"] * 100).map("{:.1f}".format),
            "test top-1 %": (front["top1"] * 100).map("{:.1f}".format),
            "95 % interval": [
                f"{low * 100:.1f} to {high * 100:.1f}"
                for low, high in zip(front["top1_low"], front["top1_high"], strict=True)
            ],
            "against the previous row, on test": words,
        }
    )


def _against(low: float, high: float, text: str) -> str:
    return f"no difference shown: {text}" if low <= 0 <= high else text


def advice(results: Results, front: pd.DataFrame) -> str:
    """Markdown: what to use without a limit, and the cheapest step that is not told apart from it."""
    if front.empty:
        return "No pair has finished, so there is none to recommend."
    each, place = keys(front), int(front["val_top1"].argmax())
    lines = [f"- Without a limit, validation prefers {_with_cost(each[place], front.iloc[place])}."]
    gains = [results.difference(each[place], cell) for cell in each[:place]]
    same = [
        (number, gain) for number, gain in enumerate(gains) if gain is not None and gain.low <= 0
    ]
    if same:
        number, gain = same[0]
        lines.append(
            f"- The cheapest cell without a detectable difference on test is "
            f"{_with_cost(each[number], front.iloc[number])}. The more expensive one adds {gain.points()}."
        )
    elif place and None not in gains:
        lines.append("- Every cheaper row of the table is worse on test.")
    elif not place:
        lines.append("- No cheaper cell was run.")
    return "\n".join(lines)


def _with_cost(cell: Cell, row: "pd.Series[float]") -> str:
    speed = f"{row['images_per_second']:.0f} images/s and " if row["images_per_second"] > 0 else ""
    return f"{cell.named()}, with {speed}{row['flops'] / 1e9:.3g} GFLOP per image"


DEFINITIONS = ["mean_of_ratios", "ratio_of_means"]
UNKNOWN = Difference(float("nan"), float("nan"), float("nan"))


def compare_with_measured(results: Results, adaptation: str = "none") -> pd.DataFrame:
    """A sweep's test resolutions against the predicted ones; with several seeds, gains are means over them.

    Returns:
        One row per pair: train_size, test_size, chosen_by (validation accuracy, mean over seeds),
        top1 (test), the columns of `pair_ratios`, predicted, predicted_low and predicted_high
        (`neutral_test_sizes`, mean of ratios), nearest (is this the ratio nearest 1?), best
        (highest chosen_by?), gain, gain_low and gain_high (test accuracy minus the nearest size's,
        paired; nan for that one), contradicts.

    Raises:
        ValueError: no pair was run with this adaptation, or the images' sizes are not known.
    """
    ok = results.cells[(results.cells["seeds"] > 0) & (results.cells["view"] == "center")]
    cells = ok[ok["adaptation"] == adaptation].groupby(PAIR, as_index=False)
    settings = results.sweep["settings"]

    def gain(train_size: int, test_size: int, nearest: int) -> Difference:
        pair = [
            Cell(train_size, size, adaptation, settings["seeds"][0])
            for size in (test_size, nearest)
        ]
        return results.difference(*pair) or UNKNOWN

    means = cells.agg(chosen_by=("val_top1", "mean"), top1=("top1", "mean"))
    own = results.images[results.images["split"].isin(SPLITS)]
    return _compared(means, sample_crops(own), settings["resize"], gain)


def _compared(
    cells: pd.DataFrame,
    crops: pd.DataFrame,
    resize: Resize,
    gain: Callable[[int, int, int], Difference],
) -> pd.DataFrame:
    if cells.empty:
        raise ValueError("no pair was run to its end with this adaptation")
    pairs = list(cells[PAIR].itertuples(index=False, name=None))
    predicted = neutral_test_sizes(crops, sorted({train for train, _ in pairs}), resize).drop(
        columns="ratio_of_means"
    )
    names = {"mean_of_ratios": "predicted", "low": "predicted_low", "high": "predicted_high"}
    table = cells.merge(pair_ratios(crops, pairs, resize), on=PAIR).merge(
        predicted.rename(columns=names), on="train_size"
    )
    return pd.concat(
        [_judged(rows, gain) for _, rows in table.groupby("train_size")], ignore_index=True
    )


def _judged(rows: pd.DataFrame, gain: Callable[[int, int, int], Difference]) -> pd.DataFrame:
    """Rows of one train resolution with the columns from `nearest` on."""
    distances = np.abs(np.log(rows[DEFINITIONS].to_numpy(dtype=np.float64)))
    nearest = int(distances[:, 0].argmin())
    train_size, reference = (int(rows[name].iloc[nearest]) for name in PAIR)
    sizes = [int(size) for size in rows["test_size"]]
    gains = [gain(train_size, size, reference) if size != reference else UNKNOWN for size in sizes]
    low = np.array([each.low for each in gains])
    number = np.arange(len(rows))
    return rows.assign(
        nearest=number == nearest,
        best=number == int(rows["chosen_by"].argmax()),
        gain=[each.estimate for each in gains],
        gain_low=low,
        gain_high=[each.high for each in gains],
        contradicts=(distances > distances[nearest]).all(axis=1) & (low > 0),
    )


def verdicts(comparison: pd.DataFrame, chosen_on: str = "validation") -> str:
    """One Markdown line per train resolution: predicted and measured best size, and which sizes contradict the theory.

    Args:
        chosen_on: the name of the part on which the best size was chosen.
    """
    return "\n".join(
        f"- {_verdict(rows, chosen_on)}" for _, rows in comparison.groupby("train_size")
    )


def _verdict(rows: pd.DataFrame, chosen_on: str) -> str:
    near, best = rows[rows["nearest"]].iloc[0], rows[rows["best"]].iloc[0]
    text = (
        f"Trained at {near['train_size']} px: objects look equally large at {near['predicted']:.0f} px "
        f"({near['predicted_low']:.0f} to {near['predicted_high']:.0f} px, both definitions); "
    )
    if len(rows) == 1:
        return f"{text}only {near['test_size']} px was run (ratio {near['mean_of_ratios']:.2f}), which tests nothing."
    text += f"the nearest resolution of the sweep is {near['test_size']} px (ratio {near['mean_of_ratios']:.2f}). "
    if best["nearest"]:
        text += f"It is also the best on {chosen_on}."
    else:
        side = "higher" if best["test_size"] > near["test_size"] else "lower"
        text += f"The best on {chosen_on} is {best['test_size']} px (ratio {best['mean_of_ratios']:.2f}), {side}; "
        text += f"on test the difference is {Difference(*best[['gain', 'gain_low', 'gain_high']]).points()}."
    against = rows[rows["contradicts"]]
    sizes = ", ".join(f"{size} px" for size in against["test_size"])
    return f"{text} " + (
        f"**Against the theory: {sizes}.**" if sizes else "No resolution contradicts the theory."
    )
