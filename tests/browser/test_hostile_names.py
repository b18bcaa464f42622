"""Names of classes and images that try to be more than text, in every page, in a real browser."""

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


def predictions(data: ImageDataset, adaptation: str, wrong: int) -> pd.DataFrame:
    """Every image is right, but for number `wrong` of each class, taken for the next class."""
    table = data.table[data.table["split"] != "train"]
    missed = table.groupby(["label", "split"]).cumcount() == wrong
    made = table[["image", "split"]].assign(target=table["label"], probability=0.75, view="center")
    for place in range(5):
        made[f"top{place + 1}"] = (table["label"] + place + missed) % len(data.classes)
    return made.assign(adaptation=adaptation, test_size=64, crop_pct=0.875)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notebooks 01 and 05, run on images of hostile names; the runs between them are made up."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / NAMES[1]
    for index, name in enumerate(NAMES):
        for number in range(5):
            file, colour = folder / name / f"{name}{number}.png", (30 * index, 99, 200)
            save_image(file, colour, seed=9 * index + number)
    (folder / NAMES[0] / UNREADABLE).write_bytes(b"")
    keys: dict[str, Any] = {"name": "evil", "dataset": str(folder), "pairs": [[64, 64], [64, 96]]}
    keys |= {"skip_unreadable": True, "adaptations": ["none", "head"]}
    sweep = validate(SweepSettings, keys, "test")
    execution.lay_out(sweep, execution.prepare_data(sweep))
    assert run_job([run_folder("evil", "dataset") / "settings.json"]) == {}
    data = load_dataset(sweep.data_settings()).without([f"{NAMES[0]}/{UNREADABLE}"])
    metrics = Metrics(classes=data.classes, images=data.counts(), data=data.fingerprint())
    tables = [predictions(data, name, wrong) for wrong, name in enumerate(sweep.adaptations)]
    write(sweep, "train64_test64_seed0", metrics, *tables)
    notebook = json.loads(notebook_path("04_fixres").read_text())
    run_state.record_notebook(run_folder("evil", "train64_test64_seed0"), notebook)
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
            assert (page.evaluate("window.hacked"), said) == (None, [])
            assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
            links = page.evaluate("[...document.links].map(each => each.protocol)")
            assert "javascript:" not in links
            if file == report:
                shown = [name.replace("\n", "\\n") for name in NAMES]  # as pandas writes line ends
                shown += [UNREADABLE, "Unreadable images left out: 1", ERROR]
                assert not [words for words in shown if words not in text]
