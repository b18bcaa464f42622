"""The decision of a report: verdicts of the five questions, by numbers alone.

docs/design/evaluation_protocol.md has the precedences. `report.sentences` puts it into words.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fixres_poc.analysis.cells import cell_of
from fixres_poc.analysis.comparisons import LEVEL, Row
from fixres_poc.analysis.questions import Answer, Plan, answers, did_nothing
from fixres_poc.analysis.recommendation import Recommendation, recommend
from fixres_poc.analysis.results import Results, leading_part
from fixres_poc.analysis.statistics import Difference

OWN_SPREAD = "by its own spread between trainings"
ARMS = [
    *("train_size", "test_size", "adaptation", "view", "crop_pct", "images_per_second", "flops"),
    *("training_flops", "val_top1", "gap", "allowed", "share", "pick", "top1", "top1_low"),
    "top1_high",
]


@dataclass(frozen=True)
class Decision:
    """The five answers of a sweep.

    Attributes:
        results: on the leading test part.
        answers: to questions 1 to 4, on that part.
        elsewhere: the same, by the name of each other test part.
        recommendation: the answer to question 5.
    """

    results: Results
    answers: Sequence[Answer]
    elsewhere: Mapping[str, Sequence[Answer]]
    recommendation: Recommendation

    def as_json(self) -> dict[str, Any]:
        """The content of answers.json (schema 1) without its sentences; None: not known."""
        parts = {self.results.part: self.answers, **self.elsewhere}
        entries = [
            {
                "id": answer.number,
                "verdict": answer.verdict,
                "elsewhere": {part: same[i].verdict for part, same in self.elsewhere.items()},
                "asked": answer.why_not or True,
                "rows": [row for part, same in parts.items() for row in same[i].rows_as_json(part)],
            }
            for i, answer in enumerate(self.answers)
        ]
        return {
            "schema": 1,
            "sweep": self.results.settings["name"],
            "leading_part": self.results.part,
            "answers": [*entries, self._recommended()],
            "did_nothing": did_nothing(self.results),
        }

    def _recommended(self) -> dict[str, Any]:
        """The answer to question 5, with all arms, the cheapest first."""
        advice = self.recommendation
        arms = advice.arms.reindex(columns=ARMS)
        accuracies = {
            part: list(self.results.on(part).accuracy(advice.use))
            for part in (self.results.part, *self.elsewhere)
            if advice.use
        }
        return {
            "id": 5,
            "verdict": "use" if advice.use else "not asked",
            "elsewhere": {},
            "asked": advice.why_not or True,
            "rows": [],
            "use": advice.use and advice.use._asdict(),
            "accuracy": accuracies,
            "best_on_validation": advice.best and advice.best._asdict(),
            "best_minus_use": _interval(advice.price),
            "use_minus_common_practice": _interval(advice.common),
            "share_of_draws": advice.share,
            "arms": json.loads(arms.to_json(orient="records", double_precision=15) or "[]"),
        }


def decide(results: Results) -> Decision:
    """The answers on the leading test part, and on the others."""
    by_part = {part: answers(Plan(results.on(part))) for part in results.parts}
    leading = results.on(leading_part(results))
    recommendation = recommend(leading, Plan(leading).adapted)
    return Decision(leading, by_part.pop(leading.part), by_part, recommendation)


def _interval(gain: Difference | None) -> dict[str, float] | None:
    return gain and {"estimate": gain.estimate, "low": gain.low, "high": gain.high}


def variants(results: Results) -> Mapping[str, Results]:
    """The same results without images that were looked at before, and by near-duplicate groups.

    Returns:
        Results by the name of the variant; empty where the part has no such images.
    """
    kinds = {}
    images = results.images[results.images["split"] == results.part]
    if images.get("looked_at", pd.Series(dtype=bool)).any():
        seen = images.loc[images["looked_at"], "image"]
        unseen = results.predictions[~results.predictions["image"].isin(seen)]
        name = f"the {len(images) - len(seen):,} not in looked_at"
        kinds[name] = replace(results, predictions=unseen)
    groups = ((results.sweep["leakage"] or {}).get("near") or {}).get("groups") or ()
    group_of = {image: group[0] for group in groups for image in group}
    grouped = images["image"].map(group_of).dropna()
    if grouped.duplicated().any():
        name = f"{len(images) - len(grouped) + grouped.nunique():,} groups of near duplicates"
        kinds[name] = replace(results, groups=group_of)
    return kinds


def primary_rows(results: Results, content: Mapping[str, Any]) -> pd.DataFrame:
    """The primary rows as the answers have them, by their own spread, and on `variants`.

    Args:
        content: of answers.json, which has the rows on all images.

    Returns:
        A row per comparison with difference, interval and verdict in words: as answered, by its own
        spread where there are several trainings, and on each variant; empty if as answered alone.
    """
    kinds, several = variants(results), results.cells["seeds"].max() > 1
    if not kinds and not several:
        return pd.DataFrame()
    table: dict[str, dict[str, str]] = {}
    for answer in content["answers"]:
        for row in answer["rows"]:
            if row["primary"] and row["part"] == results.part and row["estimate"] is not None:
                cell, reference = cell_of(row), cell_of(row["reference"])
                gain = Difference(row["estimate"], row["low"], row["high"])
                shown = {"as answered": f"{gain.points(brief=True)}, {row['verdict']}"}
                own = results.difference(cell, reference)
                if several and own is not None:
                    alone = Row(cell, reference, own, LEVEL, row["delta"])
                    shown[OWN_SPREAD] = f"{own.points(brief=True)}, {alone.verdict}"
                table[f"{answer['id']}: {cell.against(reference)}"] = shown
    for name, variant in kinds.items():
        for answer in answers(Plan(variant)):
            for row in answer.primary.rows if answer.primary else ():
                question = f"{answer.number}: {row.cell.against(row.reference)}"
                table[question][name] = f"{row.difference.points(brief=True)}, {row.verdict}"
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("question").reset_index()
