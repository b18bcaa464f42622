"""The report's sentences follow the numbers: where FixRes wins, loses, or cannot be told apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fixres_poc import config, discussion, records, results, tables
from fixres_poc.config import BaselineSettings, DatasetSettings, PairSettings, SweepSettings, TrainSettings, run_folder
from fixres_poc.reading import validate
from fixres_poc.results import Results
from fixres_poc.statistics import Difference

KEYS: dict[str, Any] = {"name": "told", "dataset": "synthetic", "train_sizes": [96], "test_sizes": [96, 128]}
MODELS: dict[str, type[config.Settings]] = {
    "01_dataset_eda": DatasetSettings,
    "02_baseline": BaselineSettings,
    "03_train": TrainSettings,
    "04_fixres": PairSettings,
}
ADAPTATIONS = ["none", "head", "head_bn_stats", "head_bn", "control"]
KEYS |= {"adaptations": ADAPTATIONS}
VAL, TEST = 100, 400


def predictions(adaptation: str, val: float, test: float) -> pd.DataFrame:
    """The first `val` and `test` share of the pictures right, so that the better of two cells is right on more."""
    number = np.r_[np.arange(VAL) / VAL, np.arange(TEST) / TEST]
    split = np.repeat(["val", "test"], [VAL, TEST])
    right = number < np.where(split == "val", val, test)
    table = pd.DataFrame({name: np.full(VAL + TEST, -1) for name in records.TOP}).assign(top1=np.where(right, 1, 0))
    names = [f"{part}/{i:.4f}" for part, i in zip(split, number, strict=True)]
    fixed: dict[str, Any] = {"view": "center", "target": 1, "probability": 0.5, "adaptation": adaptation}
    return table.assign(split=split, picture=names, **fixed)


def told(
    at_96: dict[str, float],
    at_128: dict[str, float] | None,
    baseline: float = 0.5,
    seed1: tuple[dict[str, float], dict[str, float] | None] | None = None,
    **sweep: object,
) -> Results:
    """Results with these accuracies, the same on validation and on test; None at 128 stands for a failed run.

    `seed1` holds those of a second training.
    """
    settings = validate(SweepSettings, KEYS | sweep | ({"seeds": [0, 1]} if seed1 else {}), "test")
    top1 = {"baseline": {"baseline": baseline}, "train96_test96_seed0": at_96, "train96_test128_seed0": at_128}
    if seed1:
        top1 |= {"train96_test96_seed1": seed1[0], "train96_test128_seed1": seed1[1]}
    for run in settings.runs():
        folder = run_folder("told", run.name)
        if run.name in top1 and top1[run.name] is None:
            folder.mkdir(parents=True)
            (folder / "error.txt").write_text("OutOfMemoryError: <b>full</b>\n")
        elif run.notebook in MODELS:
            frames = [predictions(name, value, value) for name, value in (top1.get(run.name) or {}).items()]
            metrics = {
                "classes": ["a", "b"],
                "pictures": {"train": 300, "val": VAL, "test": TEST},
                "eval_images_per_second": 50.0,
            }
            metrics |= {"seconds": {"train": 30.0, "adapt": dict.fromkeys(ADAPTATIONS, 5.0)}}
            values = validate(MODELS[run.notebook], run.parameters, "test")
            results.write_run(folder, values, metrics, pd.concat(frames) if frames else None)
    results.collect(settings)
    return results.load("told")


def same(value: float) -> dict[str, float]:
    return dict.fromkeys(ADAPTATIONS, value)


def test_where_fixres_pays_the_text_says_so() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80})
    assert "FixRes pays here" in discussion.conclusion(found)
    answer = discussion.answer(found)
    assert "trained at 96, tested at 128 px, `head_bn`" in answer
    assert "80.0% (95 % interval" in answer
    assert "+30.0 points" in answer
    assert "largest test size is 128 px" in answer
    assert "+15.0 points" in answer
    assert "a gain in 1, a loss in 0" in discussion.adaptations(found)
    assert "best at **128 px**; on test that is +5.0 points" in discussion.size_effect(found)


def test_variants_that_are_one_and_the_same_are_called_so() -> None:
    words = "`head_bn` and `head_bn_stats` are one and the same here"
    assert words in discussion.adaptations(told(same(0.60), same(0.65)))
    assert words not in discussion.adaptations(told(same(0.60), same(0.65) | {"head_bn": 0.80}))


def test_where_the_larger_size_loses_the_text_says_so() -> None:
    found = told(same(0.80), same(0.60))
    assert "does not pay here" in discussion.conclusion(found)
    assert "Nothing: validation prefers" in discussion.answer(found)
    assert "its own size" in discussion.size_effect(found)


def test_where_validation_misled_the_loss_is_named() -> None:
    found = told(same(0.80), same(0.60))
    pair = (found.table["test_size"] == 128) & (found.table["adaptation"] == "head_bn")
    found.table.loc[pair, "val_top1"] = 0.99
    assert "FixRes loses here" in discussion.conclusion(found)
    assert "20.0 points above" in discussion.optimism(found)
    assert "-20.0 points" in discussion.fixres_part(found, found.choose())


def test_where_nothing_can_be_told_apart_no_gain_is_claimed() -> None:
    found = told(same(0.60), same(0.60) | {"head_bn": 0.605}, baseline=0.60)
    assert "No gain could be shown" in discussion.conclusion(found)
    assert "not told apart from none" in discussion.answer(found)
    assert "not told apart in 1" in discussion.adaptations(found)


def test_where_the_control_does_as_well_adapting_there_is_not_credited() -> None:
    found = told(same(0.60), {"none": 0.70, "head": 0.75, "head_bn_stats": 0.75, "head_bn": 0.75, "control": 0.75})
    assert "not shown against the control" in discussion.conclusion(found)


def test_a_beaten_baseline_is_not_named_in_the_conclusion() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80}, baseline=0.70)
    assert "baseline" not in discussion.conclusion(found)


def test_a_better_baseline_is_named_in_the_conclusion() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80}, baseline=0.95)
    assert "FixRes pays here" in discussion.conclusion(found)
    assert "is better still" in discussion.conclusion(found)


def test_without_the_same_size_pair_nothing_is_claimed() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80}, test_sizes=[128])
    assert "can't be told" in discussion.conclusion(found)


def test_where_no_adaptation_is_chosen_none_is_credited() -> None:
    found = told(same(0.60), same(0.60) | {"none": 0.80})
    assert "adapting *there* adds to it is not shown" in discussion.conclusion(found)


def test_the_path_adds_up_to_the_whole_gain() -> None:
    found = told(same(0.60), {"none": 0.65, "head": 0.70, "head_bn_stats": 0.70, "head_bn": 0.80, "control": 0.72})
    path = results.gain_path(found)
    assert path["gain"].sum() == pytest.approx(0.30)
    assert path["top1"].tolist() == pytest.approx([0.50, 0.60, 0.65, 0.72, 0.80])


def test_failed_runs_and_missing_references_are_named() -> None:
    found = told(same(0.60), None)
    assert "1 of 3 size pairs, the baseline's counted, lack results" in discussion.trust(found)
    failed = tables.failures(found).set_index("name")
    assert failed.loc["train96_test128_seed0", "error"] == "OutOfMemoryError: <b>full</b>"
    assert "No pair with a larger test size" in discussion.adaptations(found)


def test_the_table_marks_the_chosen_cell_and_says_what_was_not_run() -> None:
    shown = tables.cells(told(same(0.60), same(0.65) | {"head_bn": 0.80}))
    chosen = shown[shown["choice"] == "chosen"].iloc[0]
    assert (chosen["test"], chosen["adaptation"], chosen["test top-1 %"]) == (128, "head_bn", "80.0")
    assert chosen["p (test = train)"] == "<0.001"
    assert shown.loc[shown["adaptation"] == "baseline", "p (baseline)"].tolist() == ["n/a"]


def test_over_two_seeds_everything_is_a_mean() -> None:
    found = told(same(0.60), same(0.62) | {"head_bn": 0.80}, seed1=(same(0.50), same(0.56) | {"head_bn": 0.72}))
    answer = discussion.answer(found)
    assert "classifies 76.0% (95 % interval" in answer
    assert "+26.0 points" in answer
    assert "McNemar" not in answer
    assert "2 training seeds: accuracies are means over them" in answer
    assert "+4.0 points" in discussion.size_effect(found)
    assert "`head_bn` against `none`: +17.0 points on average over 1 pairs" in discussion.adaptations(found)
    assert results.gain_path(found)["top1"].tolist() == pytest.approx([0.50, 0.55, 0.59, 0.59, 0.76])
    assert results.gain_path(found)["gain"].sum() == pytest.approx(0.26)
    assert "also the one with the highest" in discussion.optimism(found)


def test_the_table_has_one_row_for_both_seeds_of_a_cell() -> None:
    shown = tables.cells(told(same(0.60), same(0.62), seed1=(same(0.50), None)))
    assert shown["seeds"].tolist() == [1, *[2] * 5, *[1] * 5]
    assert shown["status"].tolist() == [*["ok"] * 6, *["1 of 2 ok"] * 5]
    assert shown.loc[shown["choice"] == "chosen", ["test", "adaptation", "test top-1 %"]].to_numpy().tolist() == [
        [96, "none", "55.0"]
    ]


def test_the_view_is_chosen_on_validation_and_stands_last_on_the_path() -> None:
    found = told(same(0.60), same(0.80), views=["center", "five_crop"])
    better = found.predictions.assign(top1=1, view="five_crop")[lambda table: table["test_size"] == 128]
    row = found.table[found.table["test_size"] == 128].assign(view="five_crop", val_top1=1.0, top1=1.0)
    table = pd.concat([found.table, row], ignore_index=True)
    both = results.Results(table, pd.concat([found.predictions, better]), found.pictures, found.sweep)
    chosen = both.choose()
    assert (chosen.test_size, chosen.adaptation, chosen.view) == (128, "none", "five_crop")
    path = results.gain_path(both)
    assert path["step"].tolist()[-1] == "five_crop instead of one crop"
    assert path["gain"].iloc[-1] == pytest.approx(0.20)
    assert "`none`, five_crop" in discussion.answer(both)
    assert "view" in tables.cells(both)


def test_a_gain_in_one_training_and_a_loss_in_the_other_is_none() -> None:
    found = told(same(0.60), same(0.90), seed1=(same(0.60), same(0.40)), adaptations=["none"])
    gain = found.difference(results.Cell(96, 128, "none", 0), results.Cell(96, 96, "none", 0))
    assert gain is not None
    assert gain.estimate == pytest.approx(0.05)
    assert discussion.verdict(gain) == "not told apart from none"


def test_the_choice_is_made_over_both_seeds() -> None:
    second = same(0.62) | {"head": 0.50, "head_bn": 0.70}
    found = told(same(0.60), same(0.62) | {"head": 0.80}, seed1=(same(0.60), second))
    assert found.choose().adaptation == "head_bn"


def test_cost_is_told_against_the_same_training_at_its_own_size() -> None:
    text = discussion.cost(told(same(0.60), same(0.65) | {"head_bn": 0.80}))
    assert text.startswith("Stage 1 took 30 s, the adaptation 5 s; 50 pictures a second are classified at 128 px")
    assert text.endswith("against 50 at 96 px.")


def test_differences_are_signed_and_judged() -> None:
    assert discussion.points(Difference(0.012, -0.003, 0.027)) == "+1.2 points (95 % interval -0.3 to +2.7)"
    assert discussion.verdict(Difference(0.1, 0.01, 0.2)) == "a gain"
    assert discussion.verdict(Difference(-0.1, -0.2, -0.01)) == "a loss"


def test_failures_in_the_report_folder_need_no_runs(own_home: Path) -> None:
    found = told(same(0.60), same(0.65))
    for file in (own_home / "runs").rglob("*"):
        if file.is_file():
            file.unlink()
    assert results.load("told").choose() == found.choose()


def test_a_shown_table_is_complete_formatted_and_escaped() -> None:
    table = pd.DataFrame({"name": ["<b>"] * 80, "top1": [0.5, float("nan")] * 40})
    html = tables.show(table, top1="{:.1%}").data
    assert html.count("&lt;b&gt;") == 80
    assert html.count("50.0%") == html.count("n/a") == 40


def test_activations_stand_once_a_framing_in_order_of_size() -> None:
    found = told(same(0.6), same(0.7))
    assert tables.activations(found).empty
    row = {"mean": 0.5, "std": 0.1, "near_zero": 0.0, "large": 0.01}

    def three(test: int) -> list[dict[str, object]]:
        names = dict.fromkeys(["train crops, 96 px", "test framing, 96 px", f"test framing, {test} px"])
        return [{"pictures": name, **row} for name in names]

    for run in found.sweep["runs"]:
        if "_test" in run["name"]:
            run["activations"] = three(128 if "test128" in run["name"] else 96)
    table = tables.activations(found)
    expected = ["train crops, 96 px", "test framing, 96 px", "test framing, 128 px"]
    assert table["pictures"].tolist() == expected
