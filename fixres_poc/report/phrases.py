"""Phrases of a report's sentences: names of arms and pairs, differences, costs."""

import math
from collections.abc import Sequence

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Comparison, Row
from fixres_poc.analysis.questions import Answer
from fixres_poc.analysis.recommendation import Recommendation
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference

UNITS = {"EFLOP": 1e18, "PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9}
"""Units of FLOPs, the largest first."""


def flops(count: float) -> str:
    """A number of FLOPs with three digits, such as '2.98 TFLOP'."""
    unit = next((name for name, size in UNITS.items() if count >= size), "GFLOP")
    return f"{count / UNITS[unit]:.3g} {unit}"


def as_sentence(text: str, seeds: int | None) -> str:
    """The text as a sentence, which names its only training where it rests on one."""
    return f"{text} (of this training)." if seeds == 1 else f"{text}."


def arm_name(cell: Cell) -> str:
    """An arm, such as 'the linear probe at 128 px'."""
    return f"the {cell.named()}" if cell.adaptation == "probe" else cell.named()


def pair_name(cell: Cell) -> str:
    """A pair of resolutions, such as '96 \N{RIGHTWARDS ARROW} 120 px'."""
    return f"{cell.train_size} \N{RIGHTWARDS ARROW} {cell.test_size} px"


def reference_name(row: Row) -> str:
    """The reference of a row: another training, or the same one unadapted."""
    reference = row.reference
    if reference.train_size == row.cell.train_size:
        return "unadapted"
    adapted = "" if reference.adaptation == "none" else ", adapted"
    return f"training at {reference.test_size} px{adapted}"


def points(row: Row) -> str:
    """The difference of a row at its level, such as '+1.2 points (−0.3 to 2.7)'."""
    low, high, _ = row.bounds
    text = Difference(row.difference.estimate, low, high).points(brief=True)
    return text.replace(" ", " points ", 1)


def loss(row: Row) -> str:
    """The largest loss that a row's interval allows."""
    low, *_ = row.bounds
    return "no loss" if low >= 0 else f"a loss of at most {-low * 100:.1f} points"


def price(results: Results, best: Recommendation) -> str:
    """FLOPs of an image and of training, of the recommended arm.

    Of a network that was trained elsewhere only adapting counts.
    """
    (arm,) = best.arms[best.arms["pick"] == "use"].to_dict("records")
    stage = "adapting" if results.settings["head_start"] == "file" else "training"
    training = arm["training_flops"]
    cost = f", {stage} {flops(training)}" if training else ", nothing is trained here"
    known = "" if math.isnan(training) else cost
    return f"An image takes {arm['flops'] / 1e9:.3g} GFLOP{known}."


def where_training_pays(rows: Sequence[Comparison], delta: str) -> str:
    """The test resolutions at which training pays, and what it does at the others."""
    sizes_of: dict[str, list[str]] = {"pays": []}
    for size in sorted({row.cell.test_size for row in rows}):
        same_size = [row for row in rows if row.cell.test_size == size]
        verdicts = {row.verdict for row in same_size}
        effect = "is not decided"
        if "better" in verdicts:
            effect = "pays"
        elif all(row.below_delta for row in same_size):
            effect = "loses" if verdicts == {"worse"} else f"gains less than {delta}"
        sizes_of.setdefault(effect, []).append(str(size))
    start = f"Fine-tuning pays at {', '.join(sizes_of.pop('pays'))} px"
    others = [f"at {', '.join(sizes)} px it {effect}" for effect, sizes in sizes_of.items()]
    return "; ".join([start, *others]) + "."


def unshown_gain(results: Results, use: Cell) -> str:
    """That an adapted arm is not shown to gain on the leading part; "" where it is."""
    if use.train_size is None or use.adaptation == "none":
        return ""
    gain = results.difference(use, results.at_chosen_crop(use._replace(adaptation="none")))
    return "" if gain and gain.low > 0 else "A gain over unadapted is not shown."


def left_out(claim: Answer, best: Recommendation) -> Cell | None:
    """FixRes's primary pair, if test finds no loss but validation uses another training.

    None also where another test resolution is used.
    """
    use, primary = best.use, claim.primary
    if use is None or primary is None or not claim.not_worse:
        return None
    pair = primary.cell
    differs = use.test_size == pair.test_size and use.train_size != pair.train_size
    return pair if differs else None


def gap_on_validation(pair: Cell, best: Recommendation) -> str:
    """How far validation has a pair below its best arm."""
    same = [arm[:3] == pair[:3] for arm in best.arms["cell"]]
    gap = best.arms["gap"][same].min() * 100
    return f"On validation {pair_name(pair)} is {gap:.1f} points below the best."
