"""Is the best test resolution where apparent size says, and which pairs contradict it?

The theory: for one train resolution, of two test resolutions the one with a size ratio nearer 1 does not lose, where
nothing is adapted (the adapted optimum lies higher, Touvron et al. 2019). A test resolution contradicts it when its
ratio is further from 1 (as a factor, by both definitions of `geometry.crops`) than that of the nearest one tried, and
yet its accuracy is higher, with a 95 % interval of the difference that leaves 0 out; otherwise the sweep agrees. With
many sizes tried, one in forty would contradict by luck alone.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import PAIR, Cell
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.settings import SPLITS
from fixres_poc.data.transforms import Resize
from fixres_poc.geometry.crops import neutral_test_sizes, pair_ratios, sample_crops

DEFINITIONS = ["mean_of_ratios", "ratio_of_means"]
UNKNOWN = Difference(float("nan"), float("nan"), float("nan"))


def compare_with_measured(results: Results, adaptation: str = "none") -> pd.DataFrame:
    """A sweep's test resolutions against the predicted ones; with several seeds, gains are means over them.

    Returns:
        One row per pair: train_size, test_size, chosen_by (validation accuracy, mean over seeds), top1 (test), the
        columns of `pair_ratios`, predicted, predicted_low and predicted_high (`neutral_test_sizes`, mean of ratios),
        nearest (is this the ratio nearest 1?), best (highest chosen_by?), gain, gain_low and gain_high (test accuracy
        minus the nearest size's, paired; nan for that one), contradicts.

    Raises:
        ValueError: no pair was run with this adaptation, or the images' sizes are not known.
    """
    ok = results.cells[(results.cells["seeds"] > 0) & (results.cells["view"] == "center")]
    cells = ok[ok["adaptation"] == adaptation].groupby(PAIR, as_index=False)
    settings = results.sweep["settings"]

    def gain(train_size: int, test_size: int, nearest: int) -> Difference:
        pair = [Cell(train_size, size, adaptation, settings["seeds"][0]) for size in (test_size, nearest)]
        return results.difference(*pair) or UNKNOWN

    means = cells.agg(chosen_by=("val_top1", "mean"), top1=("top1", "mean"))
    own = results.images[results.images["split"].isin(SPLITS)]
    return _compared(means, sample_crops(own), settings["resize"], gain)


def _compared(
    cells: pd.DataFrame, crops: pd.DataFrame, resize: Resize, gain: Callable[[int, int, int], Difference]
) -> pd.DataFrame:
    if cells.empty:
        raise ValueError("no pair was run to its end with this adaptation")
    pairs = list(cells[PAIR].itertuples(index=False, name=None))
    predicted = neutral_test_sizes(crops, sorted({train for train, _ in pairs}), resize).drop(columns="ratio_of_means")
    names = {"mean_of_ratios": "predicted", "low": "predicted_low", "high": "predicted_high"}
    table = cells.merge(pair_ratios(crops, pairs, resize), on=PAIR).merge(
        predicted.rename(columns=names), on="train_size"
    )
    return pd.concat([_judged(rows, gain) for _, rows in table.groupby("train_size")], ignore_index=True)


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
    return "\n".join(f"- {_verdict(rows, chosen_on)}" for _, rows in comparison.groupby("train_size"))


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
    return f"{text} " + (f"**Against the theory: {sizes}.**" if sizes else "No resolution contradicts the theory.")
