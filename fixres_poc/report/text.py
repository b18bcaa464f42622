"""What the report says about a sweep's numbers: every sentence is chosen by them, none is typed in advance.

Functions return Markdown. Accuracies are means over the training seeds. Differences are in points of top-1 accuracy on
the same test images, with paired 95 % intervals; a difference counts as told apart when its interval leaves 0 out.
"""

import math

import pandas as pd

from fixres_poc.analysis.cells import CANDIDATES, ONCE, PAIR, Cell, aligned, keys
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference, paired_difference
from fixres_poc.config.settings import BASELINE_SIZE
from fixres_poc.method.zero_shot import ZeroShot


def _interval(accuracy: Difference) -> str:
    return f"{accuracy.estimate:.1%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%})"


def answer(results: Results) -> str:
    """Question and answer in five lines: question, choice, gain over the baseline, FixRes' part of it, trust."""
    chosen = results.choose()
    settings, counts = results.sweep["settings"], results.sweep["images"]
    lines = [
        f"**Question.** Trained at one image size, does `{settings['backbone']}` gain from being tested at a larger "
        f"one, with repaired last layers? {sum(counts.values()):,} images, {len(results.sweep['classes'])} classes.",
        f"**Choice.** On validation the best of the grid is: {chosen.named()}. It classifies "
        f"{_interval(results.accuracy(chosen))} of {counts['test']:,} test images correctly.",
        f"**Gain.** {_gain_over_baseline(results, chosen)}",
        f"**Owed to FixRes.** {fixres_part(results, chosen)}",
        f"**Trust.** {trust(results)}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _gain_over_baseline(results: Results, chosen: Cell) -> str:
    gain = results.difference(chosen, results.baseline)
    if gain is None:
        return "The baseline (frozen features, linear classifier, 224 px) was not run, so there is no gain to give."
    p, baseline = results.p_value(chosen, results.baseline), results.accuracy(results.baseline)
    return (
        f"Against frozen features with a linear classifier at 224 px ({baseline.estimate:.1%}): "
        f"{gain.points()}, {gain.verdict()}{'' if math.isnan(p) else f' (McNemar p = {p:.2g})'}."
        f"{_unequal_sizes(results)}"
    )


def _unequal_sizes(results: Results) -> str:
    largest = int(results.table.loc[~results.table["adaptation"].isin(ONCE), "test_size"].max())
    if largest >= BASELINE_SIZE:
        return ""
    return f" The baseline sees more pixels than any pair of this grid, whose largest test size is {largest} px."


def fixres_part(results: Results, chosen: Cell) -> str:
    """How much of the chosen cell's accuracy is owed to size and adaptation, and not to more training."""
    plain = chosen._replace(test_size=chosen.train_size, adaptation="none")
    total, control = (
        results.difference(chosen, plain),
        results.difference(chosen, chosen._replace(adaptation="control")),
    )
    if chosen == plain:
        return (
            "Nothing: validation prefers the network as it was trained, at its train size. FixRes does not help here."
        )
    parts = []
    if total is not None:
        parts.append(
            f"Against the same training tested at its own size without adaptation: {total.points()}, {total.verdict()}."
        )
    if control is not None:
        parts.append(
            f"Against the control, adapted for as long at {chosen.train_size} px and tested at the same "
            f"{chosen.test_size} px: {control.points()}, {control.verdict()}."
        )
    return " ".join(parts) or "Neither the control nor test size = train size was run, so it can't be told."


def trust(results: Results) -> str:
    """What to keep in mind: number of seeds, failed runs, leakage."""
    settings, table = results.sweep["settings"], results.table
    seeds, asked = len(results.seeds(results.choose())), len(settings["seeds"])
    parts = [f"{seeds}{f' of {asked}' if seeds < asked else ''} training seed{'s' if asked > 1 else ''}"]
    if seeds == 1:
        parts[0] += ", so the spread between trainings is not known"
    else:
        parts[0] += ": accuracies are means over them, and intervals come from drawing seeds and images anew"
    missing = table.loc[table["status"] != "done", PAIR].drop_duplicates()
    if len(missing):
        parts.append(
            f"{len(missing)} of {len(table[PAIR].drop_duplicates())} size pairs, the baseline's counted, lack results"
        )
    if left_out := results.sweep.get("unreadable"):
        parts.append(f"{len(left_out)} unreadable image{'s' if len(left_out) > 1 else ''} left out")
    if settings["dataset"] == "synthetic":
        parts.append("the images are drawn, and were drawn so that a larger size has something to show")
    leakage = (results.sweep.get("leakage") or {}).get("verdict", "The leakage check was not run.")
    return f"{'; '.join(parts)}. {leakage}"


def size_effect(results: Results, adaptation: str = "none") -> str:
    """For each train size: the best test size on validation, and what it gains on test over the train size."""
    rows = results.cells[(results.cells["seeds"] > 0) & (results.cells["adaptation"] == adaptation)]
    lines = []
    for train_size, group in rows[rows["view"] == "center"].groupby("train_size"):
        best, train = int(str(group.set_index("test_size")["val_top1"].idxmax())), int(str(train_size))
        against = results.difference(_cell(group, best), _cell(group, train))
        text = f"Trained at {train} px, validation is best at **{best} px**"
        if best == train:
            text += ", its own size"
        elif against is not None:
            text += f"; on test that is {against.points()} against {train} px, {against.verdict()}"
        lines.append(f"- {text}.")
    return "\n".join(lines) or "No pair was run with this adaptation."


def _cell(group: pd.DataFrame, test_size: int) -> Cell:
    first = group.iloc[0]
    return Cell(int(first["train_size"]), test_size, str(first["adaptation"]), int(first["seed"]), str(first["view"]))


def adaptations(results: Results) -> str:
    """Each adaptation against `none` and against the control, over the pairs with a larger test size."""
    ok = results.cells[(results.cells["seeds"] > 0) & (results.cells["test_size"] > results.cells["train_size"])]
    ok = ok[ok["view"] == "center"]
    lines = []
    for adaptation in [name for name in (*CANDIDATES[1:], "full") if name in set(ok["adaptation"])]:
        cells = keys(ok[ok["adaptation"] == adaptation])
        for reference in ("none", "control"):
            gains = [results.difference(cell, cell._replace(adaptation=reference)) for cell in cells]
            known = [gain for gain in gains if gain is not None]
            if known:
                wins = sum(gain.low > 0 for gain in known)
                losses = sum(gain.high < 0 for gain in known)
                mean = sum(gain.estimate for gain in known) / len(known) * 100
                lines.append(
                    f"`{adaptation}` against `{reference}`: {mean:+.1f} points on average over {len(known)} pairs "
                    f"with a larger test size; a gain in {wins}, a loss in {losses}, "
                    f"not told apart in {len(known) - wins - losses}."
                )
    lines += _same(ok)
    return "\n".join(f"- {line}" for line in lines) or "- No pair with a larger test size than train size was adapted."


def _same(cells: pd.DataFrame) -> list[str]:
    grid = cells.pivot_table(index=PAIR, columns="adaptation", values="top1")
    if not {"head_bn", "head_bn_stats"} <= set(grid) or (grid["head_bn"] - grid["head_bn_stats"]).abs().max() > 0.001:
        return []
    return [
        "`head_bn` and `head_bn_stats` are one and the same here, to 0.1 points: in so few steps at this rate the "
        "affine weights, in which they differ, hardly move."
    ]


def optimism(results: Results) -> str:
    """The highest test accuracy of the grid beside the chosen cell's, and why it is not the answer."""
    chosen = results.choose()
    ok = results.cells[~results.cells["adaptation"].isin([*ONCE, "control", "full"])]
    ok = ok[ok["seeds"] == ok["seeds"].max()]
    best = keys(ok.sort_values("top1", ascending=False))[0]
    if best == chosen:
        return "The cell chosen on validation is also the one with the highest test accuracy."
    highest = results.accuracy(best).estimate
    gap = highest - results.accuracy(chosen).estimate
    return (
        f"The highest test accuracy of the grid is {highest:.1%} ({best.named()}), "
        f"{gap * 100:.1f} points above the chosen cell. It is *optimistic*: the best of {len(ok)} results "
        "is picked by luck as well as by merit."
    )


def cost(results: Results) -> str:
    """What the chosen cell costs against the same training tested at its own size."""
    chosen = results.choose()
    row = results.row(chosen)
    text = f"Stage 1 took {row['train_seconds']:.0f} s"
    if not math.isnan(row["adapt_seconds"]):
        text += f", the adaptation {row['adapt_seconds']:.0f} s"
    text += f"; {row['eval_images_per_second']:.0f} images a second are classified at {chosen.test_size} px"
    plain = chosen._replace(test_size=chosen.train_size, adaptation="none")
    if plain in results and plain.test_size != chosen.test_size:
        before = results.row(plain)["eval_images_per_second"]
        text += f", against {before:.0f} at {plain.test_size} px"
    return text + "."


def conclusion(results: Results) -> str:
    """Does FixRes pay on these images? One sentence chosen by the chosen cell's difference to the control."""
    chosen = results.choose()
    larger = chosen.test_size > chosen.train_size
    plain = results.difference(chosen, chosen._replace(test_size=chosen.train_size, adaptation="none"))
    control = results.difference(chosen, chosen._replace(adaptation="control"))
    if not larger:
        text = "**FixRes does not pay here**: validation prefers a test size that is not larger than the train size."
    elif plain is not None and plain.high < 0:
        text = "**FixRes loses here**: the chosen pair is worse on test than the same training tested at its own size."
    elif plain is None:
        text = (
            "**It can't be told** whether the larger test size pays: test size = train size is not among the pairs run."
        )
    elif plain.low <= 0:
        text = "**No gain could be shown**: on these images the chosen pair is not told apart from test = train size."
    elif chosen.adaptation != "none" and control is not None and control.low > 0:
        text = "**FixRes pays here**: a larger test size and the adaptation there gain more than as much training does."
    else:
        text = "**The larger test size pays here**; that adapting *there* adds to it is not shown against the control."
    return f"{text}{_beside_baseline(results, chosen)}"


def _beside_baseline(results: Results, chosen: Cell) -> str:
    gain = results.difference(chosen, results.baseline)
    if gain is None or gain.low > 0:
        return ""
    if gain.high < 0:
        return " But the baseline, for which no network was trained at all, is better still."
    return " But the chosen cell is not told apart from the baseline, for which no network was trained at all."


def zero_shot_verdict(known: ZeroShot, baseline: pd.DataFrame) -> str:
    """What the pre-trained classifier says about the baseline's accuracy, "" where there is nothing to ask."""
    if known.obstacle:
        return ""
    mapped, every = len(known.mapped), known.classes
    linear, own = aligned(*(_correct(each) for each in (baseline, known.predictions)))
    gain = paired_difference(linear, own)
    told = "more" if gain.low > 0 else "less" if gain.high < 0 else "not told apart from that"
    return (
        f"Without any training here the backbone's own ImageNet classifier, asked for the {mapped} of {every} "
        f"classes that it has by name, is right on **{own.mean():.1%}** of their {len(own):,} test images. The linear "
        f"baseline, which chooses among all {every} classes, is right on {linear.mean():.1%} of the same, {told} "
        f"({gain.estimate * 100:+.1f} points, 95 % interval {gain.low * 100:+.1f} to {gain.high * 100:+.1f})."
    )


def _correct(predictions: pd.DataFrame) -> "pd.Series[bool]":
    test = predictions[predictions["split"] == "test"].astype({"image": str}).set_index("image")
    return test["target"] == test["top1"]
