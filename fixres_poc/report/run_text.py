"""What a run's notebook says of its own numbers, in Markdown."""

from collections.abc import Sequence

import pandas as pd

from fixres_poc.analysis.cells import same_images
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
    told = Accuracy(*row[["top1", "top1_low", "top1_high"]]).percent()
    spread = (
        f"Over all test resolutions, validation accuracy ranges from {val.min() * 100:.1f} % "
        f"to {val.max() * 100:.1f} %."
    )
    return _bullets(
        f"The linear probe is best on validation at {val.idxmax()} px. There it classifies "
        f"**{told}** of "
        f"{row['n_test']:,} test images correctly.",
        spread if len(val) > 1 else "",
        zero_shot,
    )


def training_summary(
    settings: TrainSettings, trained: Trained, val_images: int, classes: int
) -> str:
    """What stage 1 gives on validation, in how many steps, and whether it chose a recipe.

    Of a network that was trained elsewhere (`head_start: file`) that is its accuracy at its own
    resolution.
    """
    history, size, tried = (
        trained.history,
        settings.train_size,
        pd.DataFrame(trained.tried["stage1"]),
    )
    reached, loss = (
        f"**{trained.val_top1 * 100:.1f} %** on validation at {size} px",
        history["loss"],
    )
    if settings.head_start == "file":
        low, _ = wilson_interval(round(trained.val_top1 * val_images), val_images)
        own = f"The network of the weights file reaches {reached}, its own resolution."
        return _bullets(own, NEAR_CHANCE if low <= 1 / classes else "")
    lines = [f"The last epoch reaches {reached}, after {trained.steps:,} steps."]
    if len(loss) > 1:
        lines.append(
            f"The loss went from {loss.iloc[0]:.3f} to {loss.iloc[-1]:.3f} in {len(loss)} epochs."
        )
    if len(tried) > 1:
        first, second = tried["val_top1"].nlargest(2)
        lines.append(
            f"{len(tried)} recipes were tried; the second best is "
            f"{(first - second) * 100:.1f} points below."
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
        [name, other, *paired_gain(correct[name], correct[other])[:3]]
        for name in adaptations
        for other in ("none", CONTROL + name)
        if other in correct and name != "none"
    ]
    return pd.DataFrame(rows, columns=["adaptation", "against", "gain", "low", "high"])


def pair_summary(summary: pd.DataFrame, gains: pd.DataFrame, settings: PairSettings) -> str:
    """What validation prefers, its accuracy on test, and the smaller gain, which is FixRes's."""
    own = summary[
        (summary["view"] == settings.views[0]) & (summary["test_part"] == "test")
    ].set_index("adaptation")
    wanted: list[str] = [name for name in settings.adaptations if name != "full"] or ["full"]
    best = str(own.loc[wanted, "val_top1"].idxmax())
    row, against = own.loc[best], gains[gains["adaptation"] == best].sort_values("gain")
    lines = [
        f"Validation prefers **{best}** at {settings.test_size} px. It classifies "
        f"{row['top1'] * 100:.1f} % of "
        f"{row['n_test']:,} test images correctly."
    ]
    for _, _, other, *values in against.itertuples():
        gain = Difference(*values)
        verdict = gain.told("a gain", "a loss", "no difference that these images can show")
        lines.append(f"Against `{other}`: {gain.points()}, {verdict}.")
    if len(against) > 1:
        smaller = against.iloc[0]
        lines.append(
            f"The smaller, over `{smaller['against']}`, is the gain of FixRes in this one training."
            if smaller["low"] > 0
            else "No gain of FixRes is shown in this one training."
        )
    return _bullets(*lines)


def zero_shot_verdict(known: ZeroShot, probes: pd.DataFrame) -> str:
    """The linear probe against the pre-trained classifier, "" where there is nothing to ask."""
    if known.obstacle:
        return ""
    mapped, every = len(known.mapped), known.classes
    # of a size the usual framing comes first
    size, crop_pct = max(known.predictions["test_size"]), known.predictions["crop_pct"].iloc[0]
    linear, own = same_images(
        *(
            _correct(each[(each["test_size"] == size) & (each["crop_pct"] == crop_pct)])
            for each in (probes, known.predictions)
        )
    )
    gain = paired_gain(linear, own)
    told = gain.told("more", "less", "no difference shown")
    return (
        f"Zero-shot, the network's ImageNet classifier is right on **{own.mean() * 100:.1f} %** of "
        f"{len(own):,} test images at "
        f"{size} px, among the {mapped} of {every} classes that it knows by name. The linear "
        f"probe, which chooses among all {every} classes, is right on {linear.mean() * 100:.1f} % "
        f"of the same images: {told}, {gain.points()}."
    )


def _correct(predictions: pd.DataFrame) -> "pd.Series[bool]":
    test = predictions[predictions["split"] == "test"].astype({"image": str}).set_index("image")
    return test["target"] == test["top1"]


def _bullets(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines if line)
