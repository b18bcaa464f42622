"""A sweep of one training and one pair, run without notebooks, for tests of finished runs."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

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

SIZES = {
    "pairs": [[48, 64]],
    "batch_size": 6,
    "epochs": 1,
    "adapt_epochs": 1,
    "adapt_learning_rate": 0.05,
    "affine_factor": 1.0,
}
SIZES |= {"head_start": "random"}  # so that the answers are not all certain


def make(backbone: str = "efficientnet_lite0") -> Path:
    """Put a finished sweep named tiny into the test's own home; returns its pair's folder."""
    shutil.copytree(_made(backbone) / "home", home(), dirs_exist_ok=True)
    return run_folder("tiny", "train48_test64_seed0")


def images(backbone: str = "efficientnet_lite0") -> Path:
    """Folder of the sweep's images: 12 of each class."""
    return _made(backbone) / "images"


@functools.cache
def _made(backbone: str) -> Path:
    """The sweep is run once; its images, of 3 classes, lie in `images`."""
    folder = Path(tempfile.mkdtemp(prefix="small_run"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    values = {
        **SIZES,
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
    adapted = adaptations.adapt_pair(trained, data, settings, accelerator)
    table = adaptations.predict_pair(trained.model, adapted, data, settings, accelerator).table
    folder = run_folder("tiny", settings.run_name)
    adaptations.save_tails(adapted, trained.model, folder, settings, data.classes)
    metrics = record.Metrics(classes=data.classes, images=data.counts(), data=data.fingerprint())
    record.write_run(run_folder("tiny", training.run_name), training, metrics)
    record.write_run(folder, settings, metrics, table)
    collection.collect(sweep, outcomes(sweep))
