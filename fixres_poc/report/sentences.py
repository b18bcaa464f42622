"""Title, sentences and advice of a report, written into answers.json beside the decision.

The report reads everything that it says of its answers from that file. A sentence has at most 25
words and one number with its interval; differences are in points of top-1.
"""

import json
import math
from pathlib import Path
from typing import Any

from fixres_poc.analysis.answers import Decision, decide
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Comparison
from fixres_poc.analysis.questions import UNCHECKED, Answer
from fixres_poc.analysis.results import load_results, training_cost
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import read_record, report_folder, write_atomically
from fixres_poc.config.settings import ENOUGH_STEPS
from fixres_poc.report.phrases import (
    arm_name,
    as_sentence,
    flops,
    gap_on_validation,
    left_out,
    loss,
    pair_name,
    points,
    price,
    reference_name,
    unshown_gain,
    where_training_pays,
)

ANSWERS = "answers.json"
TOLD = {
    "better": "is better than",
    "as good": "is as good as",
    "worse": "is worse than",
    "can't tell": "cannot be told from",
}
OPEN = "Open: its runs have not finished.", "Let the sweep finish."
REASONS = {
    "cheaper": "its images are smaller",
    "dearer": "adapting costs more than smaller images save",
    "cheaper only at equal epochs": "but for as many FLOPs, train = test is better",
    UNCHECKED: "that is at equal epochs, unchecked at equal FLOPs",
}
"""Reason for the cost of a pair, by the verdict on it."""


def write(report: str) -> None:
    """Decide a report's questions, and write answers.json beside its tables.

    Args:
        report: a sweep's name, or a report's folder.

    Raises:
        InputError: its tables are missing or damaged.
    """
    content = told(decide(load_results(report)))
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(report_folder(report) / ANSWERS, text)


def read(report: str) -> dict[str, Any]:
    """The answers.json of a report.

    Raises:
        InputError: there is none of this version.
    """
    file = report_folder(report) / ANSWERS
    answers = read_record(file, title=str, sentences=list, answers=list, did_nothing=list)
    if not answers:
        raise InputError(f"{file}: no answers of this version; run `make report` first")
    return answers


def told(decision: Decision) -> dict[str, Any]:
    """The content of answers.json: the decision, in numbers and in words."""
    content = decision.as_json()
    words = _Words(decision)
    for answer in content["answers"]:
        sentence, advice = f"Not asked: {answer['asked']}.", ""
        if answer["asked"] is True:
            sentence, advice = getattr(words, f"answer_{answer['id']}")()
        answer.update(sentence=sentence, means=advice)
    results = decision.results
    dataset = Path(results.settings["dataset"]).name
    images = "synthetic images" if dataset == "synthetic" else dataset
    unfinished = 0 < results.cells["seeds"].max() < len(results.settings["seeds"])
    title = f"Does FixRes pay on {images}? {words.pays()}{', so far' if unfinished else ''}"
    return {"title": title, "sentences": words.headline(), **content}


