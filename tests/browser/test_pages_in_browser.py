"""The report's pages in a real browser: what they load, how they read, what their script does, and hostile names."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import save_image
from made_up import write
from playwright.sync_api import Browser, Dialog, Error, Page, sync_playwright

from fixres_poc.analysis.cells import GRID, ONCE
from fixres_poc.analysis.record import Metrics
from fixres_poc.config import run_state
from fixres_poc.config.files import REPOSITORY, report_folder, run_folder
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import load_sweep, validate
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.report.pages import BROWSERS, SCRIPT_HASH, export, render
from fixres_poc.sweep import execution, reporting, workspace
from fixres_poc.sweep.notebook_run import execute

CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on PATH")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
LARGEST_BYTES, PHONE, DESK = 3_000_000, 390, 1400
NAMES = [
    "$\\frac{x$ $x^2$",
    "<img src=x onerror=window.hacked=1>",
    "\"'><svg onload=alert(2)>",
    "<script>window.hacked=3; alert(3)",
    "<img src=http:\\\\127.0.0.1:9\\x.png>",
    "[a](javascript:alert(4)) **b** `c`",
    "two\nlines <b>",
]
UNREADABLE = "<img src=x onerror=window.hacked=5>.png"
ERROR = "ValueError: <script>window.hacked=6</script><img src=x onerror=window.hacked=6>"
DEMO = pd.read_csv(REPOSITORY / "reports/demo/results.csv").drop_duplicates(GRID)
RUN = {"name": "demo", "status": "done", "error": "", "time": "2 s", "link": "notebooks/demo.html"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of an index, its slides and a run's page, made by the present template from stored notebooks."""
    folder = tmp_path_factory.mktemp("pages")
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "index": ("05_results", {"runs": [RUN]}),
        "slides": ("05_results", {"slides": True}),
        "run": ("04_fixres", {"name": "run", "back": "report"}),
    }
    for name, (stem, page) in made.items():
        html = render(REPOSITORY / "notebooks" / f"{stem}.ipynb", page)
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in made}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextlib.contextmanager
def opened(
    browser: Browser, address: str, width: int = DESK, **options: Any
) -> Iterator[tuple[Page, list[str], list[str]]]:
    """A page, what it asked for, and what it said: on the console, in errors and in dialogs."""
    page, asked, said = browser.new_page(viewport={"width": width, "height": 900}, **options), list[str](), list[str]()

    def close(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", close)
    page.goto(address)
    yield page, asked, said
    page.close()


@pytest.fixture
def page(browser: Browser, pages: dict[str, str]) -> Iterator[Page]:
    with opened(browser, pages["index"]) as (page, _, _):
        yield page


@pytest.mark.parametrize("name", ["index", "slides", "run"])
def test_page_asks_no_host_and_fits_a_phone(browser: Browser, pages: dict[str, str], name: str) -> None:
    with opened(browser, pages[name], PHONE) as (page, asked, said):
        assert said == []
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
        assert all(len(alt or "") > 10 for alt in page.eval_on_selector_all("img", "all => all.map(each => each.alt)"))


@pytest.mark.parametrize("name", ["index", "slides", "run"])
@pytest.mark.parametrize(("scheme", "width"), [("light", PHONE), ("dark", DESK)])
def test_no_serious_fault_of_access(
    browser: Browser, pages: dict[str, str], name: str, scheme: str, width: int
) -> None:
    with opened(browser, pages[name], width, color_scheme=scheme) as (page, _, _):
        found = Axe().run(page).response["violations"]
    assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]


