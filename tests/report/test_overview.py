"""The page over all sweeps: a line each, with what its report says, and a link to it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_run
from made_up import grid, same

from fixres_poc.analysis.answers import decide
from fixres_poc.analysis.results import Results, load_results
from fixres_poc.config.errors import InputError
from fixres_poc.report import overview


def test_a_line_says_what_the_report_says() -> None:
    found = grid({(64, 80): same(0.7), (64, 64): same(0.6), (80, 80): same(0.9)}, photos=0.5)
    decision = decide(found.on("photos"))
    said = overview.line(decision)
    assert said["answer"] == decision.title
    assert said["claim"] == decision.verdicts[2] == "worse"
    assert said["use"] == decision.recommendation.use.named()  # type: ignore[union-attr]
    assert (said["top-1 %"], said["on"]) == ("45.0", "200 photos images")


def test_every_report_has_its_line_and_link(own_home: Path) -> None:
    small_run.make()
    other = own_home / "reports" / "older"
    other.mkdir()
    page = overview.write("tiny")
    line = json.loads((page.parent / "tiny" / overview.LINE).read_text())
    (other / overview.LINE).write_text(
        json.dumps(line | {"sweep": "older", "date": "2000-01-01", "dataset": "<b>&"})
    )
    text = overview.write("tiny").read_text(encoding="utf-8")
    assert re.findall(r'<td><a href="(\w+)/index.html">(\w+)</a></td>', text) == [
        ("tiny", "tiny"),
        ("older", "older"),
    ]
    assert "<b>&" not in text
    assert str(own_home) not in text


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"null", b"3", b"{bad", b"\xff", b"[" * 100_000, None]
)
def test_a_line_of_another_version_is_left_out(
    own_home: Path, caplog: pytest.LogCaptureFixture, content: Any
) -> None:
    small_run.make()
    other = own_home / "reports" / "other" / overview.LINE
    other.parent.mkdir()
    other.mkdir() if content is None else other.write_bytes(content)
    text = overview.write("tiny").read_text(encoding="utf-8")
    assert re.findall(r'<td><a href="(\w+)/index.html">', text) == ["tiny"]
    assert str(other) in caplog.text


@pytest.mark.parametrize("lost", ["results.csv", "sweep.json", "predictions.parquet"])
def test_tables_of_another_version_are_one_line(own_home: Path, lost: str) -> None:
    small_run.make()
    file = own_home / "reports" / "tiny" / lost
    file.write_text("[]" if lost == "sweep.json" else "train_size,error\n3,\n")
    with pytest.raises(InputError, match="reports/tiny"):
        load_results("tiny")


def digests(found: Results, **parts: str) -> Results:
    """The results with a digest of each test part."""
    return replace(found, sweep=found.sweep | {"parts": parts})


def reported(name: str, home: Path, found: Results) -> None:
    """A report's tables, as `load_results` reads them."""
    folder = home / "reports" / name
    folder.mkdir(parents=True)
    found.table.to_csv(folder / "results.csv", index=False)
    found.predictions.to_parquet(folder / "predictions.parquet")
    found.images.to_csv(folder / "images.csv", index=False)
    (folder / "sweep.json").write_text(json.dumps(found.sweep))


def test_networks_are_compared_on_the_same_images(own_home: Path) -> None:
    found = digests(grid({(64, 64): same(0.6), (64, 96): same(0.7)}), test="x")
    better = digests(grid({(64, 64): same(0.6), (64, 96): same(0.8)}), test="x")
    reported("a", own_home, found)
    reported("b", own_home, better)
    (row,) = overview.differences({"a": found, "b": better}).to_dict("records")
    assert (row["sweep"], row["minus"], row["on"]) == ("b", "a", "test")
    assert row["points (95 %)"].startswith("+10.0 points")
    page = overview.compare(["a", "b"])
    text = page.read_text(encoding="utf-8")
    assert page.name == "compare-a-b.html"
    assert "Networks on the same images" in text
    assert "+10.0 points" in text


@pytest.mark.parametrize("parts", [{"test": "y"}, {}])
def test_images_of_the_same_names_are_not_taken_for_the_same(
    own_home: Path, parts: dict[str, str]
) -> None:
    found = grid({(64, 64): same(0.6), (64, 96): same(0.7)})
    reported("a", own_home, digests(found, test="x"))
    reported("c", own_home, digests(found, **parts))
    text = overview.compare(["a", "c"]).read_text(encoding="utf-8")
    assert "The same question on several datasets" in text
    assert "points (95 %)" not in text
    assert ("not known" in text) == (not parts)


def test_only_the_test_parts_that_two_sweeps_share_are_compared() -> None:
    found = grid({(64, 64): same(0.6), (64, 96): same(0.7)}, photos=0.5)
    every = {"a": digests(found, test="x", photos="y"), "b": digests(found, test="z", photos="y")}
    assert overview.differences(every)["on"].tolist() == ["photos"]


def test_several_seeds_are_compared_seed_by_seed() -> None:
    first = grid(
        {(64, 64): same(0.6), (64, 96): same(0.7)}, {(64, 64): same(0.6), (64, 96): same(0.72)}
    )
    second = grid(
        {(64, 64): same(0.6), (64, 96): same(0.8)}, {(64, 64): same(0.6), (64, 96): same(0.82)}
    )
    every = {"a": digests(first, test="x"), "b": digests(second, test="x")}
    (row,) = overview.differences(every).to_dict("records")
    assert row["points (95 %)"].startswith("+10.0 points")


def test_a_comparison_needs_two_reports() -> None:
    with pytest.raises(InputError, match="needs two or more"):
        overview.compare(["a", "a"])
    with pytest.raises(InputError, match="no results in"):
        overview.compare(["a", "b"])
