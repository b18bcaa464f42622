"""The findings of a run's notebook in words, as Markdown."""

from collections.abc import Sequence

import pandas as pd

from fixres_poc.analysis.cells import CANDIDATES, same_images
from fixres_poc.analysis.statistics import Accuracy, Difference, paired_gain, wilson_interval
from fixres_poc.config.geometry import resized_side
from fixres_poc.config.settings import CONTROL, PairSettings, TrainSettings
from fixres_poc.method.stage1 import Trained
from fixres_poc.method.zero_shot import ZeroShot

NEAR_CHANCE = (
    "**That is near chance: are its classes in another order, or was it trained with other mean "
    "and std?**"
)
UNEVEN = 1.5  # ratio of class sizes from which plain and macro accuracy can differ visibly


def largest_useful(sizes: pd.DataFrame) -> int:
    """The largest test resolution, a multiple of 32 px, that enlarges at most half of the images.

    Args:
        sizes: one row per image: width and height in px.
    """
    short_px = sizes[["width", "height"]].min(axis=1).median()
    return max(size for size in range(0, 2049, 32) if resized_side(size) <= short_px)


def dataset_summary(sizes: pd.DataFrame, classes: Sequence[str], leakage: str) -> str:
    """Numbers of images and class balance, the largest useful test resolution, leakage.

    Args:
        sizes: one row per image: label, width and height in px.
        leakage: the verdict of the leakage check.
    """
    counts, short = sizes["label"].value_counts(), sizes[["width", "height"]].min(axis=1)
    ratio, useful = counts.max() / counts.min(), largest_useful(sizes)
    more = (short < resized_side(useful + 32)).mean()
    macro = ": compare macro accuracy as well" if ratio > UNEVEN else ""
    return _bullets(
        f"{len(sizes):,} images of {len(classes)} classes. The largest class has {ratio:.1f} "
        "times as many images as "
        f"the smallest{macro}.",
        f"The largest useful test resolution is **{useful} px**; {useful + 32} px would enlarge "
        f"{more * 100:.0f} % of the images, which shows no finer detail.",
        leakage,
    )


def probe_summary(choices: pd.DataFrame, summary: pd.DataFrame, zero_shot: str) -> str:
    """The test accuracy of the linear probe at its best size on validation, and zero-shot.

    Args:
        choices: of `linear_probe.Probes`.
        summary: of `record.summarise`.
        zero_shot: of `zero_shot_verdict`.
    """
    val = choices[choices["chosen"]].set_index("test_size")["val_top1"]
    row = summary[(summary["test_size"] == val.idxmax()) & (summary["test_part"] == "test")].iloc[0]
    accuracy = Accuracy(*row[["top1", "top1_low", "top1_high"]]).percent()
    spread = (
        f"Over all test resolutions, validation accuracy ranges from {val.min() * 100:.1f} % "
        f"to {val.max() * 100:.1f} %."
    )
    return _bullets(
        f"The linear probe is best on validation at {val.idxmax()} px. There it classifies "
        f"**{accuracy}** of {row['n_test']:,} test images correctly.",
        spread if len(val) > 1 else "",
        zero_shot,
    )


def training_summary(
    settings: TrainSettings, trained: Trained, val_images: int, classes: int
) -> str:
    """Accuracy of stage 1 on validation, its steps, its loss, and the recipes that were tried.

    Of a network that was trained elsewhere (`head_start: file`) its accuracy at its own resolution.
    """
    reached = f"**{trained.val_top1 * 100:.1f} %** on validation at {settings.train_size} px"
    if settings.head_start == "file":
        low, _ = wilson_interval(round(trained.val_top1 * val_images), val_images)
        line = f"The network of the weights file reaches {reached}, its own resolution."
        return _bullets(line, NEAR_CHANCE if low <= 1 / classes else "")
    loss, tried = trained.history["loss"], pd.DataFrame(trained.tried["stage1"])
    lines = [f"The last epoch reaches {reached}, after {trained.steps:,} steps."]
    if len(loss) > 1:
        lines.append(
            f"The loss went from {loss.iloc[0]:.3f} to {loss.iloc[-1]:.3f} in {len(loss)} epochs."
        )
    if len(tried) > 1:
        best, second = tried["val_top1"].nlargest(2)
        lines.append(
            f"{len(tried)} recipes were tried; the second best is "
            f"{(best - second) * 100:.1f} points below."
        )
    return _bullets(*lines)


