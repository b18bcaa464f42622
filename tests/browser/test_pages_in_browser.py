"""The report's pages in a real browser: what they load, how they read, what their script does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import DESK, NEEDED, PHONE, opened
from playwright.sync_api import Browser, Error, Page

from fixres_poc.analysis.cells import GRID
from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.validation import load_sweep
from fixres_poc.report.pages import SCRIPT_HASH, render

pytest_plugins = ["chromium"]
pytestmark = NEEDED
LARGEST_BYTES = 3_000_000
REPORT = REPOSITORY / "docs" / "reports" / "demo"
DEMO = pd.read_csv(REPORT / "results.csv").drop_duplicates(GRID)
RUN = {"name": "demo", "status": "done", "error": "", "text": "2 s", "link": "notebooks/demo.html"}
RUNS = {"rows": {"64 px, seed 0": {0: RUN}}, "columns": {0: "training"}, "failed": []}
PAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "index": ("05_results", {"runs": RUNS | {"others": [RUN]}}),
    "run": ("04_fixres", {"name": "run", "back": "report"}),
}
MAIN = "details:nth-of-type(2) .sortable"
"""The table of all cells, in the second fold of its section."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of an index and a run's page, made by the present template."""
    folder = tmp_path_factory.mktemp("pages")
    for name, (stem, page) in PAGES.items():
        html = render(REPOSITORY / "notebooks" / f"{stem}.ipynb", page)
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in PAGES}


@pytest.fixture
def page(browser: Browser, pages: dict[str, str]) -> Iterator[Page]:
    with opened(browser, pages["index"]) as (page, _, _):
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        yield page


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "width"), [("light", PHONE), ("dark", DESK)])
def test_page_asks_no_host_fits_a_phone_and_has_no_serious_fault_of_access(
    browser: Browser, pages: dict[str, str], name: str, scheme: str, width: int
) -> None:
    with opened(browser, pages[name], width, color_scheme=scheme) as (page, asked, said):
        assert said == []
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        texts = page.eval_on_selector_all("img", "all => all.map(each => each.alt || '')")
        assert all(len(text) > 10 for text in texts)
        found = Axe().run(page).response["violations"]
        assert not [fault for fault in found if fault["impact"] in ("serious", "critical")]


def column(page: Page, table: str, name: str) -> list[str]:
    """Texts of a column's cells in the rows that are shown."""
    texts = "all => all.map(each => each.textContent.trim())"
    place = page.eval_on_selector_all(f"{table} thead th", texts).index(name) + 1
    cells = page.locator(f"{table} tbody tr:not([hidden]) td:nth-child({place})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_the_table_sorts_by_keyboard(page: Page) -> None:
    before = column(page, MAIN, "test top-1 %")
    button = page.get_by_role("button", name="sort by test top-1 %")
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, MAIN, "test top-1 %") == sorted(before, key=float) != before
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("test top-1 %")
    button.click()
    assert column(page, MAIN, "test top-1 %") == sorted(before, key=float, reverse=True)


def test_the_table_is_filtered_by_words(page: Page) -> None:
    page.get_by_label("Rows with").last.fill("80 head")
    assert set(column(page, MAIN, "test")) == {"80"}
    assert all("head" in text for text in column(page, MAIN, "adaptation"))
    wanted = DEMO["test_size"].eq(80) & DEMO["adaptation"].str.contains("head")
    said = page.locator(".control output").last.inner_text()
    assert said == f"{wanted.sum()} of {len(DEMO)} rows"


