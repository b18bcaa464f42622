"""Phrases of a report's sentences: names of arms and pairs, differences, costs."""

import math

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Row
from fixres_poc.analysis.recommendation import Recommendation
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference

UNITS = {"EFLOP": 1e18, "PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9}
"""Units of FLOPs, the largest first."""


def flops(count: float) -> str:
    """A number of FLOPs, such as '2.98 TFLOP'."""
    unit = next((name for name, size in UNITS.items() if count >= size), "GFLOP")
    return f"{count / UNITS[unit]:.2f} {unit}"


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
