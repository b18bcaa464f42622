"""The decision of a report: verdicts of the five questions, by numbers alone.

docs/design/evaluation_protocol.md has the precedences. What is said of it is `report.sentences`'s.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fixres_poc.analysis.questions import (
    Answer,
    Plan,
    answers,
    did_nothing,
    fewest_steps,
    primary_adaptation,
)
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
        answers: to questions 1 to 4, on the leading test part.
        elsewhere: the same on each other test part.
        recommendation: the answer to question 5.
    """

    plan: Plan
    answers: Sequence[Answer]
    elsewhere: Mapping[str, Sequence[Answer]]
    recommendation: Recommendation

    @property
    def results(self) -> Results:
        """About the leading part."""
        return self.plan.results

    @cached_property
    def steps(self) -> float:
        """Fewest optimizer steps of a stage 1."""
        return fewest_steps(self.results)

    @cached_property
    def verdicts(self) -> dict[int, str]:
        """Of questions 1 to 5 on the leading part; "not asked" where it is not."""
        found = {each.number: each.verdict(self.steps) for each in self.answers}
        return found | {5: "use" if self.recommendation.use else "not asked"}

    def as_json(self) -> dict[str, Any]:
        """The content of answers.json (schema 1) but for words; None where not testable."""
        parts = {self.results.part: self.answers} | dict(self.elsewhere)
        asked = [
            {
                "id": number,
                "verdict": self.verdicts[number],
                "elsewhere": {
                    part: own[number - 1].verdict(self.steps)
                    for part, own in self.elsewhere.items()
                },
                "asked": self.answers[number - 1].why_not or True,
                "rows": [
                    row for part, own in parts.items() for row in own[number - 1].rows_as_json(part)
                ],
            }
            for number in range(1, 5)
        ]
        return {
            "schema": 1,
            "sweep": self.results.sweep["settings"]["name"],
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
            "verdict": self.verdicts[5],
            "elsewhere": {},
            "asked": found.why_not or True,
            "rows": [],
            "use": found.use and found.use.as_json(),
            "accuracy": accuracies,
            "best_on_validation": found.best and found.best.as_json(),
            "best_minus_use": _difference(found.price),
            "use_minus_common_practice": _difference(found.common),
            "share_of_draws": found.share,
            "arms": json.loads(arms.to_json(orient="records", double_precision=15) or "[]"),
        }


def decide(results: Results) -> Decision:
    """The answers on the leading test part, and on the others."""
    leading = leading_part(results)
    plan = Plan(results.on(leading), primary_adaptation(results))
    others = [part for part in results.parts if part != leading]
    elsewhere = {part: answers(Plan(results.on(part), plan.adapted)) for part in others}
    return Decision(plan, answers(plan), elsewhere, recommend(plan.results, plan.adapted))


def _difference(found: Difference | None) -> dict[str, float] | None:
    return found and {name: getattr(found, name) for name in ("estimate", "low", "high")}
