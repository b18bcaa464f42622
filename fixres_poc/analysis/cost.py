"""What an image costs, and what a training costs: the cells that no other one beats at their cost.

The cost of an image depends on the test resolution and on the number of crops alone: the train resolution and the
adaptation leave the network's shape as it is. So speeds are medians over all runs of one test resolution and view. A
multiply-add counts as 2 FLOPs, and a training step as three forward passes.
"""

from itertools import pairwise

import pandas as pd

from fixres_poc.analysis.cells import ONCE, PAIR, Cell, keys
from fixres_poc.analysis.results import Results
from fixres_poc.config.settings import CROPS
from fixres_poc.model.tracing import parameters_and_flops

COST = ["test_size", "view"]


def training_cost(results: Results, cell: Cell) -> tuple[float, float]:
    """What a cell's training took: FLOPs of the probe, of stage 1 at the chosen rate and of stage 2; and seconds.

    Choosing rates is not counted, nor is reading of images (in FLOPs). nan where it is not known.
    """
    settings, counts, row = results.sweep["settings"], results.sweep["images"], results.row(cell)
    seconds = float(row["train_seconds"]) + (0.0 if cell.adaptation == "none" else float(row["adapt_seconds"]))
    runs = (run for run in results.sweep["runs"] if run["train_size"] == cell.train_size and run.get("choices"))
    training = next(runs, None)
    if training is None:
        return float("nan"), seconds
    backbone, classes = settings["backbone"], len(results.sweep["classes"])
    forward = {size: parameters_and_flops(backbone, classes, size)[1] for size in (cell.train_size, cell.test_size)}
    probed = (counts["train"] + counts["val"]) * (settings["head_start"] == "probe")
    trained = training["epochs"] * (3 * counts["train"] + counts["val"]) * (training["choices"]["learning_rate"] > 0)
    adapt = training["choices"]["adapt"].get(cell.adaptation, {"epochs": 0})["epochs"] * counts["train"]
    return (probed + trained) * forward[cell.train_size] + adapt * forward[cell.test_size], seconds


def training_front(results: Results) -> pd.DataFrame:
    """Accuracy and training cost of every one-crop cell that may be chosen, and is it on its test resolution's front?

    Returns:
        Rows of `Results.ranked` with the columns flops and seconds (`training_cost`) and front: no cell of that test
        size is as good on validation for fewer FLOPs.
    """
    rows = results.ranked()
    rows = rows[rows["view"] == "center"]
    costs = pd.DataFrame([training_cost(results, cell) for cell in keys(rows)], columns=["flops", "seconds"])
    rows = rows.reset_index(drop=True).join(costs).sort_values(["test_size", "flops", "loss"])
    best = rows.groupby("test_size")["loss"].transform(lambda loss: loss.cummin().shift(fill_value=2.0))
    return rows.assign(front=rows["loss"] < best).reset_index(drop=True)


def speeds(results: Results) -> pd.DataFrame:
    """Evaluation speeds (images/s) over runs: median, min and max, by test resolution and view."""
    ran = results.table[results.table["status"] == "done"].sort_values("adaptation", key=lambda names: names.isin(ONCE))
    runs = ran.drop_duplicates([*PAIR, "view", "seed"])  # all adaptations of a run were measured together
    pairs = runs[~runs["adaptation"].isin(ONCE)]
    alone = runs[~runs["test_size"].isin(pairs["test_size"])]  # sizes that the probe alone was measured at
    return pd.concat([pairs, alone]).groupby(COST)["eval_images_per_second"].agg(["median", "min", "max"])


def pareto_front(results: Results) -> pd.DataFrame:
    """The cells that no other one beats: none is better on validation, with fewer FLOPs and faster, or equal in these.

    Besides the candidates of `Results.choose` the baseline and full fine-tuning compete, since they can be used too.

    Returns:
        Rows of `Results.ranked`, cheapest first, with the further columns flops (of one image, all its crops) and
        images_per_second (median over runs; slowest and fastest: their range; nan where no run measured it). Empty
        where no pair was run to its end.
    """
    measured = speeds(results)
    best = results.ranked(("full", "baseline")).drop_duplicates(COST)
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
        if not any(best["flops"].iloc[other] <= cost[0] and seconds.iloc[other] <= cost[1] for other in kept):
            kept.append(place)
    return best.iloc[kept].sort_values(["flops", "val_top1"]).reset_index(drop=True)


def steps(results: Results, front: pd.DataFrame) -> pd.DataFrame:
    """The frontier as the report shows it, cheapest first, each step with its gain over the one before on test."""
    each = keys(front)
    gains = [results.difference(cell, before) for before, cell in pairwise(each)]
    words = ["" if gain is None else _against(gain.low, gain.high, gain.points()) for gain in [None, *gains]]
    return pd.DataFrame(
        {
            "train": front["train_size"],
            "test": front["test_size"],
            "adaptation": front["adaptation"],
            **({"view": front["view"]} if front["view"].nunique() > 1 else {}),
            "images/s": front["images_per_second"].map("{:.0f}".format, na_action="ignore"),
            "range": [f"{a:.0f} to {b:.0f}" for a, b in zip(front["slowest"], front["fastest"], strict=True)],
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
    same = [(number, gain) for number, gain in enumerate(gains) if gain is not None and gain.low <= 0]
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
    name = f"the baseline at {cell.test_size} px" if cell.adaptation == "baseline" else cell.named()
    return f"{name}, with {speed}{row['flops'] / 1e9:.3g} GFLOP per image"