def test_a_limit_chooses_what_validation_prefers_within_it(page: Page) -> None:
    """The first of the rows, the cheapest first, within what the rule allows below the best."""
    assert page.locator("tr.picked td").first.inner_text() == "use"
    names = ["images/s", "val top-1 %", "allowed"]
    arms = pd.DataFrame({name: column(page, ".frontier", name) for name in names}).astype(float)
    arms["arm"] = column(page, ".frontier", "arm")
    least = arms["images/s"].median()
    page.get_by_label("At least").fill(str(least))
    fitting = arms[arms["images/s"] >= least]
    reached = fitting["val top-1 %"] + fitting["allowed"] >= fitting["val top-1 %"].max() - 1e-9
    expected = fitting["arm"][reached].iloc[0]
    assert page.locator(".answer").inner_text().startswith(f"Use {expected}: ")
    assert page.locator("tr.picked td").nth(1).inner_text() == expected
    page.get_by_label("At most").fill("0.0001")
    assert "No pair of this sweep" in page.locator(".answer").inner_text()
    assert page.locator("tr.picked").count() == 0


def test_where_no_arm_is_recommended_none_is_told_to_use(
    browser: Browser, pages: dict[str, str], tmp_path: Path
) -> None:
    html = Path(pages["index"].removeprefix("file://")).read_text(encoding="utf-8")
    assert html.count("<td>use</td>") == 1
    (file := tmp_path / "index.html").write_text(html.replace("<td>use</td>", "<td></td>"))
    with opened(browser, file.as_uri()) as (page, _, _):
        assert "not recommended" in (page.locator(".answer").text_content() or "")


def bottom(page: Page, name: str) -> float:
    """Where the first element of this name ends, in px from the top of the page."""
    box = page.locator(name).first.bounding_box()
    assert box
    return box["y"] + box["height"]


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_answer_is_on_the_first_screen(
    browser: Browser, pages: dict[str, str], width: int
) -> None:
    with opened(browser, pages["index"], width, java_script_enabled=False) as (page, _, _):
        shown = ["h1", ".facts", ".sentences"]
        shown += [".chips", ".figure img", ".words"] * (width == DESK)
        assert all(bottom(page, name) < 900 for name in shown)
        assert page.locator(".rail").is_visible() == (width == DESK)
        assert page.locator("summary", has_text="Contents").is_visible() == (width == PHONE)


def test_without_a_script_tables_stand_and_one_switch_shows_all_code(
    browser: Browser, pages: dict[str, str]
) -> None:
    with opened(browser, pages["index"], java_script_enabled=False) as (page, _, _):
        assert page.locator("input:not(#show-code), button").count() == 0
        page.get_by_text("Every cell on test").click()
        assert page.locator(f"{MAIN} tbody tr").count() == len(DEMO)
        assert not page.locator(".code").first.is_visible()
        page.get_by_label("show code").check()
        assert all(each.is_visible() for each in page.locator(".code").all())


def test_chips_lead_to_their_sections(page: Page) -> None:
    for link in page.locator(".chips a").all():
        target = page.locator(str(link.get_attribute("href")))
        assert target.evaluate("each => each.tagName") == "H3"


def test_the_first_screen_prints_on_one_page(page: Page) -> None:
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 900})  # of A4 within its margins, at 96 dpi
    assert bottom(page, ".first") < 1032


def test_print_names_what_is_folded_away(browser: Browser, pages: dict[str, str]) -> None:
    with opened(browser, pages["index"]) as (page, _, _):
        page.emulate_media(media="print")
        summary = page.locator("summary", has_text="Every cell on test")
        assert summary.is_visible()
        assert "folded" in summary.evaluate("each => getComputedStyle(each, '::after').content")
        assert not page.locator(f"{MAIN} tbody tr").first.is_visible()
        assert not page.locator("summary", has_text="Contents").is_visible()


def test_no_other_script_runs(page: Page) -> None:
    with pytest.raises(Error, match="Content Security Policy"):
        page.add_script_tag(content="document.title = 'taken over'")
    assert page.title() != "taken over"


def test_the_committed_report_is_small_and_complete() -> None:
    index = (REPORT / "index.html").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in REPORT.rglob("*.*")) < LARGEST_BYTES
    assert SCRIPT_HASH in index, "render the demo's report again"
    runs = sorted(run.name for run in load_sweep("sweeps/demo.yml").runs())
    assert sorted(re.findall(r'href="notebooks/([^"#]+).html"', index)) == runs
    assert {*runs} <= {file.stem for file in (REPORT / "notebooks").iterdir()}
