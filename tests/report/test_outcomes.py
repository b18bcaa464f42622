"""Reports of made-up outcomes: title, sentences, chips, tables, figures and picker agree."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from bs4 import BeautifulSoup
from IPython.display import HTML
from made_up import CLAIM, decided, grid, same, with_facts
from paged import code, display, page

from fixres_poc.analysis.cells import cell_of
from fixres_poc.analysis.results import Results
from fixres_poc.config.files import REPOSITORY

CROPS: dict[str, Any] = {"crop_pct": [0.75, 0.875], "equal_flops": same(0.5), "epochs": 9}
AT_CROP = CLAIM | {(112, 112): same(0.66) | {"none@0.75": 0.8, "head_bn@0.75": 0.8}}
LARGER = CLAIM | {(112, 112): same(0.9)}


def leaking() -> Results:
    leakage = {"flagged": {"test": True, "val": True}, "verdict": "**Leakage.**"}
    return with_facts(grid(CLAIM, photos=0.5, **CROPS), leakage=leakage)


def elsewhere() -> Results:
    return with_facts(grid(CLAIM, CLAIM), {"head_start": "file"})


def told(*seeds: Any, **values: Any) -> Callable[[], Results]:
    return lambda: grid(*seeds, **values)


OUTCOMES: dict[str, tuple[Callable[[], Results], str]] = {
    "too brief": (told(CLAIM, once={"probe": 0.9}, epochs=2), "Not decided: trained too briefly"),
    "below delta": (
        told(CLAIM, once={"probe": 0.9}, epochs=9),
        "No: fine-tuning gains less than 1 point",
    ),
    "holds": (told(CLAIM, CLAIM, **CROPS), "Yes, at 96 \N{RIGHTWARDS ARROW} 112 px: better"),
    "usual crop": (told(AT_CROP, AT_CROP, **CROPS), "Only in the usual crop; at crop_pct 0.75"),
    "dearer": (
        told(CLAIM, CLAIM, epochs=1, adapt_epochs=40),
        "No, at 112 px it is not worse, but dearer",
    ),
    "leak": (leaking, "Yes, at 96 \N{RIGHTWARDS ARROW} 112 px: as good, cheaper"),
    "one seed": (told(CLAIM, **CROPS), "Yes, at 96 \N{RIGHTWARDS ARROW} 112 px: better"),
    "failed pair": (
        told(CLAIM | {(96, 112): None}, epochs=9),
        "Not decided: its runs have not finished",
    ),
    "elsewhere": (elsewhere, "Not asked, but adap"),
    "worse": (
        told(LARGER, LARGER, epochs=9),
        "No, at 112 px the smaller train resolution is worse",
    ),
}


def rendered(name: str, last: str) -> tuple[dict[str, Any], BeautifulSoup]:
    """An outcome's answers, and the page of notebook 05 run on them up to a cell with this text."""
    found = OUTCOMES[name][0]()
    answers = decided(found)
    file = REPOSITORY / "notebooks/05_results.ipynb"
    notebook = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    imports, _, *cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown: list[Any] = []
    world: dict[str, Any] = {"report": "told"}
    exec(imports.source, world)
    world["sentences"] = SimpleNamespace(read=lambda _: answers)
    world["load_results"] = lambda _: found.on(answers["leading_part"])
    world["display"] = lambda *things: shown.extend(things)
    kept = []
    for cell in cells:
        exec(cell.source, world)
        outputs = [
            display({"text/html" if isinstance(thing, HTML) else "text/markdown": thing.data})
            for thing in shown
        ]
        if figure := world.pop("figure", None):
            outputs.append(display({"text/markdown": figure.get_label()}))
        shown.clear()
        kept.append(code(cell.source, *cell.metadata.get("tags", ()), outputs=outputs))
        if last in cell.source:
            break
    plt.close("all")
    return answers, page(*kept)


def rows(html: BeautifulSoup, table: str) -> list[list[str]]:
    found = html.select(f"table.{table} tbody tr")
    return [[cell.get_text() for cell in row("td")] for row in found]


@pytest.mark.parametrize("name", OUTCOMES)
def test_all_words_of_a_report_follow_one_decision(name: str) -> None:
    answers, html = rendered(name, "tables.arms")
    title, claim, use = answers["title"], answers["answers"][1], answers["answers"][4]
    assert [heading.get_text() for heading in html(["title", "h1"])] == [title] * 2
    assert title.startswith(f"Does FixRes pay on synthetic images? {OUTCOMES[name][1]}")
    said = [item.get_text() for item in html.select(".sentences li")]
    assert said == answers["sentences"]
    assert f" {answers['leading_part']} images" in html.select(".facts")[0].get_text()
    # question 5: sentence, table 1 with the advice, picker, chip
    arm, share = cell_of(use["use"]).named(), f"{use['share_of_draws'] * 100:.0f} %"
    assert any(text.startswith(("Use " + arm, "Use the " + arm)) for text in said)
    questions = rows(html, "words")
    assert arm in questions[4][1]
    assert [row[1] for row in rows(html, "frontier") if row[0] == "use"] == [arm]
    assert share in questions[4][-1]
    assert share in html.select('.chips a[href="#Selection"]')[0].get_text()
    # question 2: title, sentence, table 1, figure 1, all by the row that decides
    if claim["asked"] is not True or claim["verdict"] == "not run":
        return
    deciding = [row for row in claim["rows"] if row["decides"]]
    (row,) = [row for row in deciding if row["part"] == answers["leading_part"]]
    points = f"{row['estimate'] * 100:+.1f}".replace("-", "\N{MINUS SIGN}")
    holds = row["verdict"] in ("better", "as good")
    assert ("is better than" in claim["sentence"] or "is as good" in claim["sentence"]) == holds
    assert any(points in text and claim["sentence"][:12] in text for text in said)
    assert questions[1][2].startswith(points)
    assert f"{cell_of(row).against(cell_of(row['reference']))}: {points}" in html.get_text()
    assert holds or "? Yes" not in title


@pytest.mark.parametrize("name", ["failed pair", "leak", "below delta"])
def test_the_whole_notebook_runs_on_any_outcome(name: str) -> None:
    _, html = rendered(name, "no ranges for this sweep")
    assert len(html("h3")) >= 4  # what can be believed
    assert "nan" not in html.get_text()
    assert "confidence is" in html.get_text()  # of the arm to use, also if that is a probe