def gains(predictions: pd.DataFrame, adaptations: Sequence[str], view: str) -> pd.DataFrame:
    """Each adaptation against `none` and against its control, on the same test images.

    Args:
        predictions: of `adaptations.predict_pair`.

    Returns:
        Columns adaptation, against, gain, low and high (fractions, 95 %).
    """
    test = predictions[(predictions["split"] == "test") & (predictions["view"] == view)]
    test = test.assign(correct=test["top1"] == test["target"])
    correct = test.pivot(index="image", columns="adaptation", values="correct")
    rows = [
        [name, reference, *paired_gain(correct[name], correct[reference])[:3]]
        for name in adaptations
        for reference in ("none", CONTROL + name)
        if reference in correct and name != "none"
    ]
    return pd.DataFrame(rows, columns=["adaptation", "against", "gain", "low", "high"])


def pair_summary(summary: pd.DataFrame, gains: pd.DataFrame, settings: PairSettings) -> str:
    """The adaptation that validation prefers, its accuracy on test, and the smaller of its gains.

    The smaller gain, over `none` or over the control, is FixRes's.
    """
    on_test = (summary["view"] == settings.views[0]) & (summary["test_part"] == "test")
    rows = summary[on_test].set_index("adaptation")
    candidates = [name for name in CANDIDATES if name in settings.adaptations] or ["full"]
    best = str(rows.loc[candidates, "val_top1"].idxmax())
    row = rows.loc[best]
    lines = [
        f"Validation prefers **{best}** at {settings.test_size} px. It classifies "
        f"{row['top1'] * 100:.1f} % of {row['n_test']:,} test images correctly."
    ]
    against = gains[gains["adaptation"] == best].sort_values("gain")
    for _, _, reference, *values in against.itertuples():
        gain = Difference(*values)
        verdict = gain.told("a gain", "a loss", "no difference that these images can show")
        lines.append(f"Against `{reference}`: {gain.points()}, {verdict}.")
    if len(against) > 1:
        smaller = against.iloc[0]
        lines.append(
            f"The smaller, over `{smaller['against']}`, is the gain of FixRes in this one training."
            if smaller["low"] > 0
            else "No gain of FixRes is shown in this one training."
        )
    return _bullets(*lines)


def zero_shot_verdict(known: ZeroShot, probes: pd.DataFrame) -> str:
    """The linear probe against zero-shot on the same images; "" if zero-shot was not possible."""
    if known.obstacle:
        return ""
    size = max(known.predictions["test_size"])
    crop_pct = known.predictions["crop_pct"].iloc[0]  # the usual one
    hits = []
    for table in (probes, known.predictions):
        framed = (table["test_size"] == size) & (table["crop_pct"] == crop_pct)
        test = table[framed & (table["split"] == "test")].astype({"image": str}).set_index("image")
        hits.append(test["target"] == test["top1"])
    linear, zero_shot = same_images(*hits)
    gain = paired_gain(linear, zero_shot)
    verdict = gain.told("more", "less", "no difference shown")
    return (
        f"Zero-shot, the network's ImageNet classifier is right on "
        f"**{zero_shot.mean() * 100:.1f} %** of {len(zero_shot):,} test images at {size} px, among "
        f"the {len(known.mapped)} of {known.classes} classes that it knows by name. The linear "
        f"probe, which chooses among all {known.classes} classes, is right on "
        f"{linear.mean() * 100:.1f} % of the same images: {verdict}, {gain.points()}."
    )


def _bullets(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines if line)
