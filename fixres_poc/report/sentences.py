"""Title, sentences and advice of a report, written into answers.json beside the decision.

Everything that the report says of its answers is read from that file. A sentence has at most 25
words and one number with its interval; differences are in points of top-1.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fixres_poc.analysis.answers import Decision, decide
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Comparison, Row
from fixres_poc.analysis.questions import UNCHECKED, Answer
from fixres_poc.analysis.results import load_results, training_cost
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import read_record, report_folder, write_atomically
from fixres_poc.config.settings import ENOUGH_STEPS

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
"""Why a pair costs what it does, by the verdict on its cost."""


def write(report: str) -> None:
    """Decide a report's questions, and write answers.json beside its tables.

    Args:
        report: a sweep's name, or a report's folder.

    Raises:
        InputError: it has no tables, or damaged ones.
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
    found = read_record(file, title=str, sentences=list, answers=list, did_nothing=list)
    if not found:
        raise InputError(f"{file}: no answers of this version; run `make report` first")
    return found


def told(decision: Decision) -> dict[str, Any]:
    """The content of answers.json: the decision, in numbers and in words."""
    content, words = decision.as_json(), _Words(decision)
    for answer in content["answers"]:
        said = f"Not asked: {answer['asked']}.", ""
        if answer["asked"] is True:
            said = getattr(words, f"answer_{answer['id']}")()
        answer["sentence"], answer["means"] = said
    dataset = Path(decision.results.settings["dataset"]).name
    images = "synthetic images" if dataset == "synthetic" else dataset
    title = f"Does FixRes pay on {images}? {words.pays()}"
    return {"title": title, "sentences": words.headline(), **content}


