"""Reports of made-up outcomes: title, sentences, chips, tables, figures and picker agree."""

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from bs4 import BeautifulSoup
from IPython.display import HTML
from made_up import CLAIM, grid, same
from nbformat.v4 import new_code_cell, new_notebook, new_output

from fixres_poc.analysis.answers import decide
from fixres_poc.analysis.cells import cell_of
from fixres_poc.analysis.results import Results
from fixres_poc.config.files import REPOSITORY
from fixres_poc.report import pages, sentences

CROPS: dict[str, Any] = {"crop_pct": [0.75, 0.875], "equal_flops": same(0.5), "epochs": 9}
AT_CROP = CLAIM | {(112, 112): same(0.66) | {"none@0.75": 0.8, "head_bn@0.75": 0.8}}


def with_facts(found: Results, settings: Any = (), **facts: Any) -> Results:
    """The results with other facts in sweep.json."""
    given = found.sweep["settings"] | dict(settings)
    return replace(found, sweep=found.sweep | facts | {"settings": given})


def leaking() -> Results:
    flagged = {"flagged": {"test": True, "val": True}, "verdict": "**Leakage.**"}
    return with_facts(grid(CLAIM, photos=0.5, **CROPS), leakage=flagged)


LARGER = CLAIM | {(112, 112): same(0.9)}
OUTCOMES: dict[str, tuple[Callable[[], Results], str]] = {
    "too brief": (
        lambda: grid(CLAIM, once={"probe": 0.9}, epochs=2),
        "Not decided: trained too briefly",
    ),
    "below delta": (lambda: grid(CLAIM, once={"probe": 0.9}, epochs=9), "No: fine-tuning gains"),
    "holds": (lambda: grid(CLAIM, CLAIM, **CROPS), "Yes, at 112 px"),
    "usual crop": (lambda: grid(AT_CROP, AT_CROP, **CROPS), "Only against the usual"),
    "dearer": (lambda: grid(CLAIM, CLAIM, epochs=1, adapt_epochs=40), "No, at 112 px it is not"),
    "leak": (leaking, "Yes, at 112 px"),
    "one seed": (lambda: grid(CLAIM, **CROPS), "Yes, at 112 px"),
    "failed pair": (lambda: grid(CLAIM | {(96, 112): None}, epochs=9), "Not decided: its runs"),
    "elsewhere": (
        lambda: with_facts(grid(CLAIM, CLAIM), {"head_start": "file"}),
        "Not asked, but adap",
    ),
    "worse": (lambda: grid(LARGER, LARGER, epochs=9), "No, at 112 px the smaller"),
}


def rendered(found: Results, answers: dict[str, Any], last: str) -> BeautifulSoup:
    """The page of notebook 05 up to the cell with this text, run on these answers in place."""
    file = REPOSITORY / "notebooks/05_results.ipynb"
    notebook = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown: list[Any] = []
    world: dict[str, Any] = {"report": "told"}
    kept = []
    for cell in cells[:1] + cells[2:]:
        exec(cell.source, world)
        if cell is cells[0]:
            world["sentences"] = SimpleNamespace(read=lambda _: answers)
            world["load_results"] = lambda _: found
            world["display"] = lambda *things: shown.extend(things)
        outputs = [
            {"text/html" if isinstance(thing, HTML) else "text/markdown": thing.data}
            for thing in shown
        ]
        if figure := world.pop("figure", None):
            outputs.append({"text/markdown": figure.get_label()})
        shown.clear()
        made = [new_output("display_data", data) for data in outputs]  # type: ignore[no-untyped-call]
        kept.append(new_code_cell(cell.source, outputs=made, metadata=cell.metadata))  # type: ignore[no-untyped-call]
        if last in cell.source:
            break
    plt.close("all")
    content = new_notebook(cells=kept)  # type: ignore[no-untyped-call]
    return BeautifulSoup(pages.render_content(content, {}), "html.parser")


