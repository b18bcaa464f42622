"""What a run's notebook says of its own numbers, in Markdown: each sentence is computed from them."""

from collections.abc import Sequence

import pandas as pd

from fixres_poc.analysis.cells import aligned
from fixres_poc.analysis.statistics import Difference, mcnemar_p, paired_difference, wilson_interval
from fixres_poc.config.settings import CONTROL, PairSettings, TrainSettings
from fixres_poc.data.transforms import resized_side
from fixres_poc.method.stage1 import Trained
from fixres_poc.method.zero_shot import ZeroShot

UNEVEN = 1.5  # ratio of class sizes from which plain and macro accuracy can differ visibly


def dataset_summary(
    sizes: pd.DataFrame, classes: Sequence[str], neutral: pd.DataFrame, leakage: str
) -> str:
    """Numbers of images, class balance, enlarged images, the resolution of equal apparent size, leakage.

    Args:
        sizes: one row per image: label, width and height in px.
        neutral: of `apparent_size.neutral_test_sizes`; its largest train resolution is reported.
        leakage: the verdict of the leakage check.
    """
    counts, short = sizes["label"].value_counts(), sizes[["width", "height"]].min(axis=1)
    ratio, last = counts.max() / counts.min(), neutral.iloc[-1]
    macro = ": compare macro accuracy as well" if ratio > UNEVEN else ""
    enlarged = [
        f"{(short < resized_side(size)).mean():.0%} at {size} px" for size in neutral["train_size"]
    ]
    return _bullets(
        f"{len(sizes):,} images of {len(classes)} classes. The largest class has {ratio:.1f} times as many images as "
        f"the smallest{macro}.",
        f"Share of images that a test crop enlarges, by test resolution: {', '.join(enlarged)}. For them, a gain comes "
        "from apparent size, not from finer detail.",
        f"With a train resolution of {last['train_size']:.0f} px, objects look equally large at a test resolution of "
        f"{last['low']:.0f} to {last['high']:.0f} px.",
        leakage,
    )


def baseline_summary(choices: pd.DataFrame, summary: pd.DataFrame, zero_shot: str) -> str:
    """Where the linear probe is best on validation, what it reaches there on test, and zero-shot beside it.

    Args:
        choices: of `linear_probe.Probes`.
        summary: of `record.summarise`.
        zero_shot: of `zero_shot_verdict`.
    """
    val = choices[choices["chosen"]].set_index("test_size")["val_top1"]
    row = summary[(summary["test_size"] == val.idxmax()) & (summary["test_part"] == "test")].iloc[0]
    told = f"{row['top1']:.1%} (95 % interval {row['top1_low']:.1%} to {row['top1_high']:.1%})"
    spread = f"Over all test resolutions, validation accuracy ranges from {val.min():.1%} to {val.max():.1%}."
    return _bullets(
        f"The linear probe is best on validation at {val.idxmax()} px. There it classifies **{told}** of "
        f"{row['n_test']:,} test images correctly.",
        spread if len(val) > 1 else "",
        zero_shot,
    )


def training_summary(
    settings: TrainSettings, trained: Trained, val_images: int, classes: int
) -> str:
    """What stage 1 gives on validation, and whether it chose between recipes or should have gone on.

    Of a network that was trained elsewhere (`head_start: file`) that is its accuracy at its own
    resolution.
    """
    history, size, tried = (
        trained.history,
        settings.train_size,
        pd.DataFrame(trained.tried["stage1"]),
    )
    reached, loss = f"**{trained.val_top1:.1%}** on validation at {size} px", history["loss"]
    if settings.head_start == "file" and trained.best_epoch == 0:
        low = wilson_interval(round(trained.val_top1 * val_images), val_images)[0]
        hint = near_chance(low, classes)
        own = f"The network of the weights file reaches {reached}, its own resolution."
        return _bullets(own, hint and f"**{hint}**")
    lines = [f"Epoch {trained.best_epoch} is kept, with {reached}."]
    if not trained.best_epoch:
        lines = [
            f"The frozen network with its linear probe is kept, with {reached}: no rate above 0 was better."
        ]
    if len(loss) > 1:
        lines.append(
            f"The loss went from {loss.iloc[0]:.3f} to {loss.iloc[-1]:.3f} in {len(loss)} epochs."
        )
    if trained.best_epoch == len(loss) > 1:
        lines.append("The last epoch is the best one: more epochs may give more.")
    if len(tried) > 1:
        first, second = tried["val_top1"].nlargest(2)
        lines.append(
            f"{len(tried)} recipes were tried; the second best is {(first - second) * 100:.1f} points below."
        )
    return _bullets(*lines)


