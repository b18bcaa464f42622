"""Names of classes and images that try to be more than text, in every page of a report, in a real browser."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chromium import NEEDED, opened
from conftest import save_image
from made_up import write
from playwright.sync_api import Browser

from fixres_poc.analysis.record import Metrics
from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure
from fixres_poc.config.files import report_folder, run_folder
from fixres_poc.config.provenance import notebook_path
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.sweep import execution, reporting
from fixres_poc.sweep.notebook_run import run_job

pytest_plugins = ["chromium"]
pytestmark = NEEDED
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


def predictions(data: ImageDataset, adaptation: str, wrong: int, size: int = 64) -> pd.DataFrame:
    """Every image is taken for its class, but for those of number `wrong` among its class's, for the next class."""
    table = data.table[data.table["split"] != "train"]
    count = len(data.classes)
    missed = table.groupby(["label", "split"]).cumcount() == wrong
    made: dict[str, Any] = {
        f"top{place + 1}": (table["label"] + place + missed) % count for place in range(5)
    }
    made |= {
        "target": table["label"],
        "adaptation": adaptation,
        "view": "center",
        "probability": 0.75,
    }
    return table[["image", "split"]].assign(**made, test_size=size)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real notebooks 01 and 05 on images whose names are hostile; the runs between them are made up."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / NAMES[1]
    for index, name in enumerate(NAMES):
        for number in range(5):
            save_image(
                folder / name / f"{name}{number}.png",
                (30 * index, 99, 200),
                seed=9 * index + number,
            )
    (folder / NAMES[0] / UNREADABLE).write_bytes(b"")
    keys = {
        "name": "evil",
        "dataset": str(folder),
        "pairs": [[64, 64], [64, 96]],
        "skip_unreadable": True,
    }
    sweep = validate(SweepSettings, keys | {"adaptations": ["none", "head"]}, "test")
    execution.lay_out(sweep, execution.prepare_data(sweep))
    assert run_job([run_folder("evil", "dataset") / "settings.json"]) == {}
    data = load_dataset(sweep.data_settings()).without([f"{NAMES[0]}/{UNREADABLE}"])
    facts: dict[str, Any] = {
        "classes": data.classes,
        "images": data.counts(),
        "data": data.fingerprint(),
    }
    probes = [predictions(data, "probe", 0, size) for size in (64, 96, 224)]
    write(sweep, "baseline", Metrics(**facts), *probes)
    tables = [predictions(data, name, wrong) for wrong, name in enumerate(sweep.adaptations)]
    write(
        sweep,
        "train64_test64_seed0",
        Metrics(**facts, eval_images_per_second={"center": 9.0}),
        *tables,
    )
    for name in ("baseline", "train64_test64_seed0"):
        notebook = {run.name: run.notebook for run in sweep.runs()}[name]
        run_state.record_notebook(
            run_folder("evil", name), json.loads(notebook_path(notebook).read_text())
        )
    run_state.end(run_folder("evil", "train64_test96_seed0"), Failure("error", ERROR))
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
            assert [*said, *(url for url in asked if not url.startswith("data:"))] == [
                file.as_uri()
            ]
            assert (
                page.evaluate(
                    "[...document.links].filter(a => a.protocol === 'javascript:').length"
                )
                == 0
            )
            # as pandas writes line ends
            missing = [name for name in NAMES if name.replace("\n", "\\n") not in text]
            assert not missing, file
            if file == report:
                assert all(
                    each in text for each in (UNREADABLE, "1 unreadable image left out", ERROR)
                )


def test_the_browser_notices_names_that_are_not_escaped(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        f"<table><tr><td>{NAMES[1]}{NAMES[2]}{NAMES[4]}</td></tr></table>"
    )
    with opened(browser, (tmp_path / "page.html").as_uri(), bypass_csp=True) as (page, asked, said):
        assert page.evaluate("window.hacked") == 1
        assert "2" in said
        assert "http://127.0.0.1:9/x.png" in asked