def column(page: Page, table: str, name: str) -> list[str]:
    """Texts of a column's cells in the rows that are shown."""
    names = page.eval_on_selector_all(f"{table} thead th", "all => all.map(each => each.textContent.trim())")
    cells = page.locator(f"{table} tbody tr:not([hidden]) td:nth-child({names.index(name) + 1})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_the_table_sorts_by_keyboard(page: Page) -> None:
    before = column(page, ".sortable", "test top-1 %")
    button = page.get_by_role("button", name="sort by test top-1 %")
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, ".sortable", "test top-1 %") == sorted(before, key=float) != before
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("test top-1 %")
    button.click()
    assert column(page, ".sortable", "test top-1 %") == sorted(before, key=float, reverse=True)
    page.get_by_role("button", name="sort by p (probe), Holm").click()
    *known, last = column(page, ".sortable", "p (probe), Holm")
    assert last == "n/a"
    shown = [float(text.lstrip("<")) for text in known if text != "n/a"]
    assert shown == sorted(shown)


def test_the_table_is_filtered_by_words(page: Page) -> None:
    every = len(column(page, ".sortable", "test"))
    page.get_by_label("Rows with").fill("160 head")
    assert set(column(page, ".sortable", "test")) == {"160"}
    assert all("head" in text for text in column(page, ".sortable", "adaptation"))
    wanted = DEMO["test_size"].eq(160) & DEMO["adaptation"].str.contains("head")
    assert page.locator(".control output").first.inner_text() == f"{wanted.sum()} of {every} rows"


def test_a_limit_chooses_what_validation_prefers_within_it(page: Page) -> None:
    names = ["images/s", "val top-1 %", "test"]
    speeds, accuracies, sizes = (column(page, ".frontier", name) for name in names)
    least = sorted(map(float, speeds))[1]  # all but the slowest
    page.get_by_label("At least").fill(str(least))
    fitting = [place for place, speed in enumerate(speeds) if float(speed) >= least]
    expected = max(fitting, key=lambda place: float(accuracies[place]))
    assert f"test at {sizes[expected]} px" in page.locator(".answer").inner_text()
    assert page.locator("tr.picked td").nth(1).inner_text() == sizes[expected]
    page.get_by_label("At most").fill("0.0001")
    assert "No pair of this sweep" in page.locator(".answer").inner_text()
    assert page.locator("tr.picked").count() == 0


def test_heat_map_shows_intervals_in_its_cells(page: Page) -> None:
    cells = page.locator("table.heat td:has(small)").all_inner_texts()
    assert len(cells) == (~DEMO["adaptation"].isin(ONCE)).sum()
    for cell in cells:
        shown, low, high = map(float, re.findall(r"\d+\.\d", cell))
        assert low <= shown <= high
    top1 = [float(cell.split("\n")[0]) for cell in cells]
    colours = page.eval_on_selector_all(
        "table.heat td:has(small)", "all => all.map(each => each.style.backgroundColor)"
    )
    assert colours[top1.index(max(top1))] == "rgb(254, 232, 56)"  # the ends of cividis
    assert colours[top1.index(min(top1))] == "rgb(0, 34, 78)"


def test_without_a_script_every_table_stands(browser: Browser, pages: dict[str, str]) -> None:
    with opened(browser, pages["index"], java_script_enabled=False) as (page, _, _):
        assert page.locator("table.frontier tbody tr").count() > 3
        assert page.locator("table.sortable tbody tr").count() == len(DEMO)
        assert page.locator("input, button").count() == 0


def test_no_other_script_runs(page: Page) -> None:
    with pytest.raises(Error, match="Content Security Policy"):
        page.add_script_tag(content="document.title = 'taken over'")
    assert page.title() != "taken over"


def test_pdf_is_printed(pages: dict[str, str]) -> None:
    folder = report_folder("printed")
    folder.mkdir(parents=True)
    shutil.copy(Path(pages["run"].removeprefix("file://")), folder / "index.html")
    made = export("printed", "pdf").read_bytes()
    assert made.startswith(b"%PDF")
    assert len(re.findall(rb"/Type ?/Page\b", made)) > 1