def near_chance(low: float, classes: int) -> str:
    """What may be wrong where the lower bound of a network's top-1 accuracy is not above chance; empty otherwise."""
    if low > 1 / classes:
        return ""
    return "That is near chance: are its classes in another order, or was it trained with other mean and std?"


def gains(predictions: pd.DataFrame, adaptations: Sequence[str], view: str) -> pd.DataFrame:
    """Each adaptation against `none` and against its control, on the same test images.

    Args:
        predictions: of `adaptations.predict_pair`.

    Returns:
        Columns adaptation, against, gain, low, high (fractions, 95 %) and p (McNemar's mid-p).
    """
    test = predictions[(predictions["split"] == "test") & (predictions["view"] == view)]
    test = test.assign(correct=test["top1"] == test["target"])
    correct, rows = test.pivot(index="image", columns="adaptation", values="correct"), []
    for name in [each for each in adaptations if each != "none"]:
        for other in [each for each in ("none", CONTROL + name) if each in correct]:
            found = paired_difference(correct[name], correct[other])
            row = {
                "adaptation": name,
                "against": other,
                "gain": found.estimate,
                "low": found.low,
                "high": found.high,
            }
            rows.append(row | {"p": mcnemar_p(correct[name], correct[other])})
    return pd.DataFrame(rows, columns=["adaptation", "against", "gain", "low", "high", "p"])


def pair_summary(summary: pd.DataFrame, gains: pd.DataFrame, settings: PairSettings) -> str:
    """What validation prefers, what it reaches on test, and the gain that FixRes is credited with: the smaller one."""
    own = summary[
        (summary["view"] == settings.views[0]) & (summary["test_part"] == "test")
    ].set_index("adaptation")
    wanted: list[str] = [name for name in settings.adaptations if name != "full"] or ["full"]
    best = str(own.loc[wanted, "val_top1"].idxmax())
    row, against = (
        own.loc[best],
        gains[gains["adaptation"] == best].sort_values("gain").to_dict("records"),
    )
    lines = [
        f"Validation prefers **{best}** at {settings.test_size} px. It classifies {row['top1']:.1%} of "
        f"{row['n_test']:,} test images correctly."
    ]
    for each in against:
        low, high = each["low"], each["high"]
        verdict = (
            "a gain"
            if low > 0
            else "a loss"
            if high < 0
            else "no difference that these images can show"
        )
        points = f"{each['gain'] * 100:+.1f} points ({low * 100:+.1f} to {high * 100:+.1f})"
        lines.append(f"Against `{each['against']}`: {points}, {verdict}.")
    if len(against) > 1:
        lines.append(
            f"The smaller, over `{against[0]['against']}`, is the gain of FixRes in this one training."
        )
    return _bullets(*lines)


def zero_shot_verdict(known: ZeroShot, baseline: pd.DataFrame) -> str:
    """What the pre-trained classifier says about the baseline's accuracy, "" where there is nothing to ask."""
    if known.obstacle:
        return ""
    mapped, every = len(known.mapped), known.classes
    size = max(known.predictions["test_size"])
    linear, own = aligned(
        *(_correct(each[each["test_size"] == size]) for each in (baseline, known.predictions))
    )
    gain: Difference = paired_difference(linear, own)
    told = "more" if gain.low > 0 else "less" if gain.high < 0 else "no difference shown"
    return (
        f"Zero-shot, the network's ImageNet classifier is right on **{own.mean():.1%}** of {len(own):,} test images at "
        f"{size} px, among the {mapped} of {every} classes that it knows by name. The linear probe, which chooses "
        f"among all {every} classes, is right on {linear.mean():.1%} of the same images: {told} "
        f"({gain.estimate * 100:+.1f} points, 95 % interval {gain.low * 100:+.1f} to {gain.high * 100:+.1f})."
    )


def _correct(predictions: pd.DataFrame) -> "pd.Series[bool]":
    test = predictions[predictions["split"] == "test"].astype({"image": str}).set_index("image")
    return test["target"] == test["top1"]


def _bullets(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines if line)