def rows(html: BeautifulSoup, table: str) -> list[list[str]]:
    found = html.select(f"table.{table} tbody tr")
    return [[cell.get_text() for cell in row("td")] for row in found]


@pytest.mark.parametrize("name", OUTCOMES)
def test_all_words_of_a_report_follow_one_decision(name: str) -> None:
    make, expected = OUTCOMES[name]
    found = make()
    answers = sentences.told(decide(found))
    html = rendered(found.on(answers["leading_part"]), answers, "tables.arms")
    title, page = html.h1, html.get_text()
    assert title is not None
    assert title.get_text() == answers["title"] == html.title.get_text()  # type: ignore[union-attr]
    assert answers["title"].startswith(f"Does FixRes pay on synthetic images? {expected}")
    said = [item.get_text() for item in html.select(".sentences li")]
    assert said == answers["sentences"]
    claim, use = answers["answers"][1], answers["answers"][4]
    # question 5: sentence, table 1 with the advice, picker, chip
    arm = cell_of(use["use"]).named()
    assert any(text.startswith(("Use " + arm, "Use the " + arm)) for text in said)
    questions = rows(html, "words")
    assert arm in questions[4][1]
    assert [row[1] for row in rows(html, "frontier") if row[0] == "use"] == [arm]
    share = f"{use['share_of_draws'] * 100:.0f} %"
    assert share in questions[4][-1]
    chips = {str(link["href"]): link.get_text() for link in html.select(".chips a")}
    assert share in chips["#Selection"]
    # question 2: title, sentence, table 1, figure 1, all by the row that decides
    if claim["asked"] is True and claim["verdict"] != "not run":
        (row,) = [
            row
            for row in claim["rows"]
            if row["decides"] and row["part"] == answers["leading_part"]
        ]
        points = f"{row['estimate'] * 100:+.1f}".replace("-", "\N{MINUS SIGN}")
        holds = row["verdict"] in ("better", "as good")
        assert ("is better than" in claim["sentence"] or "is as good" in claim["sentence"]) == holds
        assert any(points in text and claim["sentence"][:12] in text for text in said)
        assert questions[1][2].startswith(points)
        label = cell_of(row).against(cell_of(row["reference"]))
        assert f"{label}: {points}" in page
        assert not (answers["title"].split("? ")[1].startswith("Yes") and not holds)
    for number, text in enumerate(said):
        assert len(text.split()) <= 25, text
        assert len(re.findall(r"\d\)", text)) <= 1, text
        seeds = len(found.sweep["settings"]["seeds"])
        rests = (
            seeds == 1 and number < 3 and re.search(r"to \S+\d\)", text) and "Use the" not in text
        )
        assert ("of this training" in text) == bool(rests), text


def test_the_leading_part_is_on_the_whole_first_screen() -> None:
    found = leaking()
    answers = sentences.told(decide(found))
    html = rendered(found.on("photos"), answers, "tables.arms")
    assert answers["leading_part"] == "photos"
    assert "200 photos images" in html.select(".facts")[0].get_text()
    assert "photos" in answers["sentences"][0]
    heads = [head.get_text() for head in html.select("table.words th")]
    assert heads[2:4] == ["points on photos", "points on test"]
    chip = html.select(".chips a")[0].get_text()
    assert chip == "leakage: photos not checked, validation flagged"


@pytest.mark.parametrize("name", ["failed pair", "leak", "below delta"])
def test_the_whole_notebook_runs_on_any_outcome(name: str) -> None:
    found = OUTCOMES[name][0]()
    answers = sentences.told(decide(found))
    html = rendered(found.on(answers["leading_part"]), answers, "no ranges for this sweep")
    assert len(html("h3")) >= 4  # what can be believed
    assert "nan" not in html.get_text()
    assert "confidence is" in html.get_text()  # of the arm to use, also if that is a probe
