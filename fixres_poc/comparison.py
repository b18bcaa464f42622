"""A sweep beside the table of 2020: the proof of concept on Stanford Dogs that this project started from.

Accuracies are fractions. What the table of 2020 leaves out (its split, epochs and rates, how the last layers were
tuned) can't be matched, so a difference is one between two experiments.
"""

import pandas as pd

from fixres_poc.published import STANFORD_DOGS_2020_BASELINE, stanford_dogs_2020
from fixres_poc.results import CANDIDATES, Results

DATASET = "stanford_dogs"
PAIR = ["train_size", "test_size"]
OWN = ["adaptation", "top1", "top1_low", "top1_high"]


def compared_with_2020(results: Results) -> pd.DataFrame | None:
    """The pairs of sizes that the sweep and the table of 2020 share, both tested on one centre crop.

    Of each pair the adaptation with the best validation accuracy is taken, ties going to the simpler one; of several
    seeds the means.

    Returns:
        One row per shared pair: train_size, test_size, size_ratio, top1_2020, adaptation, top1, top1_low, top1_high
        (95 %), difference (here minus 2020), inside ("yes" where the figure of 2020 lies in the interval, "no", or ""
        where one of the two is lacking) and note (why it is lacking). None where there is nothing to compare: another
        data set, or no such pair.
    """
    every = results.cells
    cells = every[every["adaptation"].isin(CANDIDATES) & (every["view"] == "center")]
    runs = cells.drop_duplicates(PAIR)[[*PAIR, "size_ratio"]]
    rows = stanford_dogs_2020().rename(columns={"top1": "top1_2020"}).merge(runs, on=PAIR)
    if results.sweep["settings"]["dataset"] != DATASET or rows.empty:
        return None
    rows = rows.merge(_best_on_validation(cells[cells["seeds"] > 0]), how="left", on=PAIR)
    both = rows["top1_2020"].notna() & rows["top1"].notna()
    inside = rows["top1_2020"].between(rows["top1_low"], rows["top1_high"]).map({True: "yes", False: "no"})
    then = rows["note"].map(lambda note: f"2020: {note}" if note else "")
    here = rows["top1"].isna().map({True: "here: no result", False: ""})
    notes = [" · ".join(filter(None, pair)) for pair in zip(then, here, strict=True)]
    rows = rows.assign(difference=rows["top1"] - rows["top1_2020"], inside=inside.where(both, ""), note=notes)
    return rows[[*PAIR, "size_ratio", "top1_2020", *OWN, "difference", "inside", "note"]]


def _best_on_validation(cells: pd.DataFrame) -> pd.DataFrame:
    ranked = cells.assign(rank=cells["adaptation"].map(CANDIDATES.index))
    best = ranked.sort_values(["val_top1", "rank"], ascending=[False, True]).drop_duplicates(PAIR)
    return best[[*PAIR, *OWN]]


def beside_2020(results: Results, compared: pd.DataFrame | None) -> str:
    """What the comparison shows, or why there is none, in a line or two.

    Args:
        results: of the sweep.
        compared: as `compared_with_2020` returns.
    """
    settings = results.sweep["settings"]
    if settings["dataset"] != DATASET:
        return "Nothing to compare with: the table of 2020 is about another data set, Stanford Dogs."
    if compared is None:
        return "Nothing to compare with: none of the pairs of sizes in the table of 2020 is in this sweep."
    judged = compared[compared["inside"] != ""]
    baseline = results.table.loc[results.table["adaptation"] == "baseline", "top1"].dropna()
    ours = f"{baseline.iloc[0]:.1%}" if len(baseline) else "not run"
    inside = (judged["inside"] == "yes").sum()
    return (
        f"{inside} of {len(judged)} figures of 2020 lie in the 95 % interval of this sweep's. "
        f"Baseline: {STANFORD_DOGS_2020_BASELINE:.1%} in 2020, {ours} here.\n"
        f"Network: resnext101_32x48d_wsl in 2020, {settings['backbone']} here, "
        f"on {results.sweep['pictures']['test']:,} test pictures."
    )
