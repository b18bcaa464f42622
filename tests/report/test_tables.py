from dataclasses import replace

import pandas as pd
from bs4 import BeautifulSoup
from made_up import same, shaped, told

from fixres_poc.report import tables


def test_the_table_marks_the_chosen_cell_and_says_what_was_not_run() -> None:
    shown = tables.cells(told(same(0.60), same(0.65) | {"head_bn": 0.80}))
    chosen = shown[shown["choice"] == "chosen"].iloc[0]
    assert (chosen["test"], chosen["adaptation"], chosen["test top-1 %"]) == (
        128,
        "head_bn",
        "80.0",
    )


def test_the_table_has_one_row_for_both_seeds_of_a_cell() -> None:
    shown = tables.cells(told(same(0.60), same(0.62), same(0.50), None))
    assert shown["seeds"].tolist() == [*[1] * 3, *[2] * 4, *[1] * 7]
    assert shown["status"].tolist()[:-3] == [*["done"] * 7, *["1 of 2 done"] * 4]
    assert shown.loc[
        shown["choice"] == "chosen", ["test", "adaptation", "test top-1 %"]
    ].to_numpy().tolist() == [[96, "none", "55.0"]]


def test_failed_runs_are_listed_with_their_error() -> None:
    listed = tables.failures(told(same(0.60), None)).set_index("name")
    assert listed.loc["train96_test128_seed0", "error"] == "OutOfMemoryError: <b>full</b>"
    assert "baseline" not in listed.index


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
        names = dict.fromkeys(
            ["train crops, 96 px", "test framing, 96 px", f"test framing, {test} px"]
        )
        return [{"images": name, **row} for name in names]

    for run in found.sweep["runs"]:
        if "_test" in run["name"]:
            run["activations"] = three(128 if "test128" in run["name"] else 96)
    table = tables.activations(found)
    expected = ["train crops, 96 px", "test framing, 96 px", "test framing, 128 px"]
    assert table["images"].tolist() == expected


def test_heat_map_is_coloured_by_accuracy_and_names_what_failed() -> None:
    found = shaped(3, 2000, train_sizes=[64, 96], test_sizes=[64, 96, 128])
    pairs = found.cells[found.cells["adaptation"] != "probe"]
    html = tables.heat_map(found).data
    # the ends of cividis
    colours = {"max": "#fee838; color: #000000", "min": "#00224e; color: #ffffff"}
    for end, colour in colours.items():
        top1 = pairs["top1"].agg(end)
        assert f'background-color: {colour}">{top1 * 100:.1f}<br>' in html
    failed = found.table["test_size"] == 96
    table = found.table.assign(status=found.table["status"].where(~failed, "failed"))
    table.loc[failed, ["top1", "top1_low", "top1_high"]] = float("nan")
    html = tables.heat_map(replace(found, table=table), ["none"]).data
    assert html.count("<td>failed</td>") == 2
    assert html.count("<small>") == 4


def test_all_columns_unfold_below_those_that_matter() -> None:
    found = told(same(0.60), same(0.65))
    main, whole = tables.every_cell(found).data.split("<details>")
    for part, names in (
        (main, set(tables.MAIN) & set(tables.cells(found))),
        (whole, set(tables.cells(found))),
    ):
        assert {
            cell.get_text() for cell in BeautifulSoup(part, "html.parser").select("thead th")
        } == names
