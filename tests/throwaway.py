"""Notebooks that train nothing, for tests of what runs them; each appends its run's name to $FIXRES_HOME/ran.txt.

A file `broken` in $FIXRES_HOME makes the pair at test size 96 fail, a file `slow` makes trainings wait until it goes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from fixres_poc import config, engine, records, results
from fixres_poc.config import SweepSettings, home, run_folder
from fixres_poc.files import write_atomically
from fixres_poc.reading import validate
from fixres_poc.runner import OUTPUTS

START = """
import os, time
from pathlib import Path
from fixres_poc.config import InputError, home
folder = Path(os.environ["FIXRES_PROGRESS"]).parent
with open(home() / "ran.txt", "a") as ran:
    print(folder.name, file=ran)
"""
MIDDLE = {
    "03_train": 'while (home() / "slow").exists():\n    time.sleep(0.1)',
    "04_fixres": 'if test_size == 96 and (home() / "broken").exists():\n    raise InputError("test_size = 96: broken")',
}
SWEEP = {"name": "tiny", "dataset": "synthetic", "pairs": [[64, 64], [64, 96]]}
PARTS = {"train": 0.5, "val": 0.1, "test": 0.4}
MODELS: dict[str, type[config.Settings]] = {
    "02_baseline": config.BaselineSettings,
    "03_train": config.TrainSettings,
    "04_fixres": config.PairSettings,
}
RUNS = ("state_of_the_art", "dataset", "baseline", "train64_seed0", "train64_test64_seed0", "train64_test96_seed0")


def write_notebook(file: Path, *sources: str) -> Path:
    """A notebook of one markdown cell and these code cells, the first tagged as parameters."""
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "text", "metadata": {}, "source": "Text."}]
    for index, source in enumerate(sources):
        tags = {"tags": ["parameters"]} if index == 0 else {}
        cell = {"cell_type": "code", "id": f"code{index}", "metadata": tags, "source": source}
        cells.append(cell | {"outputs": [], "execution_count": None})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return file


def write_notebooks(folder: Path) -> None:
    """The five notebooks of a sweep."""
    for stem, files in OUTPUTS.items():
        end = "\n".join(f'(folder / "{name}").write_text("{{}}")' for name in reversed(files))
        write_notebook(folder / f"{stem}.ipynb", "train_size = test_size = 0", START, MIDDLE.get(stem, "pass"), end)


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let runs/ and reports/ lie in a folder, with throw-away notebooks, and make pictures and report stand-ins."""
    monkeypatch.setenv("FIXRES_HOME", str(folder))
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(folder / "notebooks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_notebooks(folder / "notebooks")
    monkeypatch.setattr(engine, "prepare_data", prepare_data)
    monkeypatch.setattr(engine, "render", render)


def prepare_data(sweep: SweepSettings) -> str:
    """Stands in for the preparation of pictures."""
    return "0123456789abcdef"


def render(sweep: SweepSettings) -> Path:
    """Stands in for the report: appends a line to its page."""
    page = home() / "reports" / sweep.name / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    with open(page, "a", encoding="utf-8") as file:
        print(json.dumps(engine.failures(sweep)), file=file)
    return page


def settings() -> SweepSettings:
    """One training, two pairs."""
    return validate(SweepSettings, SWEEP, "tiny.yml")


def write_results(classes: int, pictures: int, **sweep: object) -> SweepSettings:
    """The runs of a sweep on a data set of any shape, nothing trained: an accuracy that grows with the test size.

    Args:
        classes: number of classes, with names of many lengths; the first has half of the pictures, but for one each.
        pictures: number of pictures, of all splits; each class has one at least.
        sweep: its settings, beside a data set of one's own that isn't at hand.
    """
    rng = np.random.default_rng(0)
    settings = validate(SweepSettings, {"name": "shape", "dataset": "birds", **sweep}, "shape.yml")
    names = [f"{label:03}-{'great_spotted_woodpecker_' * (label % 4)}bird" for label in range(classes)]
    label = np.r_[np.arange(classes), rng.choice(classes, pictures - classes) * rng.integers(0, 2, pictures - classes)]
    sizes = {"width": rng.integers(200, 4000, pictures), "height": rng.integers(200, 4000, pictures)}
    split = rng.choice(list(PARTS), pictures, p=list(PARTS.values()))
    split[:3] = list(PARTS)
    table = pd.DataFrame({"picture": [f"{i:06}.jpg" for i in range(pictures)], "label": label, "split": split, **sizes})
    write_atomically(run_folder("shape", "pictures.csv"), table.to_csv(index=False))
    counts = {part: int((split == part).sum()) for part in PARTS}
    for run in settings.runs():
        if run.notebook not in MODELS:
            continue
        adaptations = run.parameters.get("adaptations", ["baseline"])
        speed = 3e6 / run.parameters.get("test_size", 224) ** 2
        metrics = {"classes": names, "pictures": counts, "eval_images_per_second": {"center": speed}}
        metrics |= {"seconds": {"train": 60.0, "adapt": dict.fromkeys(adaptations, 5.0)}}
        found = [
            _guesses(table, classes, each, 1 - 20 / run.parameters.get("test_size", 160) + place / 100, rng)
            for place, each in enumerate(adaptations)
        ]
        values = validate(MODELS[run.notebook], run.parameters, "shape.yml")
        results.write_run(
            run_folder("shape", run.name), values, metrics, None if run.notebook == "03_train" else pd.concat(found)
        )
    results.collect(settings)
    return settings


def _guesses(
    pictures: pd.DataFrame, classes: int, adaptation: str, accuracy: float, rng: np.random.Generator
) -> pd.DataFrame:
    tested = pictures[pictures["split"] != "train"].rename(columns={"label": "target"})
    others = {name: (tested["target"] + place) % classes for place, name in enumerate(records.TOP)}
    table = tested.assign(**others, adaptation=adaptation, view="center")
    table.loc[:, records.TOP[classes:]] = -1
    sure = rng.uniform(0.3, 1, len(table))
    wrong = (rng.uniform(size=len(table)) > accuracy) & (classes > 1)
    table.loc[wrong, ["top1", "top2"]] = table.loc[wrong, ["top2", "top1"]].to_numpy()
    return table.assign(probability=sure)


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


if __name__ == "__main__":  # a whole sweep with the stand-ins, in a process that tests can kill; [profile]
    engine.prepare_data = prepare_data
    engine.render = render
    try:
        sys.exit(0 if engine.run_sweep(settings(), None, *sys.argv[1:]) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
