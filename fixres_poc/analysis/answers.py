"""The decision of a report: verdicts of the five questions, by numbers alone.

docs/design/evaluation_protocol.md has the precedences. What is said of it is `report.sentences`'s.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fixres_poc.analysis.cells import cell_of
from fixres_poc.analysis.questions import Answer, Plan, answers, did_nothing
from fixres_poc.analysis.recommendation import Recommendation, recommend
from fixres_poc.analysis.results import Results, leading_part
from fixres_poc.analysis.statistics import Difference

ARMS = [
    *("train_size", "test_size", "adaptation", "view", "crop_pct", "images_per_second", "flops"),
    *("training_flops", "val_top1", "gap", "allowed", "share", "pick", "top1", "top1_low"),
    "top1_high",
]


@dataclass(frozen=True)
class Decision:
    """The five answers of a sweep.

    Attributes:
        results: about the leading test part.
        answers: to questions 1 to 4, on that part.
        elsewhere: the same on each other test part.
        recommendation: the answer to question 5.
    """

    results: Results
    answers: Sequence[Answer]
    elsewhere: Mapping[str, Sequence[Answer]]
    recommendation: Recommendation

    def as_json(self) -> dict[str, Any]:
        """The content of answers.json (schema 1) but for words; None where not testable."""
        parts = {self.results.part: self.answers} | dict(self.elsewhere)
        asked = [
            {
                "id": each.number,
                "verdict": each.verdict,
                "elsewhere": {part: own[place].verdict for part, own in self.elsewhere.items()},
                "asked": each.why_not or True,
                "rows": [
                    row for part, own in parts.items() for row in own[place].rows_as_json(part)
                ],
            }
            for place, each in enumerate(self.answers)
        ]
        return {
            "schema": 1,
            "sweep": self.results.settings["name"],
            "leading_part": self.results.part,
            "answers": [*asked, self._use()],
            "did_nothing": did_nothing(self.results),
        }

    def _use(self) -> dict[str, Any]:
        """The answer to question 5, with all arms, the cheapest first."""
        found = self.recommendation
        arms = found.arms.reindex(columns=ARMS)
        accuracies = {
            part: list(self.results.on(part).accuracy(found.use))
            for part in (self.results.part, *self.elsewhere)
            if found.use
        }
        return {
            "id": 5,
            "verdict": "use" if found.use else "not asked",
            "elsewhere": {},
            "asked": found.why_not or True,
            "rows": [],
            "use": found.use and found.use._asdict(),
            "accuracy": accuracies,
            "best_on_validation": found.best and found.best._asdict(),
            "best_minus_use": _difference(found.price),
            "use_minus_common_practice": _difference(found.common),
            "share_of_draws": found.share,
            "arms": json.loads(arms.to_json(orient="records", double_precision=15) or "[]"),
        }


def decide(results: Results) -> Decision:
    """The answers on the leading test part, and on the others."""
    found = {part: answers(Plan(results.on(part))) for part in results.parts}
    own = results.on(leading_part(results))
    return Decision(own, found.pop(own.part), found, recommend(own, Plan(own).adapted))


def _difference(found: Difference | None) -> dict[str, float] | None:
    return found and {name: getattr(found, name) for name in ("estimate", "low", "high")}


def variants(results: Results) -> Mapping[str, Results]:
    """The same results without images that were looked at before, and by near-duplicate groups.

    Returns:
        By name what applies to these images: with neither nothing.
    """
    found = {}
    images = results.images[results.images["split"] == results.part]
    if images.get("looked_at", pd.Series(dtype=bool)).any():
        seen = images.loc[images["looked_at"], "image"]
        rest = results.predictions[~results.predictions["image"].isin(seen)]
        name = f"the {len(images) - len(seen):,} not looked at before"
        found[name] = replace(results, predictions=rest)
    groups = ((results.sweep["leakage"] or {}).get("near") or {}).get("groups") or ()
    members = {image: group[0] for group in groups for image in group}
    alike = images["image"].map(members).dropna()
    if alike.duplicated().any():
        name = f"{len(images) - len(alike) + alike.nunique():,} groups of near duplicates"
        found[name] = replace(results, groups=members)
    return found


def primary_rows(results: Results, content: Mapping[str, Any]) -> pd.DataFrame:
    """The primary rows on all images of the part and on its `variants`.

    Args:
        content: of answers.json, which has the rows on all images.

    Returns:
        By comparison a column for each set of images, with difference, interval and verdict in
        words; empty without variants.
    """
    kinds = {name: answers(Plan(own)) for name, own in variants(results).items()}
    if not kinds:
        return pd.DataFrame()
    rows: dict[str, dict[str, str]] = {}
    for answer in content["answers"]:
        for row in answer["rows"]:
            if row["primary"] and row["part"] == results.part and row["estimate"] is not None:
                place = f"{answer['id']}: {cell_of(row).against(cell_of(row['reference']))}"
                found = Difference(row["estimate"], row["low"], row["high"])
                rows[place] = {"all": f"{found.points(brief=True)}, {row['verdict']}"}
    for name, kind in kinds.items():
        for one in kind:
            for own in one.primary.rows if one.primary else ():
                told = f"{own.difference.points(brief=True)}, {own.verdict}"
                rows[f"{one.number}: {own.cell.against(own.reference)}"][name] = told
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("question").reset_index()
