"""What the report says about a sweep's numbers, which choose every sentence.

Functions return Markdown. Accuracies are means over the training seeds. Differences are in points
of top-1 accuracy on the same images, with 95 % intervals over trainings and images.
"""

from collections.abc import Mapping

import pandas as pd

from fixres_poc.analysis.answers import Decision
from fixres_poc.analysis.cells import PAIR
from fixres_poc.analysis.comparisons import Comparison
from fixres_poc.analysis.questions import Answer, did_nothing
from fixres_poc.analysis.statistics import Difference
from fixres_poc.data.sources import download

ASKED = {
    1: "Does training pay here, against the linear probe and zero-shot?",
    2: "FixRes's claim: trained smaller and adapted, against train = test, plain and adapted",
    3: "What does adaptation add at the matched test resolution, over none and over its control?",
    4: "Would a cheaper remedy do? Each arm at its own crop_pct",
    5: "What should I use at my budget?",
}


def question_table(decisions: Mapping[str, Decision]) -> pd.DataFrame:
    """The five questions: the answer on the first part, and the verdict on each."""
    first = next(iter(decisions.values()))
    reasons = {each.number: each.why_not for each in first.answers}
    reasons[5] = first.recommendation.why_not
    rows = []
    for number, question in ASKED.items():
        not_asked = f"Not asked: {reasons[number]}."
        row = {"question": f"{number}. {question}"}
        row["answer"] = first.sentences.get(number, not_asked)
        row |= {f"on {part}": each.verdicts[number] for part, each in decisions.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_table(decisions: Mapping[str, Decision]) -> pd.DataFrame:
    """Every row of questions 1 to 4: cell, reference, points and verdict on each part, FLOPs.

    Points are at 95 % in the primary row, marked *, else at the level of the planned rows, marked
    †.
    """
    rows = []
    answers = [each.answers for each in decisions.values()]
    for by_part in zip(*answers, strict=True):
        for compared in zip(*map(_comparisons, by_part), strict=True):
            for each in zip(*(one.rows for one in compared), strict=True):
                first = each[0]
                row = {"question": f"{by_part[0].number}{' *' if compared[0].primary else ''}"}
                row |= {"cell": first.cell.named(), "against": first.reference.named()}
                for part, own in zip(decisions, each, strict=True):
                    row |= {f"points on {part}": own.points(), f"verdict on {part}": own.verdict}
                ratio = first.cost_ratio[0]
                row["training FLOPs"] = f"× {ratio:.2f}" if ratio > 0 else ""
                rows.append(row)
    return pd.DataFrame(rows)


def _comparisons(answer: Answer) -> tuple[Comparison, ...]:
    return (*answer.comparisons, *answer.equal_flops)


def said(decision: Decision) -> str:
    """The decision's sentences, as a list; with one seed they are about this training."""
    lines = [f"- {text}" for text in decision.sentences.values()]
    if still := did_nothing(decision.results):
        sizes = " and ".join(map(str, still))
        lines.append(
            f"- Stage 1 did nothing at {sizes} px: its predictions are the linear probe's on 99 % "
            "of the validation images."
        )
    return "\n".join(lines)


def beside(decision: Decision) -> str:
    """What stands beside the recommended arm: validation's best, common practice, stability."""
    found = decision.recommendation
    if found.use is None or found.best is None:
        return f"No arm is recommended: {found.why_not}."
    lines = [f"Validation's best: {found.best.named()}."]
    if found.price is not None and found.best != found.use:
        lines.append(f"On {decision.results.part} it has {found.price.points()} more.")
    if found.common is not None:
        lines.append(
            "Over common practice (the largest train resolution at itself, unadapted, in the usual "
            f"crop) the recommended arm gains {found.common.points()}."
        )
    lines.append(f"A bootstrap of validation picks it in {found.share:.0%} of draws.")
    return "\n".join(f"- {line}" for line in lines)


def trust(decision: Decision) -> str:
    """What to keep in mind: number of seeds, stability of the choice, failed runs, leakage."""
    results = decision.results
    settings, table = results.sweep["settings"], results.table
    asked = len(settings["seeds"])
    seeds = int(results.cells["seeds"].max())
    parts = [
        f"{seeds}{f' of {asked}' if seeds < asked else ''} training seed{'s' if asked > 1 else ''}"
    ]
    if seeds == 1:
        parts[0] += ", so the spread between trainings is not known"
    else:
        parts[0] += ": accuracies are means over them, and intervals are over trainings and images"
    if decision.recommendation.use:
        share = decision.recommendation.share
        parts.append(f"a bootstrap of validation picks the recommended arm in {share:.0%} of draws")
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
            "the images are synthetic (docs/design/synthetic_dogs.md): they prove nothing about "
            "photographs"
        )
    leakage = (results.sweep.get("leakage") or {}).get("verdict", "The leakage check was not run.")
    return " ".join(
        filter(None, [f"{'; '.join(parts)}.", download.about(settings["dataset"]), leakage])
    )


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