def test_the_committed_report_is_small_and_complete() -> None:
    folder = REPOSITORY / "reports" / "demo"
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in folder.rglob("*.*")) < LARGEST_BYTES
    assert SCRIPT_HASH in index, "render the demo's report again"
    links = re.findall(r'href="(notebooks/[^"#]+)"', index)
    assert sorted(links) == sorted(f"notebooks/{run.name}.html" for run in load_sweep("sweeps/demo.yml").runs())
    assert all((folder / link).exists() for link in links)


def predictions(data: ImageDataset, adaptation: str, wrong: int, size: int = 64) -> pd.DataFrame:
    """Every image is taken for its class, but for those of number `wrong` among its class's, for the next class."""
    table = data.table[data.table["split"] != "train"]
    count = len(data.classes)
    missed = table.groupby(["label", "split"]).cumcount() == wrong
    made: dict[str, Any] = {f"top{place + 1}": (table["label"] + place + missed) % count for place in range(5)}
    made |= {"target": table["label"], "adaptation": adaptation, "view": "center", "probability": 0.75}
    return table[["image", "split"]].assign(**made, test_size=size)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real notebooks 01 and 05 on images whose names are hostile; the runs between them are made up."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / NAMES[1]
    for index, name in enumerate(NAMES):
        for number in range(5):
            save_image(folder / name / f"{name}{number}.png", (30 * index, 99, 200), seed=9 * index + number)
    (folder / NAMES[0] / UNREADABLE).write_bytes(b"")
    keys = {"name": "evil", "dataset": str(folder), "pairs": [[64, 64], [64, 96]], "skip_unreadable": True}
    sweep = validate(SweepSettings, keys | {"adaptations": ["none", "head"]}, "test")
    workspace.lay_out(sweep, execution.prepare_data(sweep))
    assert execute(run_folder("evil", "dataset") / "settings.json") is None
    data = load_dataset(sweep.data_settings()).without([f"{NAMES[0]}/{UNREADABLE}"])
    facts: dict[str, Any] = {"classes": data.classes, "images": data.counts(), "data": data.fingerprint()}
    probes = [predictions(data, "baseline", 0, size) for size in (64, 96, 224)]
    write(sweep, "baseline", Metrics(**facts), *probes)
    tables = [predictions(data, name, wrong) for wrong, name in enumerate(sweep.adaptations)]
    write(sweep, "train64_test64_seed0", Metrics(**facts, eval_images_per_second={"center": 9.0}), *tables)
    run_state.fail(run_folder("evil", "train64_test96_seed0"), ERROR)
    return reporting.render(sweep)


@pytest.mark.slow
def test_hostile_names_are_text_in_every_page(browser: Browser, report: Path) -> None:
    files = sorted(report_folder("evil").rglob("*.html"))
    assert {file.name for file in files} >= {"index.html", "dataset.html"}
    for file in files:
        # without the page's policy, so that escaping alone must hold
        with opened(browser, file.as_uri(), bypass_csp=True) as (page, asked, said):
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            text = " ".join(page.inner_text("body").split())
            assert page.evaluate("window.hacked") is None
            assert [*said, *(url for url in asked if not url.startswith("data:"))] == [file.as_uri()]
            assert page.evaluate("[...document.links].filter(a => a.protocol === 'javascript:').length") == 0
            missing = [name for name in NAMES if name.replace("\n", "\\n") not in text]  # as pandas writes line ends
            assert not missing, file
            if file == report:
                assert all(each in text for each in (UNREADABLE, "1 unreadable image left out", ERROR))


def test_the_browser_notices_names_that_are_not_escaped(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<table><tr><td>{NAMES[1]}{NAMES[2]}{NAMES[4]}</td></tr></table>")
    with opened(browser, (tmp_path / "page.html").as_uri(), bypass_csp=True) as (page, asked, said):
        assert page.evaluate("window.hacked") == 1
        assert "2" in said
        assert "http://127.0.0.1:9/x.png" in asked
