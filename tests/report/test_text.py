"""The report's sentences and tables follow one decision."""

from dataclasses import replace

from made_up import grid, same, told

from fixres_poc.analysis.answers import Decision, decide
from fixres_poc.analysis.results import Results
from fixres_poc.report import tables, text

GRID = {
    (96, 96): same(0.60),
    (96, 112): same(0.65) | {"head_bn": 0.70, "control_head_bn": 0.66},
    (112, 112): same(0.66) | {"head_bn": 0.66},
}


def by_part(results: Results) -> dict[str, Decision]:
    return {part: decide(results.on(part)) for part in results.parts}


def test_questions_have_the_answer_and_the_verdict_on_each_part() -> None:
    found = by_part(grid(GRID, GRID, photos=0.5, epochs=4))
    table = text.question_table(found)
    assert len(table) == 5
    claim = table.iloc[1]
    assert claim["answer"] == found["test"].sentences[2]
    assert claim["on test"] == found["test"].verdicts[2] == "better, cheaper"
    assert claim["on photos"] == found["photos"].verdicts[2]
    assert table.iloc[3]["answer"] == "Not asked: one crop_pct."


def test_every_comparison_is_a_row_with_its_level() -> None:
    found = by_part(grid(GRID, photos=0.5, epochs=4))
    table = text.comparison_table(found)
    primary = table[table["question"] == "2 *"]
    assert primary["against"].tolist() == [
        "trained at 112, tested at 112 px, `none`",
        "trained at 112, tested at 112 px, `head_bn`",
    ]
    assert primary["points on test"].str.startswith("+4.0").all()
    assert not primary["points on test"].str.contains("†").any()
    assert table.loc[table["question"] == "1", "points on test"].str.contains("†").all()
    assert primary["training FLOPs"].str.startswith("× 0.").all()


def test_a_stage_1_that_did_nothing_is_said() -> None:
    words = text.said(decide(grid({(96, 96): same(0.5), (112, 112): same(0.6)})))
    assert "Stage 1 did nothing at 96 px" in words


def test_trust_names_seeds_stability_and_what_is_missing() -> None:
    one = text.trust(decide(told(same(0.60), None)))
    assert "the spread between trainings is not known" in one
    assert "1 of 5 pairs of resolutions (with probes) lack results" in one
    decision = decide(grid(GRID, GRID))
    two = text.trust(decision)
    assert two.startswith("2 training seeds: accuracies are means over them")
    share = decision.recommendation.share
    assert f"picks the recommended arm in {share:.0%} of draws" in two
    assert "prove nothing about photographs" in two


def test_arms_say_what_to_use_and_by_how_much_they_may_be_worse() -> None:
    table = tables.arms(decide(grid(GRID)).recommendation)
    used = table[table["pick"] == "use"].iloc[0]
    assert (used["train"], used["test"], used["adaptation"]) == ("96", 112, "head_bn")
    assert used["points below the best"] == "0.0"
    assert float(used["allowed"]) <= 1.0


def test_adaptations_on_request_stand_apart_from_the_primary_one() -> None:
    decision = decide(grid(GRID))
    table = tables.ablations(decision.results, decision.plan.matched)
    head = table[table["adaptation"] == "head"].iloc[0]
    assert head["points over none"].startswith("+0.0")
    assert head["points over its control"].startswith("+0.0")
    alone = replace(decision.results, predictions=decision.results.predictions.head(0))
    assert tables.ablations(alone, decision.plan.matched).empty


def test_beside_the_arm_to_use_stand_the_best_and_common_practice() -> None:
    top1 = {(96, 96): same(0.70), (96, 128): same(0.80), (96, 160): same(0.805)}
    words = text.beside(decide(grid(top1)))
    assert "Validation's best: trained at 96, tested at 160 px, `none`." in words
    assert "On test it has +0.5 points" in words
    assert "the recommended arm gains +10.0 points" in words
