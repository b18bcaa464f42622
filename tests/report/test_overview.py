"""The page over all sweeps: a line each, with what its report says, and a link to it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_run
from bs4 import BeautifulSoup
from made_up import decided, grid, same, with_facts

from fixres_poc.analysis.cells import cell_of
from fixres_poc.analysis.results import Results, load_results
from fixres_poc.config.errors import InputError
from fixres_poc.report import overview, sentences

LINK = r'<td><a href="(\w+)/index.html">'


def test_a_line_says_what_the_report_says() -> None:
    found = grid({(64, 80): same(0.7), (64, 64): same(0.6), (80, 80): same(0.9)}, photos=0.5)
    answers = decided(with_facts(found, leakage={"flagged": {"test": True}}))
    said = overview.line(answers, found.sweep)
    use = cell_of(answers["answers"][4]["use"]).named()
    expected = {"answer": answers["title"], "claim": "worse", "use": use, "on": "200 photos images"}
    assert {key: said[key] for key in expected} == expected
    assert said["top-1"].startswith("45.0 % (")


def test_every_report_has_its_line_and_link(own_home: Path) -> None:
    small_run.make()
    reports = own_home / "reports"
    shutil.copytree(reports / "tiny", reports / "older")
    file = reports / "older/sweep.json"
    sweep = json.loads(file.read_text())
    sweep |= {"date": "2000-01-01", "settings": sweep["settings"] | {"dataset": "<b>&"}}
    file.write_text(json.dumps(sweep))
    text = overview.write().read_text(encoding="utf-8")
    assert re.findall(LINK + r"(\w+)</a></td>", text) == [("tiny", "tiny"), ("older", "older")]
    assert "<b>&" not in text
    assert str(own_home) not in text


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{bad", b"\xff", b"[" * 100_000, None])
def test_a_line_of_another_version_is_left_out(
    own_home: Path, caplog: pytest.LogCaptureFixture, content: Any
) -> None:
    small_run.make()
    other = own_home / "reports/other/answers.json"
    other.parent.mkdir()
    shutil.copy(own_home / "reports/tiny/sweep.json", other.parent)
    other.mkdir() if content is None else other.write_bytes(content)
    assert re.findall(LINK, overview.write().read_text(encoding="utf-8")) == ["tiny"]
    assert str(other) in caplog.text


@pytest.mark.parametrize("lost", ["results.csv", "sweep.json", "predictions.parquet"])
def test_tables_of_another_version_are_one_line(own_home: Path, lost: str) -> None:
    small_run.make()
    file = own_home / "reports" / "tiny" / lost
    file.write_text("[]" if lost == "sweep.json" else "train_size,error\n3,\n")
    with pytest.raises(InputError, match="reports/tiny"):
        load_results("tiny")


def reported(name: str, home: Path, found: Results) -> None:
    """The report that `grid` left last, under another name and with these facts."""
    folder = shutil.copytree(home / "reports/told", home / "reports" / name)
    (folder / "sweep.json").write_text(json.dumps(found.sweep))
    sentences.write(name)


SEVENTY, EIGHTY = ({(64, 64): same(0.6), (64, 96): same(top1)} for top1 in (0.7, 0.8))


def test_networks_are_compared_on_the_same_images(own_home: Path) -> None:
    for name, top1 in (("a", SEVENTY), ("b", EIGHTY)):
        reported(name, own_home, with_facts(grid(top1), parts={"test": "x"}))
    page = overview.compare(["a", "b"])
    html = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    assert page.name == "compare-a-b.html"
    assert html.h1 is not None
    assert html.h1.text.startswith("b is better than a (test): +10.0 (")
    assert len(html("img")) == 5  # the difference, and forest plot and front of each
    assert str(html("img")[0]["alt"]).startswith("Forest plot. b against a (test): +10.0")


@pytest.mark.parametrize("parts", [{"test": "y"}, {}])
def test_images_of_the_same_names_are_not_taken_for_the_same(
    own_home: Path, parts: dict[str, str]
) -> None:
    found = grid(SEVENTY)
    reported("a", own_home, with_facts(found, parts={"test": "x"}))
    reported("c", own_home, with_facts(found, parts=parts))
    text = overview.compare(["a", "c"]).read_text(encoding="utf-8")
    assert "FixRes pays in 0 of 0 sweeps that asked; 2 did not ask" in text
    assert "Differences on the same images" not in text


def test_shared_test_parts_alone_are_compared_seed_by_seed() -> None:
    one, other = (
        with_facts(grid(top1, top1, photos=0.5), parts={"test": test, "photos": "y"})
        for top1, test in ((SEVENTY, "x"), (EIGHTY, "z"))
    )
    answers = {"a": decided(one), "b": decided(other)}
    found = overview.differences({"a": one, "b": other}, answers)
    (((place, label), parts),) = found.items()
    assert (place, label, parts["both"]["seeds"]) == (0, "b against a (photos)", 2)
    assert parts["both"]["estimate"] == pytest.approx(0.05)


def test_a_comparison_needs_two_reports() -> None:
    messages = {"aa": "needs two or more", "ab": "no results in", "a/": "not a folder"}
    for names, message in messages.items():
        with pytest.raises(InputError, match=message):
            overview.compare(names)
