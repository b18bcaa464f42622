"""The decision of a report: title and sentences by the five questions, and answers.json.

docs/design/evaluation_protocol.md has the precedences. The report's words all read this decision.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Comparison, Row
from fixres_poc.analysis.questions import (
    UNCHECKED,
    Answer,
    Plan,
    answers,
    fewest_steps,
    primary_adaptation,
)
from fixres_poc.analysis.recommendation import Recommendation, recommend
from fixres_poc.analysis.results import Results, leading_part, load_results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.files import report_folder, write_atomically
from fixres_poc.config.settings import ENOUGH_STEPS

SCHEMA, ANSWERS = 1, "answers.json"


@dataclass(frozen=True)
class Decision:
    """The five answers on one test part, in words.

    Attributes:
        verdicts: of questions 1 to 5; "not asked" where it is not.
        sentences: of those that are asked.
    """

    plan: Plan
    answers: Sequence[Answer]
    recommendation: Recommendation
    verdicts: dict[int, str]
    sentences: dict[int, str]
    title: str

    @property
    def results(self) -> Results:
        """About the part that the answers are about."""
        return self.plan.results

    def as_json(self) -> dict[str, Any]:
        """The content of answers.json (schema 1); fractions, None where not testable."""
        asked = [
            {
                "id": each.number,
                "verdict": self.verdicts[each.number],
                "sentence": self.sentences.get(each.number, ""),
                "asked": each.why_not or True,
                "rows": [
                    row.as_json(one.primary, self.results.part, len(group))
                    for group in (each.comparisons, each.equal_flops)
                    for one in group
                    for row in one.rows
                ],
            }
            for each in self.answers
        ]
        found = self.recommendation
        last = {
            "id": 5,
            "verdict": self.verdicts[5],
            "sentence": self.sentences.get(5, ""),
            "asked": found.why_not or True,
            "rows": [],
            "use": found.use and found.use.as_json(),
            "best_on_validation": found.best and found.best.as_json(),
            "best_minus_use": _difference(found.price),
            "use_minus_common_practice": _difference(found.common),
            "share_of_draws": found.share,
        }
        return {
            "schema": SCHEMA,
            "sweep": self.results.sweep["settings"]["name"],
            "leading_part": self.results.part,
            "title": self.title,
            "sentences": list(self.sentences.values()),
            "answers": [*asked, last],
        }


def decide(results: Results) -> Decision:
    """The answers on `results.part`; see `leading_part`."""
    plan = Plan(results, primary_adaptation(results))
    asked = answers(plan)
    training, claim, adaptation, remedy = asked
    best = recommend(results, plan.adapted)
    words = _Words(results, asked)
    verdicts = {
        1: (training.why_not and "not asked") or words.training_verdict(),
        2: (claim.why_not and "not asked") or claim.verdict,
        3: (adaptation.why_not and "not asked") or adaptation.verdict,
        4: (remedy.why_not and "not asked") or remedy.verdict,
        5: "use" if best.use else "not asked",
    }
    said = {
        1: words.training(verdicts[1], best),
        2: words.claim(claim),
        3: words.adaptation(),
        4: words.claim(remedy),
        5: words.recommendation(best),
    }
    said = {
        number: words.qualified(number, text, best)
        for number, text in said.items()
        if verdicts[number] != "not asked"
    }
    return Decision(plan, asked, best, verdicts, said, words.title(verdicts))


def write(report: str) -> Decision:
    """Decide a report's questions on its leading part, and write answers.json beside its tables.

    Args:
        report: a sweep's name, or a report's folder.

    Raises:
        InputError: it has no tables, or damaged ones.
    """
    results = load_results(report)
    decision = decide(results.on(leading_part(results)))
    content = json.dumps(decision.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(report_folder(report) / ANSWERS, content)
    return decision


TOLD = {
    "better": "is better than",
    "as good": "is as good as",
    "worse": "is worse than",
    "can't tell": "cannot be told from",
}


class _Words:
    """Sentences of a sweep's answers: one number with its interval in each, at most."""

    def __init__(self, results: Results, asked: Sequence[Answer]) -> None:
        self.results, self.asked = results, asked
        self.steps = fewest_steps(results)
        self.delta = f"{results.sweep['settings'].get('delta', 0.01) * 100:g} point"
        self.delta += "" if self.delta == "1 point" else "s"

    def qualified(self, number: int, sentence: str, best: Recommendation) -> str:
        """The sentence; where it rests on one training it says that it is about this one."""
        seeds = [len(self.results.seeds(best.use))] if best.use and best.use.train_size else [2]
        if number < 5:
            primary = self.asked[number - 1].primary
            seeds = [row.difference.seeds for row in (primary.rows if primary else ())]
        return f"{sentence.removesuffix('.')} (of this training)." if 1 in seeds else sentence

    def training_verdict(self) -> str:
        """Of question 1, in the protocol's order of precedence."""
        rows = self.asked[0].comparisons
        if not rows or all(each.verdict == "not run" for each in rows):
            return "not run"
        gains = any(each.verdict == "better" for each in rows)
        if not gains and self.steps < ENOUGH_STEPS:
            return "trained too briefly"
        if all(each.below_delta for each in rows):
            return "gains less than delta"
        return "pays" if gains else "not decided"

    def training(self, verdict: str, best: Recommendation) -> str:
        """Question 1 in a sentence or two."""
        rows = [each for each in self.asked[0].comparisons if each.verdict != "not run"]
        if verdict == "trained too briefly":
            little = f"no gain before {ENOUGH_STEPS} steps says little"
            return f"Not decided: trained too briefly ({self.steps} steps, and {little})."
        if verdict == "gains less than delta":
            untrained = best.arms[best.arms["train_size"].isna()].sort_values("val_top1")
            arms = [each for each in [best.use] if each and each.train_size is None]
            arms += list(untrained["cell"][::-1])
            use = f"; use {_arm(arms[0])}" if arms else ""
            return f"Fine-tuning gains less than {self.delta} here{use}."
        if verdict == "not decided":
            missed = max(each.detectable for each in rows) * 100
            return (
                f"Not decided whether fine-tuning pays: a gain below {missed:.1f} points "
                "would be missed."
            )
        if verdict != "pays":
            return "Whether fine-tuning pays is open: its rows have not finished."
        by_size: dict[int, list[Comparison]] = {}
        for each in rows:
            by_size.setdefault(each.cell.test_size, []).append(each)
        pays, others = list[str](), dict[str, list[str]]()
        for size, own in sorted(by_size.items()):
            if any(each.verdict == "better" for each in own):
                pays.append(str(size))
            else:
                others.setdefault(self._neither(own), []).append(str(size))
        rest = "".join(f"; at {_and(sizes)} px it {told}" for told, sizes in others.items())
        return f"Fine-tuning pays at R = {_and(pays)} px{rest}."

    def _neither(self, rows: Sequence[Comparison]) -> str:
        if all(each.below_delta for each in rows):
            worse = all(each.verdict == "worse" for each in rows)
            return "loses" if worse else f"gains less than {self.delta}"
        return "is not decided"

    def claim(self, answer: Answer) -> str:
        """Question 2 or 4 in a sentence."""
        primary = answer.primary
        if primary is None:
            return ""
        cell, verdict = primary.cell, primary.verdict
        row = min(primary.rows, key=lambda row: _decides(row, verdict))
        start = "With chosen crops, " * (answer.number == 4)
        same = row.reference.train_size == cell.train_size
        what = f"training at {cell.train_size} and adapting at {cell.test_size} px"
        at = start + (f"adapting {_sizes(cell)}" if same else what)
        at = at[0].upper() + at[1:]
        if verdict == "not run":
            return f"{at} is not decided: these runs have not finished."
        points = f"{_points(row)} against `{row.reference.adaptation}`"
        other = "none" if same else "training there"
        text = f"{at} {TOLD[verdict]} {other}: {points}{self._among(cell)}"
        if same or not answer.not_worse or math.isnan(answer.cost.flops_ratio):
            return f"{text}."
        cost = answer.cost
        return f"{text}. It is {cost.verdict}: {cost.flops_ratio:.2f} of the training FLOPs."

    def _among(self, cell: Cell) -> str:
        """What qualifies a row at a test resolution where training was not shown to pay."""
        if (training := self.asked[0]).why_not:
            return ""
        pays = {each.cell.test_size for each in training.comparisons if each.verdict == "better"}
        return "" if cell.test_size in pays else ", among fine-tuned networks"

    def adaptation(self) -> str:
        """Question 3 in a sentence."""
        primary = self.asked[2].primary
        if primary is None:
            return ""
        cell = primary.cell
        what = f"Adapting {_sizes(cell)}"
        if primary.verdict == "not run":
            return f"What {what.lower()} adds is open: these runs have not finished."
        plain, control = primary.rows
        second = "" if plain.verdict == control.verdict else f"{TOLD[control.verdict]} "
        told = f"{TOLD[plain.verdict]} none and {second}its control"
        told += ", because of the resolution" if primary.verdict == "better" else ""
        return f"{what} {told}: {_points(plain)} over none{self._among(cell)}."

    def recommendation(self, best: Recommendation) -> str:
        """Question 5 in a sentence, or two."""
        if best.use is None:
            return ""
        top1 = self.results.accuracy(best.use).estimate
        text = f"Use {_arm(best.use)}: {top1:.1%} on {self.results.part}"
        if best.price is not None and best.best not in (None, best.use):
            lost = best.price.points(brief=True)
            return f"{text}. Validation's best, {_arm(best.best)}, adds {lost} points."
        return f"{text}; it is also validation's best."

    def title(self, verdicts: dict[int, str]) -> str:
        """The report's title: does FixRes pay? From questions 1, 2 and 4."""
        dataset = Path(self.results.sweep["settings"]["dataset"])
        return f"Does FixRes pay on {dataset.name}? {self._pays(verdicts)}"

    def _pays(self, verdicts: dict[int, str]) -> str:
        if verdicts[1] == "trained too briefly":
            return "Not decided: trained too briefly"
        if verdicts[1] == "gains less than delta":
            return f"No: fine-tuning gains less than {self.delta}"
        claim, remedy = self.asked[1], self.asked[3]
        if claim.why_not or claim.primary is None or verdicts[2] == "not run":
            return "Not asked" if claim.why_not else "Not decided: its runs have not finished"
        usual, own = self._holds(claim), self._holds(remedy)
        cell, tried = claim.primary.cell, self._best_crop(remedy)
        at, worse = f"at {cell.test_size} px", remedy.primary_verdict == "worse"
        if usual:
            told = {
                None: f"Yes, {at}; other crops were not tried",
                True: f"Yes, {at}",
                False: f"Against the usual crop yes; against crop_pct {tried} not decided",
            }[own]
            if worse:
                told = f"Only against the usual crop; crop_pct {tried} is better"
            return told + self._among(cell)
        if claim.not_worse and claim.cost.verdict == UNCHECKED:
            return f"Not decided: {UNCHECKED}"
        if verdicts[2] == "can't tell" and worse:
            return f"Not decided against the usual crop; crop_pct {tried} is better"
        if own or verdicts[2] == "can't tell":
            return "Not decided"
        return self._refused(claim, at)

    @staticmethod
    def _refused(claim: Answer, at: str) -> str:
        """Why the claim does not hold against the usual crop."""
        if claim.primary_verdict == "worse":
            return f"No, {at} the smaller train resolution is worse"
        cost = claim.cost.verdict
        return (
            f"Not decided: {cost}" if cost == UNCHECKED else f"No, {at} it is not worse, but {cost}"
        )

    @staticmethod
    def _holds(answer: Answer) -> bool | None:
        """Whether the claim holds and is cheaper; None where it was not asked."""
        return None if answer.why_not else answer.not_worse and answer.cost.verdict == "cheaper"

    @staticmethod
    def _best_crop(remedy: Answer) -> str:
        rows = remedy.primary.rows if remedy.primary else ()
        return " or ".join(f"{each:g}" for each in sorted({row.reference.crop_pct for row in rows}))


def _decides(row: Row, verdict: str) -> float:
    """What is least for the row that decides a comparison."""
    low, high, delta = row.bounds
    return high if verdict == "worse" else low if verdict == "better" else low + delta


def _sizes(cell: Cell) -> str:
    return f"{cell.train_size} \N{RIGHTWARDS ARROW} {cell.test_size}"


def _difference(found: Difference | None) -> dict[str, float] | None:
    return found and {name: getattr(found, name) for name in ("estimate", "low", "high")}


def _arm(cell: Cell) -> str:
    known = {"probe": "the linear probe", "zero_shot": "zero-shot"}
    if cell.train_size is None:
        return f"{known[cell.adaptation]} at {cell.test_size} px"
    return f"the network {cell.named()}"


def _points(row: Row) -> str:
    low, high, _ = row.bounds
    return Difference(row.difference.estimate, low, high).points(brief=True)


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