class _Words:
    """The words for a decision."""

    def __init__(self, decision: Decision) -> None:
        self.results = decision.results
        self.best = decision.recommendation
        self.training, self.claim, self.adaptation, self.remedy = decision.answers
        self.delta = f"{self.results.settings['delta'] * 100:g} points"
        if self.delta == "1 points":
            self.delta = "1 point"

    def headline(self) -> list[str]:
        """Four sentences: what to use, FixRes's claim, where adapting pays, and its cost.

        If training is not needed or was too brief, that is the first sentence, and where adapting
        pays is left out.
        """
        if self.training.verdict in ("gains less than delta", "trained too briefly"):
            return [self._training(), self._use(), self._claim(), self._cost()]
        return [self._use(), self._claim(), self._where(), self._cost()]

    def _training(self) -> str:
        primary = self.training.primary
        if self.training.verdict == "trained too briefly" or primary is None:
            return self.answer_1()[0]
        row, use = primary.deciding, self.best.use
        untrained = use is not None and use.train_size is None
        start = "No training is needed: fine-tuning" if untrained else "Fine-tuning"
        size = f"at {primary.cell.test_size} px: {points(row)}"
        text = f"{start} gains less than {self.delta} here; {size}"
        return as_sentence(text, row.difference.seeds)

    def _use(self) -> str:
        use = self.best.use
        if use is None:
            return f"Use: no arm is recommended: {self.best.why_not}."
        top1 = self.results.accuracy(use).percent(brief=True)
        text = f"Use {arm_name(use)}: {top1} of {self.results.part} images are right"
        if pair := left_out(self.claim, self.best):
            text += f"; validation prefers it to {pair_name(pair)}"
        return as_sentence(text, len(self.results.hits(use)) if use.train_size else None)

    def _claim(self) -> str:
        primary = self.claim.primary
        if self.claim.why_not:
            return f"FixRes's claim is not asked: {self.claim.why_not}."
        if primary is None:
            return "FixRes's claim is open: its runs have not finished."
        row, cell = primary.deciding, primary.cell
        verdict = f"{TOLD[primary.verdict]} {reference_name(row)}"
        text = f"FixRes, {pair_name(cell)}, {verdict}: {points(row)}{self._among(cell)}"
        return as_sentence(text, row.difference.seeds)

    def _where(self) -> str:
        if self.adaptation.why_not:
            return f"Where adapting pays is not asked: {self.adaptation.why_not}."
        primary = self.adaptation.primary
        if primary is None:
            return "Where adapting pays is open: the primary pair's runs have not finished."
        row, pair = primary.rows[0], pair_name(primary.cell)
        others = [
            pair_name(comparison.cell)
            for comparison in self.adaptation.comparisons
            if comparison.verdict == "better" and comparison is not primary
        ]
        elsewhere = others[0] if len(others) == 1 else f"{len(others)} other pairs"
        if primary.verdict == "better":
            also = f", and at {elsewhere}" if others else ""
            text = f"Adapting pays at {pair}, by {points(row)} over unadapted{also}"
        elif row.verdict == "better":  # but not against its control
            unshown = "that the resolution is the reason is not shown"
            text = f"Adapting at {pair} gains {points(row)}; {unshown}"
        elif others:
            text = f"Adapting pays at {elsewhere}, not shown at {pair}: {points(row)}"
        else:
            text = f"Adapting is not shown to pay at {pair}: {points(row)} over unadapted"
        return as_sentence(text + self._among(primary.cell), row.difference.seeds)

    def _cost(self) -> str:
        primary, use = self.claim.primary, self.best.use
        if primary is not None and not math.isnan(ratio := self.claim.flops_ratio):
            size, reason = primary.cell.test_size, REASONS[self.claim.cost]
            times = f"{ratio:.2f} of the training FLOPs of {size} px, unadapted"
            return f"{pair_name(primary.cell)} takes {times}: {reason}."
        if use is None:
            return "Cost: no arm is recommended; the table of all arms has their FLOPs."
        if use.train_size is None or use.adaptation == "none":
            return "Cost: the recommended arm needs no stage 2; question 5 gives its FLOPs."
        adapted, _ = training_cost(self.results, use)
        plain, _ = training_cost(self.results, use._replace(adaptation="none"))
        if not plain:
            cost = f"{flops(adapted)}; its own training is not counted"
            return f"Adapting {pair_name(use)} takes {cost}."
        times = f"{adapted / plain:.2f} of the training FLOPs without"
        return f"Adapting {pair_name(use)} takes {times}: stage 2 trains the last layers alone."

    def _among(self, cell: Cell) -> str:
        """The restriction of a row at a test resolution where training is not shown to pay."""
        rows = self.training.comparisons
        sizes = {row.cell.test_size for row in rows if row.verdict == "better"}
        pays = self.training.why_not or cell.test_size in sizes
        return "" if pays else ", among fine-tuned networks"

    def answer_1(self) -> tuple[str, str]:
        """Does training pay here? The answer, and what it means."""
        verdict, steps = self.training.verdict, self.training.steps
        rows = [row for row in self.training.comparisons if row.verdict != "not run"]
        if verdict == "trained too briefly":
            sentence = f"Not decided: trained too briefly ({steps} steps, below {ENOUGH_STEPS})."
            return sentence, "Train longer before concluding anything."
        if verdict == "gains less than delta":
            advice = "Spare the training: fit a linear classifier."
            return f"Fine-tuning gains less than {self.delta} here.", advice
        if verdict == "not decided":
            missed = max(row.detectable for row in rows) * 100
            sentence = f"Not decided: a gain below {missed:.1f} points would be missed."
            return sentence, "More test images or seeds would decide."
        if verdict == "pays":
            return where_training_pays(rows, self.delta), "Fine-tune for these test resolutions."
        return OPEN

    def answer_2(self) -> tuple[str, str]:
        """FixRes's claim: is a smaller train resolution, adapted, as good, for less training?"""
        primary, cost = self.claim.primary, self.claim.cost
        if primary is None:
            return OPEN
        train, test = primary.cell.train_size, primary.cell.test_size
        advice = f"A difference below {primary.detectable * 100:.1f} points would be missed."
        if primary.verdict == "worse":
            advice = f"Train at {test} px."
        if self.claim.not_worse:
            cheap = f"less training, {loss(primary.deciding)}"
            advice = {
                "cheaper": f"Train at {train} px, adapt at {test} px: {cheap}.",
                UNCHECKED: f"Train at {test} px for as few FLOPs before you save any.",
            }.get(cost, f"Nothing is saved by training at {train} px.")
        return self._compared(self.claim, primary), advice

    def _compared(self, answer: Answer, primary: Comparison) -> str:
        framing = "Each at its own crop_pct, " if answer.number == 4 else ""
        verdict = f"{TOLD[primary.verdict]} {reference_name(primary.deciding)}"
        # the cost differs only from references that were trained at another resolution
        priced = primary.rows[0].reference.train_size != primary.cell.train_size
        cost = f", and {answer.cost}" if answer.not_worse and priced else ""
        among = self._among(primary.cell)
        return f"{framing}{pair_name(primary.cell)}, adapted, {verdict}{among}{cost}."

    def answer_3(self) -> tuple[str, str]:
        """What does adaptation add, over unadapted and over its control?"""
        primary = self.adaptation.primary
        if primary is None:
            return OPEN
        plain, control = (TOLD[row.verdict] for row in primary.rows)
        over_control = "its control" if plain == control else f"{control} its control"
        missed = primary.rows[0].difference.detectable() * 100
        reason = ""
        advice = {
            "better": "Adapt; that the resolution is the reason is not shown.",
            "as good": "Adapting does no harm; a gain is not shown.",
            "worse": "Leave stage 2 out.",
            "can't tell": f"Not shown to help; a gain below {missed:.1f} points would be missed.",
        }[primary.rows[0].verdict]
        if primary.verdict == "better":
            reason = ", because of the resolution"
            gain, due = (row.difference.estimate * 100 for row in primary.rows)
            advice = f"Adapt there: {due:.1f} of the {gain:.1f} points are due to the resolution."
        start = f"{pair_name(primary.cell)}, adapted, {plain} unadapted and {over_control}"
        return f"{start}{reason}{self._among(primary.cell)}.", advice

    def answer_4(self) -> tuple[str, str]:
        """Would a cheaper remedy do? Question 2 with each arm at its own `crop_pct`."""
        primary = self.remedy.primary
        if primary is None:
            return OPEN
        advice = "Try both: neither is shown to be better."
        if primary.verdict == "worse":
            size = primary.cell.test_size
            advice = f"Yes: train at {size} px and set crop_pct to {self._best_crop()}."
            if all(row.reference.crop_pct == self.results.usual_crop for row in primary.rows):
                advice = "No other crop_pct helps the smaller train resolution."
        if self.remedy.not_worse:
            advice = "A better crop_pct does not take its place."
            framings = {arm.crop_pct for row in primary.rows for arm in (row.cell, row.reference)}
            if framings == {self.results.usual_crop}:
                advice = "No other crop_pct that was tried is better on validation."
        return self._compared(self.remedy, primary), advice

    def answer_5(self) -> tuple[str, str]:
        """What should I use at my budget? The answer, and cost, gain and stability of the arm."""
        use, best = self.best.use, self.best.best
        if use is None or best is None:
            return OPEN
        top = "it is also validation's best"
        if best != use:
            top = f"validation's best, {arm_name(best)}, is within its error"
        share = f"It wins {self.best.share * 100:.0f} % of resampled validations; {top}."
        means = [price(self.results, self.best), unshown_gain(self.results, use), share]
        if pair := left_out(self.claim, self.best):
            means.append(gap_on_validation(pair, self.best))
        return f"Use {arm_name(use)}.", " ".join(filter(None, means))

    def pays(self) -> str:
        """Does FixRes pay? From questions 1, 2 and 4; where 2 is not asked from 3."""
        if self.training.verdict == "trained too briefly":
            return "Not decided: trained too briefly"
        if self.training.verdict == "gains less than delta":
            return f"No: fine-tuning gains less than {self.delta}"
        claim, remedy = self.claim, self.remedy
        if claim.why_not:
            return f"Not asked, {self._adapting()}"
        if claim.primary is None:
            return "Not decided: its runs have not finished"
        size = claim.primary.cell.test_size
        if not claim.holds:
            return self._not_usual(claim, size)
        yes = f"Yes, at {pair_name(claim.primary.cell)}: {claim.verdict}"
        answer = {
            None: f"{yes}; other crops were not tried",
            True: yes,
            False: f"Against the usual crop yes; against crop_pct {self._best_crop()} not decided",
        }[remedy.holds]
        if remedy.primary_verdict == "worse":
            answer = f"Only in the usual crop; {self._remedied(size)}"
        return answer + self._among(claim.primary.cell)

    def _not_usual(self, claim: Answer, size: int) -> str:
        """The title where the claim does not hold in the usual crop."""
        if claim.not_worse and claim.cost == UNCHECKED:
            return f"Not decided: {UNCHECKED}"
        undecided = claim.primary_verdict == "can't tell"
        if undecided and self.remedy.primary_verdict == "worse":
            return f"Not decided in the usual crop; {self._remedied(size)}"
        if self.remedy.holds or undecided:
            return "Not decided"
        if claim.primary_verdict == "worse":
            return f"No, at {size} px the smaller train resolution is worse"
        return f"No, at {size} px it is not worse, but {claim.cost}"

    def _adapting(self) -> str:
        """Question 3 for the title."""
        primary = self.adaptation.primary
        if self.adaptation.why_not:
            return "and adapting was not judged"
        if primary is None or primary.verdict != "better":
            return "and a gain of adapting is not shown"
        return f"but adapting gains at {primary.cell.test_size} px"

    def _remedied(self, size: int) -> str:
        return f"at crop_pct {self._best_crop()} training at {size} px is better"

    def _best_crop(self) -> str:
        rows = self.remedy.primary.rows if self.remedy.primary else ()
        crops = sorted({row.reference.crop_pct for row in rows})
        return " or ".join(f"{crop:g}" for crop in crops)
