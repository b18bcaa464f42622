"""What the page of a run says of its own numbers, in words."""

import pandas as pd

from fixres_poc.analysis.cells import aligned
from fixres_poc.analysis.statistics import paired_difference, wilson_interval
from fixres_poc.method.zero_shot import ZeroShot


def starting_point(head_start: str, best_epoch: int, val_top1: float, size: int, counts: tuple[int, int]) -> str:
    """What stage 1 gives; of a network that was trained elsewhere, what it reaches at its own size.

    Args:
        head_start: of the settings.
        counts: number of validation images, and of classes.
    """
    images, classes = counts
    if head_start != "file" or best_epoch > 0:
        return f"Epoch **{best_epoch}** is kept, with {val_top1:.1%} on validation at {size} px."
    text = f"The network of the weights file reaches **{val_top1:.1%}** on validation at {size} px, its own size."
    hint = near_chance(wilson_interval(round(val_top1 * images), images)[0], classes)
    return f"{text} **{hint}**" if hint else text


def near_chance(low: float, classes: int) -> str:
    """What may be wrong where the lower bound of a network's top-1 accuracy is not above chance; empty otherwise."""
    if low > 1 / classes:
        return ""
    return "That is near chance: are its classes in another order, or was it trained with other mean and std?"


def zero_shot_verdict(known: ZeroShot, baseline: pd.DataFrame) -> str:
    """What the pre-trained classifier says about the baseline's accuracy, "" where there is nothing to ask."""
    if known.obstacle:
        return ""
    mapped, every = len(known.mapped), known.classes
    size = max(known.predictions["test_size"])
    linear, own = aligned(*(_correct(each[each["test_size"] == size]) for each in (baseline, known.predictions)))
    gain = paired_difference(linear, own)
    told = "more" if gain.low > 0 else "less" if gain.high < 0 else "not told apart from that"
    return (
        f"Without any training here the backbone's own ImageNet classifier, asked for the {mapped} of {every} "
        f"classes that it has by name, is right at {size} px on **{own.mean():.1%}** of their {len(own):,} test "
        f"images. The linear baseline, which chooses among all {every} classes, is right on {linear.mean():.1%} of the "
        f"same, {told} "
        f"({gain.estimate * 100:+.1f} points, 95 % interval {gain.low * 100:+.1f} to {gain.high * 100:+.1f})."
    )


def _correct(predictions: pd.DataFrame) -> "pd.Series[bool]":
    test = predictions[predictions["split"] == "test"].astype({"image": str}).set_index("image")
    return test["target"] == test["top1"]
