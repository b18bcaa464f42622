"""Names of classes, pictures and folders that carry HTML, script, Markdown or formulas stay text, in a real browser."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import save_picture
from playwright.sync_api import Dialog, Page, sync_playwright

from fixres_poc import datasets, engine, plots, records
from fixres_poc.config import BaselineSettings, PairSettings, SweepSettings, report_folder, run_folder
from fixres_poc.reading import validate
from fixres_poc.runner import execute

CHROMIUM = shutil.which("chromium")
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
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


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[tuple[Page, list[str]]]:
    """A page, and a list of what it asked for or showed; its policy is off, so that escaping alone must hold."""
    with sync_playwright() as started:
        context = started.chromium.launch_persistent_context(
            folder, executable_path=CHROMIUM, args=BROWSER, bypass_csp=True
        )
        page, seen = context.new_page(), list[str]()
        page.on("request", lambda request: seen.append(request.url))

        def close(dialog: Dialog) -> None:
            seen.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", close)
        yield page, seen
        context.close()


def predictions(pictures: datasets.Pictures, adaptation: str, wrong: int) -> pd.DataFrame:
    """Every picture is taken for its class, but for those of number `wrong` among its class's, for the next class."""
    table = pictures.table[pictures.table["split"] != "train"]
    count = len(pictures.classes)
    missed = table.groupby(["label", "split"]).cumcount() == wrong
    made: dict[str, Any] = {f"top{place + 1}": (table["label"] + place + missed) % count for place in range(5)}
    made |= {"target": table["label"], "adaptation": adaptation, "view": "center", "probability": 0.75}
    return table[["picture", "split"]].assign(**made)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real notebooks 01 and 05 on pictures whose names are hostile; the runs between them are made up."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / NAMES[1]
    for index, name in enumerate(NAMES):
        for number in range(5):
            save_picture(folder / name / f"{name}{number}.png", (30 * index, 99, 200), seed=9 * index + number)
    (folder / NAMES[0] / UNREADABLE).write_bytes(b"")
    keys = {"name": "evil", "dataset": str(folder), "pairs": [[64, 64], [64, 96]], "skip_unreadable": True}
    sweep = validate(SweepSettings, keys | {"adaptations": ["none", "head"]}, "test")
    engine._lay_out(sweep, engine.prepare_data(sweep))
    models = {run.name: run for run in sweep.runs()}
    assert execute(run_folder("evil", "dataset") / "settings.json") is None
    baseline = BaselineSettings(**models["baseline"].parameters)
    pictures = datasets.load(baseline)
    facts = {"classes": pictures.classes, "pictures": pictures.counts(), **records.environment()}
    records.write_run(run_folder("evil", "baseline"), baseline, facts, predictions(pictures, "baseline", 0))
    pair = PairSettings(**models["train64_test64_seed0"].parameters)
    tables = [predictions(pictures, name, wrong) for wrong, name in enumerate(pair.adaptations)]
    speed = {"eval_images_per_second": {"center": 9.0}}
    records.write_run(run_folder("evil", pair.run_name), pair, facts | speed, pd.concat(tables))
    run_folder("evil", "train64_test96_seed0").joinpath("error.txt").write_text(ERROR)
    return engine.render(sweep)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.slow
def test_hostile_names_are_text_in_every_page(report: Path, tmp_path: Path) -> None:
    pages = sorted(report_folder("evil").rglob("*.html"))
    assert {page.name for page in pages} >= {"index.html", "dataset.html"}
    with browser(tmp_path / "profile") as (page, seen):
        for file in pages:
            seen.clear()
            page.goto(file.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            text = " ".join(page.inner_text("body").split())
            assert page.evaluate("window.hacked") is None
            assert [url for url in seen if not url.startswith("data:")] == [file.as_uri()]
            assert page.evaluate("[...document.links].filter(a => a.protocol === 'javascript:').length") == 0
            missing = [name for name in NAMES if name.replace("\n", "\\n") not in text]  # as pandas writes line ends
            assert not missing, file
            if file == report:
                assert UNREADABLE in text
                assert "1 unreadable picture left out" in text
                assert ERROR in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_the_browser_notices_names_that_are_not_escaped(tmp_path: Path) -> None:
    page_file = tmp_path / "page.html"
    page_file.write_text(f"<table><tr><td>{NAMES[1]}{NAMES[2]}{NAMES[4]}</td></tr></table>")
    with browser(tmp_path / "profile") as (page, seen):
        page.goto(page_file.as_uri())
        assert page.evaluate("window.hacked") == 1
        assert {"2", "http://127.0.0.1:9/x.png"} <= set(seen)


@pytest.mark.parametrize("name", [*NAMES, "x" * 200, "\x1b[31m", "\N{DOG FACE}", "_", " "])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_show_names_as_they_are(name: str) -> None:
    labels = ["plain", name, name]
    figure = plots.class_distribution(pd.DataFrame({"label": labels, "split": "train"}))
    shown = {text.get_text() for text in figure.axes[0].get_yticklabels()}
    assert shown == {"plain", plots._short(name)}
    assert len(plots._short(name)) <= 32
    sheet = plots.sample_sheet([np.zeros((4, 4, 3), np.uint8)], [name])
    for each in (figure, sheet, plots.confusions([0, 1], [1, 0], ["plain", name])):
        each.canvas.draw()
        plt.close(each)
