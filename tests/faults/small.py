"""The smallest sweep with real training, adaptation, evaluation and report, to disturb.

Its notebooks hold the calls of the real ones without their figures, so that a sweep takes half a
minute.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import throwaway

from fixres_poc.config.files import REPOSITORY

RAN = """
import os
from pathlib import Path
from fixres_poc.config.files import home
with open(home() / "ran.txt", "a") as ran:
    print(Path(os.environ["FIXRES_PROGRESS"]).parent.name, file=ran)
"""
START = """
from fixres_poc.analysis.record import Metrics, write_run
from fixres_poc.config.settings import BaselineSettings, DatasetSettings, OverviewSettings
from fixres_poc.config.settings import PairSettings, TrainSettings
from fixres_poc.config.files import run_folder
from fixres_poc.config.validation import read_parameters
settings = read_parameters({}, globals())
folder = run_folder(settings.sweep, settings.run_name)
"""
IMAGES = """
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method.adaptations import adapt_pair, predict_pair, save_tails
from fixres_poc.method.linear_probe import train_probes
from fixres_poc.method.stage1 import load_training, train_or_load
data = load_dataset(settings)
facts = {"data": data.fingerprint(), "classes": data.classes, "images": data.counts()}
"""
BASELINE = """
done = train_probes(settings, data)
write_run(folder, settings, Metrics(**facts, seconds=done.seconds), done.predictions)
"""
TRAINING = """
trained = train_or_load(settings, data)
epochs, digest = len(trained.history), trained.digest
facts |= {"memory": trained.memory, "seconds": trained.seconds, "epochs": epochs}
measured = Metrics(**facts, steps=trained.steps, checkpoint=digest)
write_run(folder, settings, measured)
"""
PAIR = """
from fixres_poc.model.device import accelerator_for
accelerator = accelerator_for(settings.precision)
trained = load_training(settings.train_settings(), data, accelerator)
adapted = adapt_pair(trained, data, settings, accelerator)
classified = predict_pair(trained.model, adapted, data, settings, accelerator)
seconds = {"adapt": adapted.seconds, "evaluate": classified.seconds}
save_tails(adapted, trained.model, folder, settings, data.classes)
measured = Metrics(**facts, seconds=seconds, checkpoint=trained.digest)
write_run(folder, settings, measured, classified.table)
"""
LIGHT = "write_run(folder, settings, Metrics())"
RESULTS = "from fixres_poc.report import sentences\nsentences.read(report)"
SOURCES = {
    "00_state_of_the_art": (START.format("OverviewSettings"), LIGHT),
    "01_dataset_eda": (START.format("DatasetSettings"), LIGHT),
    "02_baseline": (START.format("BaselineSettings"), IMAGES, BASELINE),
    "03_train": (START.format("TrainSettings"), IMAGES, TRAINING),
    "04_fixres": (START.format("PairSettings"), IMAGES, PAIR),
    "05_results": (RESULTS,),
}
SWEEP = """
dataset: {}
image_limit: 60
pairs: [[32, 48]]
adaptations: [none, head_bn]
epochs: 2
adapt_epochs: 1
batch_size: 16
learning_rate: 0.03
"""
SITE = Path(__file__).with_name("site")
RUNS = ("baseline", "dataset", "state_of_the_art", "train32_seed0", "train32_test48_seed0")
MEASURED = ["train_seconds", "adapt_seconds", "eval_images_per_second", "peak_memory_bytes"]


def lay(home: Path, dataset: str = "synthetic") -> Path:
    """Notebooks and sweep file in a home."""
    for stem, sources in SOURCES.items():
        throwaway.write_notebook(home / "notebooks" / f"{stem}.ipynb", "pass", RAN, *sources)
    (home / "small.yml").write_text(SWEEP.format(dataset), encoding="utf-8")
    (home / "runs").mkdir(exist_ok=True)
    return home


def environment(home: Path, **values: str) -> dict[str, str]:
    own = {
        "FIXRES_HOME": str(home),
        "FIXRES_NOTEBOOKS": str(home / "notebooks"),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{SITE}",
        "FAULT_FOLDER": str(home),
        "OMP_NUM_THREADS": "1",
    }
    given = {key: value for key, value in os.environ.items() if key != "FIXRES_PROGRESS"}
    return given | own | values


def start(
    home: Path, at: str = "", before: Sequence[str] = (), **values: str
) -> "subprocess.Popen[str]":
    """A sweep at work, to be held `at` a call (see sitecustomize)."""
    for file in ("held", "go"):
        (home / file).unlink(missing_ok=True)
    held = {"FAULT_AT": at} if at else {}
    command = ["-m", "fixres_poc", "sweep", str(home / "small.yml"), "--cores", "2"]
    return subprocess.Popen(
        [*before, sys.executable, *command],
        env=environment(home, **held, **values),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def finish(
    home: Path, code: int = 0, before: Sequence[str] = (), variables: dict[str, str] | None = None
) -> str:
    """Run a sweep to its end; returns what it said."""
    process = start(home, before=before, **(variables or {}))
    said = process.communicate(timeout=300)[0]
    assert process.returncode == code, said
    return said


def held(home: Path) -> int:
    """Number of the process that is held, once it is."""
    throwaway.until((home / "held").exists, 90)
    return int((home / "held").read_text())


def assert_same_results(home: Path, other: Path) -> None:
    """All but times, speeds and memory is equal to the bit; nothing half-written lies about."""
    reports = home / "reports/small", other / "reports/small"
    ours, theirs = (pd.read_csv(each / "results.csv").drop(columns=MEASURED) for each in reports)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert (ours["status"] == "done").all()
    ours, theirs = (pd.read_parquet(each / "predictions.parquet") for each in reports)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert not [file for run in RUNS for file in (home / "runs/small" / run).glob(".*")]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of a sweep that nothing disturbed."""
    home = lay(tmp_path_factory.mktemp("undisturbed"))
    finish(home)
    assert throwaway.ran(home) == sorted([*RUNS, "results"])
    return home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh home."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("FIXRES_HOME", str(folder))
    return lay(folder)
