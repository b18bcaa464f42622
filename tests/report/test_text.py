"""The report's sentences follow the numbers: where FixRes wins, loses, or cannot be told apart."""

from made_up import same, told

from fixres_poc.report import text


def test_where_fixres_pays_the_text_says_so() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80})
    assert "FixRes pays here" in text.conclusion(found)
    answer = text.answer(found)
    assert "trained at 96, tested at 128 px, `head_bn`" in answer
    assert "80.0% (95 % interval" in answer
    assert "+30.0 points" in answer
    assert "largest test size is 128 px" in answer
    assert "+15.0 points" in answer
    assert "a gain in 1, a loss in 0" in text.adaptations(found)
    assert "best at **128 px**; on test that is +5.0 points" in text.size_effect(found)


def test_variants_that_are_one_and_the_same_are_called_so() -> None:
    words = "`head_bn` and `head_bn_stats` are one and the same here"
    assert words in text.adaptations(told(same(0.60), same(0.65)))
    assert words not in text.adaptations(told(same(0.60), same(0.65) | {"head_bn": 0.80}))


def test_where_the_larger_size_loses_the_text_says_so() -> None:
    found = told(same(0.80), same(0.60))
    assert "does not pay here" in text.conclusion(found)
    assert "Nothing: validation prefers" in text.answer(found)
    assert "its own size" in text.size_effect(found)


def test_where_validation_misled_the_loss_is_named() -> None:
    found = told(same(0.80), same(0.60))
    pair = (found.table["test_size"] == 128) & (found.table["adaptation"] == "head_bn")
    found.table.loc[pair, "val_top1"] = 0.99
    assert "FixRes loses here" in text.conclusion(found)
    assert "20.0 points above" in text.optimism(found)
    assert "-20.0 points" in text.fixres_part(found, found.choose())


def test_where_nothing_can_be_told_apart_no_gain_is_claimed() -> None:
    found = told(same(0.60), same(0.60) | {"head_bn": 0.605}, baseline=0.60)
    assert "No gain could be shown" in text.conclusion(found)
    assert "not told apart from none" in text.answer(found)
    assert "not told apart in 1" in text.adaptations(found)


def test_where_the_control_does_as_well_adapting_there_is_not_credited() -> None:
    found = told(same(0.60), {"none": 0.70, "head": 0.75, "head_bn_stats": 0.75, "head_bn": 0.75, "control": 0.75})
    assert "not shown against the control" in text.conclusion(found)


def test_a_beaten_baseline_is_not_named_in_the_conclusion() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80}, baseline=0.70)
    assert "baseline" not in text.conclusion(found)


def test_a_better_baseline_is_named_in_the_conclusion() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80}, baseline=0.95)
    assert "FixRes pays here" in text.conclusion(found)
    assert "is better still" in text.conclusion(found)


def test_without_the_same_size_pair_nothing_is_claimed() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80}, test_sizes=[128])
    assert "can't be told" in text.conclusion(found)


def test_where_no_adaptation_is_chosen_none_is_credited() -> None:
    found = told(same(0.60), same(0.60) | {"none": 0.80})
    assert "adapting *there* adds to it is not shown" in text.conclusion(found)


def test_failed_runs_and_missing_references_are_named() -> None:
    found = told(same(0.60), None)
    assert "1 of 3 size pairs, the baseline's counted, lack results" in text.trust(found)
    assert "No pair with a larger test size" in text.adaptations(found)


def test_over_two_seeds_everything_is_a_mean() -> None:
    found = told(same(0.60), same(0.62) | {"head_bn": 0.80}, seed1=(same(0.50), same(0.56) | {"head_bn": 0.72}))
    answer = text.answer(found)
    assert "classifies 76.0% (95 % interval" in answer
    assert "+26.0 points" in answer
    assert "McNemar" not in answer
    assert "2 training seeds: accuracies are means over them" in answer
    assert "+4.0 points" in text.size_effect(found)
    assert "`head_bn` against `none`: +17.0 points on average over 1 pairs" in text.adaptations(found)
    assert "also the one with the highest" in text.optimism(found)


def test_cost_is_told_against_the_same_training_at_its_own_size() -> None:
    cost = text.cost(told(same(0.60), same(0.65) | {"head_bn": 0.80}))
    assert cost.startswith("Stage 1 took 30 s, the adaptation 5 s; 50 images a second are classified at 128 px")
    assert cost.endswith("against 50 at 96 px.")
