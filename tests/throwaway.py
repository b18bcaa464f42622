"""Notebooks that train nothing; each appends its run's name to $FIXRES_HOME/ran.txt.

A file `broken` in $FIXRES_HOME makes the pair at test resolution 96 fail, a file `slow` makes
trainings wait until it goes.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fixres_poc.config.files import home
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.report.pages import TABLES
from fixres_poc.sweep import execution, plan, reporting
from fixres_poc.sweep.progress import Forecast
from fixres_poc.sweep.snakemake import LOCAL_PROFILE, Shares

START = """
import hashlib, json, os, time
from pathlib import Path
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import home
folder = Path(os.environ["FIXRES_PROGRESS"]).parent
wanted = json.loads((folder / "settings.json").read_text())["wanted"]
used = json.dumps({"used": wanted | {"checkpoint": hashlib.sha256(b"").hexdigest()}})
with open(home() / "ran.txt", "a") as ran:
    print(folder.name, file=ran)
"""
MIDDLE = {
    "03_train": """while (home() / "slow").exists():
    time.sleep(0.1)
(folder / "checkpoint.safetensors").touch()""",
    "04_fixres": """if test_size == 96 and (home() / "broken").exists():
    raise InputError("test_size = 96: broken")""",
}
SWEEP = {"name": "tiny", "dataset": "synthetic", "pairs": [[64, 64], [64, 96]]}
RUNS = (
    "state_of_the_art",
    "dataset",
    "baseline",
    "train64_seed0",
    "train64_test64_seed0",
    "train64_test96_seed0",
)


def write_notebook(file: Path, *sources: str) -> Path:
    """A notebook of one markdown cell and these code cells, the first tagged as parameters."""
    cell: dict[str, Any] = {"cell_type": "code", "outputs": [], "execution_count": None}
    tags: list[dict[str, Any]] = [{"tags": ["parameters"]}, *[{}] * len(sources)]
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "id": "text", "metadata": {}, "source": "Text."}
    ]
    for index, source in enumerate(sources):
        cells.append(cell | {"id": f"code{index}", "metadata": tags[index], "source": source})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    file.write_text(json.dumps(content))
    return file


def write_notebooks(folder: Path) -> None:
    """The five notebooks of a sweep."""
    for stem, notebook in [*NOTEBOOKS.items()][:-1]:
        lines = [f'(folder / "{name}").write_text(used)' for name in reversed(notebook.outputs)]
        own, end = MIDDLE.get(stem, "pass"), "\n".join(lines)
        write_notebook(folder / f"{stem}.ipynb", "train_size = test_size = 0", START, own, end)


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let runs/ and reports/ lie in a folder with throw-away notebooks; images are stand-ins."""
    monkeypatch.setenv("FIXRES_HOME", str(folder))
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(folder / "notebooks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_notebooks(folder / "notebooks")
    monkeypatch.setattr(execution, "prepare_data", prepare_data)
    monkeypatch.setattr(reporting, "render", render)
    monkeypatch.setattr(plan, "forecast", forecast)


def prepare_data(_: SweepSettings) -> str:
    """Stands in for the preparation of images."""
    return "0123456789abcdef"


def forecast(sweep: SweepSettings, shared: Shares) -> Forecast:
    """Stands in for the measurement of this machine's speed."""
    return Forecast(sweep, dict.fromkeys([run.name for run in sweep.runs()], 1.0), shared.jobs)


def render(sweep: SweepSettings) -> Path:
    """Stands in for the report: a page that says what it was made from, and a line in a list."""
    page = home() / "reports" / sweep.name / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f'content="{reporting.made_from(sweep)}"</html>')
    for name in TABLES:
        (page.parent / name).touch()
    with open(home() / "rendered.txt", "a", encoding="utf-8") as file:
        print(sweep.name, file=file)
    return page


def tiny(**values: object) -> SweepSettings:
    """One training, two pairs; with other values where they are given."""
    return validate(SweepSettings, SWEEP | values, "tiny.yml")


def ran(home: Path) -> list[str]:
    """Runs that were begun since the last question."""
    file = home / "ran.txt"
    names = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(names)


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def processes() -> list[psutil.Process]:
    """Every other process of this user that works for the present $FIXRES_HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("FIXRES_HOME") == os.environ["FIXRES_HOME"]
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


# a whole sweep with the stand-ins, in a process that tests can kill; argument: a profile
if __name__ == "__main__":
    execution.prepare_data = prepare_data  # type: ignore[assignment]
    reporting.render = render
    plan.forecast = forecast
    try:
        profile = sys.argv[1] if sys.argv[1:] else LOCAL_PROFILE
        sys.exit(0 if execution.run_sweep(tiny(), profile=profile) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
