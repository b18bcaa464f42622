"""A sweep of one training and one pair, run without notebooks, for tests of finished runs."""

import atexit
import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import save_colours

from fixres_poc.analysis import collection, record
from fixres_poc.config.files import home, run_folder
from fixres_poc.config.run_state import outcomes
from fixres_poc.config.settings import ADAPTED, PairSettings
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import adaptations, stage1
from fixres_poc.model.device import accelerator_for
from fixres_poc.report import sentences

SIZES = {
    "pairs": [[48, 64]],
    "batch_size": 6,
    "epochs": 1,
    "adapt_epochs": 1,
    "adapt_learning_rate": 0.05,
    "affine_factor": 1.0,
}
SIZES |= {"head_start": "random"}  # so that the answers are not all certain


FRAMED = {"pairs": [[32, 48]], "crop_pct": [0.875, 1.0]}


def make(backbone: str = "efficientnet_lite0", framed: bool = False) -> Path:
    """Put a finished sweep named tiny into the test's own home; returns its pair's folder.

    Args:
        framed: with `FRAMED`.
    """
    shutil.copytree(_made(backbone, framed) / "home", home(), dirs_exist_ok=True)
    return run_folder("tiny", f"train{'32_test48' if framed else '48_test64'}_seed0")


def images() -> Path:
    """Folder of the sweep's images: 12 of each class."""
    return _made("efficientnet_lite0", False) / "images"


@functools.cache
def _made(backbone: str, framed: bool) -> Path:
    """The sweep is run once; its images, of 3 classes, lie in `images`."""
    folder = Path(tempfile.mkdtemp(prefix="small_run"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    values = {
        **SIZES,
        **(FRAMED if framed else {}),
        "dataset": str(save_colours(folder / "images")),
        "backbone": backbone,
        "adaptations": ["none", "equalised", *ADAPTED[: -1 if "lite" not in backbone else None]],
        "name": "tiny",
    }
    sweep = validate(SweepSettings, values, "tiny.yml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(folder / "home"))
        _run(sweep, PairSettings(**sweep.runs()[-1].parameters))
    return folder


def _run(sweep: SweepSettings, settings: PairSettings) -> None:
    training, accelerator, data = (
        settings.train_settings(),
        accelerator_for("fp32"),
        load_dataset(settings),
    )
    trained = stage1.train_or_load(training, data, accelerator)
    folder, tables = run_folder("tiny", settings.run_name), []
    adapted, _ = adaptations.adapt_framings(trained, data, settings, accelerator)
    for value, each in adapted.items():
        own = settings.framed(value)
        found = adaptations.predict_pair(trained.model, each, data, own, accelerator)
        tables.append(found.table)
        adaptations.save_tails(each, trained.model, folder, own, data.classes)
    metrics = record.Metrics(classes=data.classes, images=data.counts(), data=data.fingerprint())
    of_training = replace(metrics, epochs=len(trained.history), steps=trained.steps)
    record.write_run(run_folder("tiny", training.run_name), training, of_training)
    record.write_run(folder, settings, metrics, pd.concat(tables))
    collection.collect(sweep, outcomes(sweep))
    sentences.write(sweep.name)
