"""Made-up sweeps that agree with the theory, contradict it, or can't tell."""

from typing import Any

import pandas as pd
import pytest
from made_up import same, told

from fixres_poc.analysis import comparisons
from fixres_poc.analysis.comparisons import compare_with_measured
from fixres_poc.analysis.results import Results, load_results
from fixres_poc.config.files import report_folder
from fixres_poc.method.apparent_size import pair_ratios
from fixres_poc.report.text import verdicts

SIZES = pd.DataFrame({"width": [500, 500, 375], "height": [375, 333, 500]})


def sweep(at_96: float, at_128: float, adapted: float | None = None, **values: Any) -> Results:
    """Trained at 96 px; the prediction is 115 to 126 px, next to the test resolution 128 px."""
    told(same(at_96), same(at_128) | ({} if adapted is None else {"head_bn": adapted}), **values)
    SIZES.assign(image=["a", "b", "c"], label=0, split="test").to_csv(
        report_folder("told") / "images.csv", index=False
    )
    return load_results("told")


def test_agreeing_results_contradict_nothing() -> None:
    table = compare_with_measured(sweep(0.60, 0.80))
    assert table["nearest"].tolist() == table["best"].tolist() == [False, True]
    assert table["mean_of_ratios"].tolist() == pytest.approx([0.84, 1.13], abs=0.02)
    assert table["gain"][0] == pytest.approx(-0.20)
    assert not table["contradicts"].any()
    assert "nearest resolution of the sweep is 128 px" in verdicts(table)
    assert "It is also the best on validation. No resolution contradicts" in verdicts(table)


def test_a_clearly_better_size_further_off_contradicts() -> None:
    table = compare_with_measured(sweep(0.80, 0.60))
    assert table["contradicts"].tolist() == [True, False]
    assert table["gain_low"][0] > 0.1
    assert "is 96 px (ratio 0.8" in verdicts(table)
    assert "lower; on test the difference is +20.0 points" in verdicts(table)
    assert verdicts(table).endswith("**Against the theory: 96 px.**")


def test_a_better_size_further_off_within_chance_does_not_contradict() -> None:
    table = compare_with_measured(sweep(0.605, 0.60))
    assert table["best"].tolist() == [True, False]
    assert not table["contradicts"].any()
    assert verdicts(table).endswith("No resolution contradicts the theory.")


@pytest.mark.parametrize(("of_means", "contradicts"), [(1.02, False), (1.30, True)])
def test_what_hangs_on_the_definition_does_not_contradict(
    monkeypatch: pytest.MonkeyPatch, of_means: float, contradicts: bool
) -> None:
    def ratios(*given: Any) -> pd.DataFrame:
        return pair_ratios(*given).assign(
            mean_of_ratios=[0.99, 1.13], ratio_of_means=[0.91, of_means]
        )

    monkeypatch.setattr(comparisons, "pair_ratios", ratios)
    assert compare_with_measured(sweep(0.60, 0.80))["contradicts"].tolist() == [False, contradicts]


def test_each_test_part_is_judged_on_its_own() -> None:
    found = sweep(0.60, 0.80, photos=0.5)
    for part, share in (("test", 1), ("photos", 0.5)):
        table = compare_with_measured(found.on(part))
        assert table["top1"].tolist() == pytest.approx([0.6 * share, 0.8 * share])
        assert table["gain"][0] == pytest.approx(-0.20 * share)


def test_adaptations_are_judged_on_their_own() -> None:
    found = sweep(0.60, 0.80, adapted=0.30)
    assert not compare_with_measured(found, "none")["contradicts"].any()
    assert compare_with_measured(found, "head_bn")["contradicts"].tolist() == [True, False]
    with pytest.raises(ValueError, match="no pair was run"):
        compare_with_measured(found, "equalised")


def test_one_size_alone_tests_nothing() -> None:
    table = compare_with_measured(sweep(0.60, 0.80))
    assert "only 96 px was run" in verdicts(table[:1].assign(nearest=True, best=True))
