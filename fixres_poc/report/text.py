"""What the report says about a sweep's numbers, which choose every sentence.

Functions return Markdown. Accuracies are means over the training seeds. Differences are in points
of top-1 accuracy on the same images, with 95 % intervals over trainings and images.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from fixres_poc.analysis.cells import CANDIDATES, PAIR, Cell, keys
from fixres_poc.analysis.questions import Answer
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.settings import ADAPTED, CONTROL
from fixres_poc.data.sources import download

ASKED = {
    "size": "Resolution: one training, tested at a higher resolution, against test = train",
    "adaptation": "Adaptation: at the higher test resolution, against none and against its control",
    "claim": "FixRes's claim: at one test resolution, trained smaller and adapted, against train "
    "= test, adapted alike",
    "training": "Training: against the linear probe and, if there is one, zero-shot at the same "
    "test resolution",
}
"""The questions of `analysis.questions`, in words."""
SAID = {
    "size": {
        "gain": "A higher test resolution pays: {points}.",
        "loss": "A higher test resolution loses accuracy: {points}.",
        "equivalent": "A higher test resolution makes no difference of {delta} or more: {points}.",
        "can't tell": "It is unclear on these images whether a higher test resolution pays: "
        "{points}; {detectable}.",
    },
    "adaptation": {
        "gain": "Adaptation at a higher test resolution pays, also over its control: {points}.",
        "loss": "Adaptation at a higher test resolution loses accuracy, against none or its "
        "control: {points}.",
        "equivalent": "Adaptation at a higher test resolution makes no difference of {delta} or "
        "more: {points}.",
        "can't tell": "It is unclear on these images whether adaptation at a higher test "
        "resolution pays: {points}; "
        "{detectable}.",
    },
    "training": {
        "gain": "Fine-tuning is better than the linear probe and zero-shot: {points}.",
        "loss": "The linear probe or zero-shot, which need no fine-tuning, is better: {points}.",
        "equivalent": "The linear probe or zero-shot, which need no fine-tuning, is as good, to "
        "{delta}: {points}.",
        "can't tell": "It is unclear on these images whether fine-tuning is better than the "
        "linear probe and "
        "zero-shot: {points}; {detectable}.",
    },
}
CLAIM = {
    True: "**FixRes's claim holds here**: a lower train resolution, adapted, is not worse by "
    "{delta} or more "
    "({points}), at {ratio} the training FLOPs.",
    False: "**FixRes's claim does not hold here**: a lower train resolution, adapted, differs by "
    "{points} from train = test, at {ratio} the training FLOPs.",
    None: "**It is unclear on these images whether FixRes's claim holds**: {points}; {detectable}.",
}
COSTLIER = (
    "**FixRes's claim does not hold here**: a lower train resolution, adapted, is not worse "
    "by {delta} or more "
    "({points}), but costs {ratio} the training FLOPs."
)
NOT_ASKED = "**FixRes's claim was not tested here**: no pair of cells for it has finished."


def conclusion(answers: Sequence[Answer], seeds: int = 2) -> str:
    """Does FixRes pay on these images? Follows from the verdicts alone.

    Args:
        answers: of `analysis.questions.answers`, on one test part.
        seeds: number of trainings; of one alone the verdicts are about this training.
    """
    by_name = {each.question: each for each in answers}
    claim = by_name["claim"]
    costlier = claim.holds is False and claim.difference.low > -claim.delta
    said = COSTLIER if costlier else CLAIM[claim.holds]
    parts = [said.format(**_numbers(claim)) if claim.differences else NOT_ASKED]
    for name in ("size", "adaptation", "training"):
        if by_name[name].verdict != "not asked":
            parts.append(SAID[name][str(by_name[name].verdict)].format(**_numbers(by_name[name])))
    if seeds == 1:
        parts.append("With one seed, all of this holds for one training per resolution.")
    return " ".join(parts)


def _numbers(answer: Answer) -> dict[str, str]:
    return {
        "points": answer.difference.points(),
        "delta": f"{answer.delta * 100:g} point{'s' if answer.delta != 0.01 else ''}",
        "detectable": f"a difference of {answer.detectable * 100:.1f} points would be detected",
        "ratio": f"{answer.ratio[0]:.2f} times"
        if not math.isnan(answer.ratio[0])
        else "an unknown share of",
    }


def question_table(by_part: Mapping[str, Sequence[Answer]]) -> pd.DataFrame:
    """The questions, and for every test part estimate, interval, verdict and what limits it."""
    rows: list[dict[str, str]] = []
    for asked in zip(*by_part.values(), strict=True):
        first, cells = asked[0], dict.fromkeys(map(_compared, asked))
        row = {"question": ASKED[first.question], "compared": ", and ".join(cells)}
        for part, answer in zip(by_part, asked, strict=True):
            row[f"points on {part} (95 %)"] = _points(answer)
            row[f"verdict on {part}"] = _verdict(answer)
        rows.append(row)
        if first.question == "claim":
            flops, seconds = (
                _times(*ratios) for ratios in zip(first.ratio, *first.ratios, strict=True)
            )
            row = {"question": "Training cost of the lower train resolution"}
            row["compared"] = _compared(first)
            for part in by_part:
                row[f"points on {part} (95 %)"] = f"FLOPs {flops}"
                row[f"verdict on {part}"] = f"seconds {seconds}"
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(question=[f"{n}. {text}" for n, text in enumerate(table["question"], 1)])


def _points(answer: Answer) -> str:
    if not answer.differences:
        return answer.said
    gains = [f"{gain * 100:+.1f}" for gain in answer.binding[1]]
    return answer.difference.points(brief=True) + _of(gains)


def _times(mean: float, *each: float) -> str:
    return "n/a" if math.isnan(mean) else f"× {mean:.2f}" + _of([f"× {one:.2f}" for one in each])


def _of(each: Sequence[str]) -> str:
    """What every pair of cells has, of which the value before is the mean."""
    return f"; of {', '.join(each)}" if len(each) > 1 else ""


def _verdict(answer: Answer) -> str:
    if not answer.differences:
        return ""
    trained = f"{answer.seeds} seed{'s' if answer.seeds > 1 else ''}"
    equivalent = f"equivalent if δ ≥ {answer.smallest_delta * 100:.1f}"
    detectable = f"detectable from {answer.detectable * 100:.1f}"
    return f"{answer.said} ({trained}, {equivalent}, {detectable})"


def _compared(answer: Answer) -> str:
    """The cells of the credited difference: those over which the gain is smallest."""
    pairs = [[f"{cell.sizes()} {cell.adaptation}" for cell in pair] for pair in answer.binding[0]]
    return "; ".join(map(" − ".join, pairs)) or "n/a"


def choice(results: Results) -> str:
    """What validation prefers, what it reaches on each test part, and how sure that choice is."""
    chosen = results.choose()
    reached = []
    for part in results.parts:
        found, count = results.on(part).accuracy(chosen), results.sweep["images"][part]
        reached.append(f"{found.percent()} of {count:,} {part} images")
    runs = results.sweep["runs"] if results.sweep["settings"].get("head_start") != "file" else []
    still = {
        run["train_size"] for run in runs if (run.get("choices") or {}).get("learning_rate") == 0
    }
    frozen = (
        f" At {' and '.join(map(str, sorted(still)))} px validation chose the rate 0 for stage 1: "
        "the trunk stays frozen."
    )
    return (
        "On validation the best trained and adapted cell is: "
        f"{chosen.named()}.{frozen if still else ''} It classifies "
        f"{', and '.join(reached)} correctly. The choice never uses a test part; a bootstrap "
        "of the validation images "
        f"picks this pair of resolutions in {results.stability():.0%} of draws."
    )


def trust(results: Results) -> str:
    """What to keep in mind: number of seeds, failed runs, leakage."""
    settings, table = results.sweep["settings"], results.table
    seeds, asked = len(results.seeds(results.choose())), len(settings["seeds"])
    parts = [
        f"{seeds}{f' of {asked}' if seeds < asked else ''} training seed{'s' if asked > 1 else ''}"
    ]
    if seeds == 1:
        parts[0] += ", so the spread between trainings is not known"
    else:
        parts[0] += ": accuracies are means over them, and intervals are over trainings and images"
    done = (table["status"] == "done").groupby([table[name] for name in PAIR], dropna=False).mean()
    missing, some = (done == 0).sum(), done.between(0, 1, inclusive="neither").sum()
    if some:
        parts.append(f"{some} pairs of resolutions lack the results of some seeds")
    if missing:
        parts.append(f"{missing} of {len(done)} pairs of resolutions (with probes) lack results")
    if left_out := results.sweep.get("unreadable"):
        parts.append(f"{len(left_out)} unreadable image{'s' if len(left_out) > 1 else ''} left out")
    if settings.get("head_start") == "file":
        parts.append("the network was trained elsewhere; it may have seen test images there")
    if settings["dataset"] == "synthetic":
        parts.append(
            "the images are synthetic, with constants chosen among about nine variants so "
            "that a higher resolution has "
            "something to show (docs/design/synthetic_dogs.md): they prove nothing about "
            "photographs"
        )
    leakage = (results.sweep.get("leakage") or {}).get("verdict", "The leakage check was not run.")
    return " ".join(
        filter(None, [f"{'; '.join(parts)}.", download.about(settings["dataset"]), leakage])
    )


def adaptations(results: Results) -> str:
    """Each adaptation against `none` and its control, over pairs with a larger test size."""
    ok = results.cells.query("seeds > 0 and test_size > train_size and view == 'center'")
    lines = []
    for adaptation in [name for name in (*CANDIDATES[1:], "full") if name in set(ok["adaptation"])]:
        cells = keys(ok[ok["adaptation"] == adaptation])
        for reference in ("none", CONTROL + adaptation)[: 1 + (adaptation in ADAPTED)]:
            gains = [
                results.difference(cell, cell._replace(adaptation=reference)) for cell in cells
            ]
            known = [gain for gain in gains if gain is not None]
            if known:
                told = Counter(gain.told("gain", "loss", "neither") for gain in known)
                mean = sum(gain.estimate for gain in known) / len(known) * 100
                lines.append(
                    f"`{adaptation}` against `{reference}`: {mean:+.1f} points on average "
                    f"over {len(known)} pairs "
                    f"with a higher test resolution; a gain in {told['gain']}, a loss in "
                    f"{told['loss']}, "
                    f"no difference shown in {told['neither']}."
                )
    return (
        "\n".join(f"- {line}" for line in lines)
        or "- No pair with test resolution > train resolution was adapted."
    )


def optimism(results: Results) -> str:
    """The highest test accuracy of the grid, and why it is not the answer."""
    chosen = results.choose()
    ok = results.cells[results.cells["adaptation"].isin(CANDIDATES)]
    ok = ok[ok["seeds"] == ok["seeds"].max()]
    best = keys(ok.sort_values("top1", ascending=False))[0]
    highest = results.accuracy(best).estimate
    gap = highest - results.accuracy(chosen).estimate
    if gap <= 0:
        return "No other cell that was trained here has a higher test accuracy than the chosen one."
    return (
        f"The highest test accuracy of the grid is {highest:.1%} ({best.named()}), "
        f"{gap * 100:.1f} points above the chosen cell. It is *optimistic*: the best of "
        f"{len(ok)} results "
        "is partly luck."
    )


def advice(results: Results, front: pd.DataFrame) -> str:
    """What to use without a limit, and the cheapest cell that is not told apart from it."""
    if front.empty:
        return "No pair has finished, so there is none to recommend."
    cells, place = keys(front), int(front["val_top1"].argmax())
    costs = [_with_cost(cell, row) for cell, (_, row) in zip(cells, front.iterrows(), strict=True)]
    lines = [f"- Without a limit, validation prefers {costs[place]}."]
    gains = [results.difference(cells[place], cell) for cell in cells[:place]]
    same = [
        (cost, gain) for cost, gain in zip(costs, gains, strict=False) if gain and gain.low <= 0
    ]
    if same:
        cost, gain = same[0]
        lines.append(
            f"- The cheapest cell without a detectable difference on test is {cost}. "
            f"The more expensive one adds {gain.points()}."
        )
    elif place and None not in gains:
        lines.append("- Every cheaper row of the table is worse on test.")
    elif not place:
        lines.append("- No cheaper cell was run.")
    return "\n".join(lines)


def _with_cost(cell: Cell, row: "pd.Series[float]") -> str:
    speed = f"{row['images_per_second']:.0f} images/s and " if row["images_per_second"] > 0 else ""
    return f"{cell.named()}, with {speed}{row['flops'] / 1e9:.3g} GFLOP per image"


def verdicts(comparison: pd.DataFrame) -> str:
    """One line per train resolution: predicted and measured best size, and contradictions.

    Args:
        comparison: of `cost.compare_with_measured`.
    """
    return "\n".join(f"- {_geometry(rows)}" for _, rows in comparison.groupby("train_size"))


def _geometry(rows: pd.DataFrame) -> str:
    near, best = rows[rows["nearest"]].iloc[0], rows[rows["best"]].iloc[0]
    text = (
        f"Trained at {near['train_size']} px: objects look equally large at "
        f"{near['predicted']:.0f} px "
        f"({near['predicted_low']:.0f} to {near['predicted_high']:.0f} px, both definitions); "
    )
    ratio = f"{near['mean_of_ratios']:.2f}"
    if len(rows) == 1:
        return f"{text}only {near['test_size']} px was run (ratio {ratio}), which tests nothing."
    text += f"the nearest resolution of the sweep is {near['test_size']} px (ratio {ratio}). "
    if best["nearest"]:
        text += "It is also the best on validation."
    else:
        side = "higher" if best["test_size"] > near["test_size"] else "lower"
        gain = Difference(*best[["gain", "gain_low", "gain_high"]])
        text += (
            f"The best on validation is {best['test_size']} px (ratio "
            f"{best['mean_of_ratios']:.2f}), "
            f"{side}; on test the difference is {gain.points()}."
        )
    sizes = ", ".join(f"{size} px" for size in rows["test_size"][rows["contradicts"]])
    against = (
        f"**Against the theory: {sizes}.**" if sizes else "No resolution contradicts the theory."
    )
    return f"{text} {against}"
