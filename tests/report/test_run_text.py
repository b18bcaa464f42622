"""What notebooks say of their own numbers."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from made_up import predictions

from fixres_poc.analysis.record import summarise
from fixres_poc.analysis.statistics import paired_gain
from fixres_poc.config.settings import PairSettings, TrainSettings
from fixres_poc.inference.finished_run import preferred
from fixres_poc.method.zero_shot import ZeroShot
from fixres_poc.report import run_text
from fixres_poc.report.run_text import zero_shot_verdict

TARGETS = [0] * 4 + [1] * 4 + [2] * 4
NAMES = [f"{index}.png" for index in range(12)]
TEST = pd.DataFrame({"image": NAMES, "split": "test", "test_size": 224, "target": TARGETS})
TEST = TEST.assign(crop_pct=0.875)


@pytest.mark.parametrize(
    ("top1", "expected"),
    [
        (
            TEST["target"].replace(1, 0),
            "is right on 50.0 % of the same images: no difference shown, \N{MINUS SIGN}50.0 points",
        ),
        (-1, "is right on 0.0 % of the same images: less, \N{MINUS SIGN}100.0 points"),
    ],
)
def test_verdict_compares_on_the_images_of_both(top1: Any, expected: str) -> None:
    mapped = TEST[TEST["target"] < 2]
    tables = [mapped.assign(top1=-1, test_size=96), mapped.assign(top1=mapped["target"])]
    tables.append(mapped.assign(top1=-1, crop_pct=0.71))
    known = ZeroShot(pd.concat(tables), {"Goldfish": "goldfish", "Snoopy": "beagle"}, 3)
    verdict = zero_shot_verdict(
        known, pd.concat([TEST.assign(top1=2, test_size=96), TEST.assign(top1=top1)])
    )
    assert "on **100.0 %** of 8 test images at 224 px, among the 2 of 3 classes that it" in verdict
    assert expected in verdict
    nothing = ZeroShot(TEST.iloc[:0], {}, 3, obstacle="none")
    assert zero_shot_verdict(nothing, TEST.assign(top1=0)) == ""


PAIR = [predictions(name, (right, right), (20, 60)) for name, right in (("none", 10), ("head", 16))]
CONTROLLED = pd.concat([*PAIR, predictions("control_head", (20, 20), (20, 60))])
SETTINGS = PairSettings(train_size=64, test_size=96, adaptations=("none", "head"))


def test_gains_are_those_of_paired_statistics_over_none_and_over_the_control() -> None:
    found: Any = run_text.gains(CONTROLLED, SETTINGS.adaptations, "center").set_index("against")
    assert found["gain"].to_dict() == {
        "none": pytest.approx(0.1),
        "control_head": pytest.approx(-4 / 60),
    }
    right = {count: [index < count for index in range(60)] for count in (10, 16)}
    expected = paired_gain(right[16], right[10])
    assert found.loc["none", ["low", "high"]].tolist() == [expected.low, expected.high]


def test_a_pair_is_credited_with_the_smaller_of_its_gains_if_that_is_shown() -> None:
    gains = pd.DataFrame({"adaptation": "head", "against": ["none", "control_head"]})
    gains = gains.assign(gain=[0.3, 0.2], low=[0.2, 0.1], high=[0.4, 0.3])
    words = run_text.pair_summary(summarise(CONTROLLED), gains, SETTINGS)
    assert words.endswith(
        "The smaller, over `control_head`, is the gain of FixRes in this one training."
    )


def test_of_a_pair_whose_smaller_gain_may_be_nothing_no_gain_is_shown() -> None:
    words = run_text.pair_summary(
        summarise(CONTROLLED), run_text.gains(CONTROLLED, ("head",), "center"), SETTINGS
    )
    assert (
        "Validation prefers **head** at 96 px. It classifies 26.7 % of 60 test images correctly."
        in words
    )
    assert "Against `none`: +10.0 points" in words
    assert words.endswith("\n- No gain of FixRes is shown in this one training.")
    assert "The smaller" not in words
    alone = run_text.pair_summary(
        summarise(PAIR[0]),
        run_text.gains(PAIR[0], ("none",), "center"),
        SETTINGS.model_copy(update={"adaptations": ("none",)}),
    )
    assert "Against" not in alone


def test_of_equal_adaptations_validation_prefers_the_simplest() -> None:
    equal = pd.concat(predictions(name, (9, 9), (20, 60)) for name in ("head", "none"))
    settings = SETTINGS.model_copy(update={"adaptations": ("head", "none")})
    words = run_text.pair_summary(summarise(equal), run_text.gains(equal, (), "center"), settings)
    assert "Validation prefers **none**" in words
    assert preferred(summarise(equal), settings.adaptations)[0] == "none"


def test_a_dataset_is_summarised_with_its_balance_and_largest_useful_resolution() -> None:
    sizes = pd.DataFrame({"label": [0, 0, 0, 1], "width": 400, "height": [100, 300, 300, 330]})
    words = run_text.dataset_summary(sizes, ["a", "b"], "No sign.")
    assert (
        "4 images of 2 classes. The largest class has 3.0 times as many images as the "
        "smallest: compare" in words
    )
    assert "useful test resolution is **256 px**; 288 px would enlarge 75 % of the images" in words
    assert words.endswith("- No sign.")


def test_a_baseline_is_summarised_at_the_size_that_validation_prefers() -> None:
    choices = pd.DataFrame(
        {"test_size": [96, 96, 224], "val_top1": [0.5, 0.6, 0.7], "chosen": [False, True, True]}
    )
    tables = [
        predictions("probe", (12, right), (20, 60), size) for size, right in ((96, 40), (224, 30))
    ]
    words = run_text.probe_summary(choices, summarise(pd.concat(tables)), "")
    assert "best on validation at 224 px. There it classifies **50.0 % (95 % interval" in words
    assert words.endswith("validation accuracy ranges from 60.0 % to 70.0 %.")


def said_of(settings: TrainSettings, val_top1: float, classes: int, **facts: Any) -> str:
    """The summary of a training that ended with this validation accuracy."""
    history = pd.DataFrame({"epoch": [1, 2], "val_top1": [0.8, val_top1], "loss": [2.0, 1.0]})
    kept: Any = SimpleNamespace(history=history, val_top1=val_top1, **facts)
    return run_text.training_summary(settings, kept, 100, classes)


@pytest.mark.parametrize("second", [None, 0.45])
def test_a_training_is_summarised_by_its_last_epoch(second: float | None) -> None:
    tried = {"stage1": [{"val_top1": value} for value in (0.5, second) if value]}
    said = said_of(TrainSettings(train_size=64), 0.5, 3, steps=1200, tried=tried)
    assert "reaches **50.0 %** on validation at 64 px, after 1,200 steps" in said
    assert "from 2.000 to 1" in said
    assert ("second best is 5.0 points below" in said) == (second is not None)


def test_a_network_from_a_file_near_chance_is_questioned() -> None:
    settings = TrainSettings(train_size=64, head_start="file", weights="a.pt")
    for classes in (3, 30):
        said = said_of(settings, 0.34, classes, steps=0, tried={"stage1": []})
        assert ("near chance" in said) == (classes == 3)