class _Words:
    """What is said of a decision."""

    def __init__(self, decision: Decision) -> None:
        self.decision, self.results = decision, decision.results
        self.best = decision.recommendation
        self.training, self.claim, self.adaptation, self.remedy = decision.answers
        self.delta = f"{self.results.settings['delta'] * 100:g} point"
        self.delta += "" if self.delta == "1 point" else "s"

    def headline(self) -> list[str]:
        """Four sentences: what to use, FixRes's claim, where adapting pays, and its cost.

        That no training is needed, or that it was too brief, comes first, in place of where.
        """
        first = self.training.verdict in ("gains less than delta", "trained too briefly")
        use, claim, where, cost = self._use(), self._claim(), self._where(), self._cost()
        return [self._training(), use, claim, cost] if first else [use, claim, where, cost]

    def _training(self) -> str:
        primary = self.training.primary
        if self.training.verdict == "trained too briefly" or primary is None:
            return self.answer_1()[0]
        row, use = primary.deciding, self.best.use
        needless = "No training is needed: " * (use is not None and use.train_size is None)
        size = f"; at {primary.cell.test_size} px: {_points(row)}"
        text = f"{needless}fine-tuning gains less than {self.delta} here{size}"
        return _said(text[0].upper() + text[1:], row.difference.seeds)

    def _use(self) -> str:
        use = self.best.use
        if use is None:
            return f"Use: no arm is recommended: {self.best.why_not}."
        top1 = self.results.accuracy(use).percent()
        seeds = len(self.results.hits(use)) if use.train_size else 2
        return _said(f"Use {_arm(use)}: {top1} of {self.results.part} images are right", seeds)

    def _claim(self) -> str:
        primary = self.claim.primary
        if self.claim.why_not:
            return f"FixRes's claim is not asked: {self.claim.why_not}."
        if primary is None:
            return "FixRes's claim is open: its runs have not finished."
        row = primary.deciding
        told = f"{TOLD[primary.verdict]} {_there(row)}"
        text = f"FixRes, {_pair(primary.cell)}, {told}: {_points(row)}{self._among(primary.cell)}"
        return _said(text, row.difference.seeds)

    def _where(self) -> str:
        if self.adaptation.why_not:
            return f"Where adapting pays is not asked: {self.adaptation.why_not}."
        primary = self.adaptation.primary
        if primary is None:
            return "Where adapting pays is open: the primary pair's runs have not finished."
        row, here = primary.rows[0], _pair(primary.cell)
        every = self.adaptation.comparisons
        pays = primary.verdict == "better"
        others = [
            _pair(each.cell) for each in every if each.verdict == "better" and each is not primary
        ]
        named = others[0] if len(others) == 1 else f"{len(others)} other pairs"
        if pays:
            also = f", and at {named}" if others else " over unadapted"
            text = f"Adapting pays at {here}, by {_points(row)}{also}"
        elif others:
            text = f"Adapting pays at {named}, not shown at {here}: {_points(row)}"
        else:
            text = f"Adapting is not shown to pay at {here}: {_points(row)} over unadapted"
        return _said(text + self._among(primary.cell), row.difference.seeds)

    def _cost(self) -> str:
        primary, use = self.claim.primary, self.best.use
        if primary is not None and not math.isnan(ratio := self.claim.flops_ratio):
            size, reason = primary.cell.test_size, REASONS[self.claim.cost]
            times = f"{ratio:.2f} of the training FLOPs of {size} px"
            return f"{_pair(primary.cell)} takes {times}: {reason}."
        if use is None or use.train_size is None or use.adaptation == "none":
            return "Cost: what is recommended needs no stage 2; its training FLOPs stand below."
        plain = use._replace(adaptation="none")
        adapted, without = (training_cost(self.results, cell)[0] for cell in (use, plain))
        if not without:
            flops = f"{adapted / 1e12:.3g} TFLOP"
            return f"Adapting {_pair(use)} takes {flops}; its own training is not counted."
        ratio = adapted / without
        reason = "stage 2 trains the last layers alone"
        return f"Adapting {_pair(use)} takes {ratio:.2f} of the training FLOPs without: {reason}."

    def _among(self, cell: Cell) -> str:
        """What qualifies a row at a test resolution where training was not shown to pay."""
        rows = self.training.comparisons
        pays = {each.cell.test_size for each in rows if each.verdict == "better"}
        shown = self.training.why_not or cell.test_size in pays
        return "" if shown else ", among fine-tuned networks"

    def answer_1(self) -> tuple[str, str]:
        """Does training pay here? The answer, and what it means."""
        verdict, steps = self.training.verdict, self.training.steps
        rows = [each for each in self.training.comparisons if each.verdict != "not run"]
        if verdict == "trained too briefly":
            said = f"Not decided: trained too briefly ({steps} steps, below {ENOUGH_STEPS})."
            return said, "Train longer before concluding anything."
        if verdict == "gains less than delta":
            means = "Spare the training: fit a linear classifier."
            return f"Fine-tuning gains less than {self.delta} here.", means
        if verdict == "not decided":
            missed = max(each.detectable for each in rows) * 100
            said = f"Not decided: a gain below {missed:.1f} points would be missed."
            return said, "More test images or seeds would decide."
        return (self._sizes(rows), "Fine-tune at these.") if verdict == "pays" else OPEN

    def _sizes(self, rows: Sequence[Comparison]) -> str:
        """At which test resolutions training pays, and what it does at the others."""
        told: dict[str, list[str]] = {"pays": []}
        for size in sorted({each.cell.test_size for each in rows}):
            own = [each for each in rows if each.cell.test_size == size]
            verdicts, word = {each.verdict for each in own}, "is not decided"
            if "better" in verdicts:
                word = "pays"
            elif all(each.below_delta for each in own):
                word = "loses" if verdicts == {"worse"} else f"gains less than {self.delta}"
            told.setdefault(word, []).append(str(size))
        rest = [f"at {', '.join(sizes)} px it {word}" for word, sizes in told.items()]
        return "; ".join([f"Fine-tuning pays at {', '.join(told['pays'])} px", *rest[1:]]) + "."

    def answer_2(self) -> tuple[str, str]:
        """FixRes's claim: is a smaller train resolution, adapted, as good, for less training?"""
        primary, cost = self.claim.primary, self.claim.cost
        if primary is None:
            return OPEN
        own, other = primary.cell.train_size, primary.cell.test_size
        means = f"A difference below {primary.detectable * 100:.1f} points would be missed."
        if primary.verdict == "worse":
            means = f"Train at {other} px."
        if self.claim.not_worse:
            means = {
                "cheaper": f"Train at {own} px, adapt at {other} px: less training, no loss.",
                UNCHECKED: f"Train at {other} px for as few FLOPs before you save any.",
            }.get(cost, f"Nothing is saved by training at {own} px.")
        return self._compared(self.claim, primary), means

    def _compared(self, answer: Answer, primary: Comparison) -> str:
        own = "Each at its own crop_pct, " * (answer.number == 4)
        told = f"{TOLD[primary.verdict]} {_there(primary.deciding)}"
        # references that were trained at another resolution cost something else
        priced = primary.rows[0].reference.train_size != primary.cell.train_size
        cost = f", and {answer.cost}" if answer.not_worse and priced else ""
        return f"{own}{_pair(primary.cell)}, adapted, {told}{self._among(primary.cell)}{cost}."

    def answer_3(self) -> tuple[str, str]:
        """What does adaptation add, over unadapted and over its control?"""
        primary = self.adaptation.primary
        if primary is None:
            return OPEN
        plain, control = (TOLD[row.verdict] for row in primary.rows)
        second, gains = "" if plain == control else f"{control} ", primary.verdict == "better"
        why = ", because of the resolution" if gains else ""
        start = f"{_pair(primary.cell)}, adapted, {plain} unadapted and {second}its control"
        missed = primary.rows[0].difference.detectable() * 100
        means = {
            "better": "Adapt; that the resolution is the reason is not shown.",
            "as good": "Adapting does no harm; a gain is not shown.",
            "worse": "Leave stage 2 out.",
            "can't tell": f"Not shown to help; a gain below {missed:.1f} points would be missed.",
        }[primary.rows[0].verdict]
        means = "Adapt the last layers at the test resolution." if gains else means
        return f"{start}{why}{self._among(primary.cell)}.", means

    def answer_4(self) -> tuple[str, str]:
        """Would a cheaper remedy do? Question 2 with each arm at its own `crop_pct`."""
        primary = self.remedy.primary
        if primary is None:
            return OPEN
        means = "Try both: neither is shown to be better."
        if primary.verdict == "worse":
            means = f"Set crop_pct to {self._best_crop()}: it costs no training."
            if all(row.reference.crop_pct == self.results.usual_crop for row in primary.rows):
                means = "No other crop_pct helps the smaller train resolution."
        if self.remedy.not_worse:
            means = "A better crop_pct does not take its place."
        return self._compared(self.remedy, primary), means

    def answer_5(self) -> tuple[str, str]:
        """What should I use at my budget?"""
        use, best = self.best.use, self.best.best
        if use is None or best is None:
            return OPEN
        other = "it is also validation's best"
        if best != use:
            other = f"validation's best, {_arm(best)}, is within its error"
        share = f"It wins {self.best.share * 100:.0f} % of resampled validations"
        return f"Use {_arm(use)}.", f"{share}; {other}."

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
        usual, own, cell = claim.holds, remedy.holds, claim.primary.cell
        return self._usual(cell, own) if usual else self._not_usual(claim, own, cell.test_size)

    def _usual(self, cell: Cell, own: bool | None) -> str:
        """Where the claim holds in the usual crop."""
        at, tried = f"at {cell.test_size} px", self._best_crop()
        told = {
            None: f"Yes, {at}; other crops were not tried",
            True: f"Yes, {at}",
            False: f"Against the usual crop yes; against crop_pct {tried} not decided",
        }[own]
        if self.remedy.primary_verdict == "worse":
            told = f"Only against the usual crop; crop_pct {tried} is better"
        return told + self._among(cell)

    def _not_usual(self, claim: Answer, own: bool | None, size: int) -> str:
        """Where the claim does not hold in the usual crop."""
        if claim.not_worse and claim.cost == UNCHECKED:
            return f"Not decided: {UNCHECKED}"
        open_ = claim.primary_verdict == "can't tell"
        if open_ and self.remedy.primary_verdict == "worse":
            return f"Not decided against the usual crop; crop_pct {self._best_crop()} is better"
        if own or open_:
            return "Not decided"
        if claim.primary_verdict == "worse":
            return f"No, at {size} px the smaller train resolution is worse"
        return f"No, at {size} px it is not worse, but {claim.cost}"

    def _adapting(self) -> str:
        """Question 3 for the title."""
        primary = self.adaptation.primary
        if self.adaptation.why_not:
            return "nothing of it was tried"
        if primary is None or primary.verdict != "better":
            return "and a gain of adapting is not shown"
        return f"but adapting gains at {primary.cell.test_size} px"

    def _best_crop(self) -> str:
        rows = self.remedy.primary.rows if self.remedy.primary else ()
        return " or ".join(f"{each:g}" for each in sorted({row.reference.crop_pct for row in rows}))


def _said(text: str, seeds: int) -> str:
    """The sentence; where it rests on one training it says that it is about this one."""
    return f"{text}{' (of this training)' * (seeds == 1)}."


def _arm(cell: Cell) -> str:
    return f"the {cell.named()}" if cell.adaptation == "probe" else cell.named()


def _pair(cell: Cell) -> str:
    return f"{cell.train_size} \N{RIGHTWARDS ARROW} {cell.test_size} px"


def _there(row: Row) -> str:
    """A reference, as a place where one trains, or as what was left out."""
    there, plain = row.reference, row.reference.adaptation == "none"
    if there.train_size == row.cell.train_size:
        return "unadapted"
    return f"training at {there.test_size} px" + ("" if plain else ", adapted")


def _points(row: Row) -> str:
    low, high, _ = row.bounds
    told = Difference(row.difference.estimate, low, high).points(brief=True)
    return told.replace(" ", " points ", 1)
