"""A sweep of one training and one pair, run without notebooks, for tests of what is done with finished runs."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import COLOURS, save_picture

from fixres_poc import datasets, pairs, results, training
from fixres_poc.config import ADAPTATIONS, PairSettings, SweepSettings, home, run_folder
from fixres_poc.evaluation import accelerator
from fixres_poc.reading import validate

SIZES = {"pairs": [[48, 64]], "batch_size": 6, "epochs": 1, "adapt_epochs": 1, "adapt_learning_rate": 0.05}


def make(backbone: str = "efficientnet_lite0") -> Path:
    """Put a finished sweep named tiny into the test's own home; returns its pair's folder."""
    shutil.copytree(_made(backbone) / "home", home(), dirs_exist_ok=True)
    return run_folder("tiny", "train48_test64_seed0")


def pictures(backbone: str = "efficientnet_lite0") -> Path:
    """Folder of the sweep's pictures: 12 of each class."""
    return _made(backbone) / "pictures"


@functools.cache
def _made(backbone: str) -> Path:
    """The sweep is run once; its pictures, of 3 classes, lie in `pictures`."""
    folder = Path(tempfile.mkdtemp(prefix="small_run"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, colour in COLOURS.items():
        for index in range(12):
            save_picture(folder / "pictures" / name / f"{index:02d}.png", colour, seed=len(name) * 100 + index)
    values = {**SIZES, "dataset": str(folder / "pictures"), "backbone": backbone, "adaptations": list(ADAPTATIONS)}
    sweep = validate(SweepSettings, values | {"name": "tiny"}, "tiny.yml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(folder / "home"))
        _run(sweep, PairSettings(**sweep.runs()[-1].parameters))
    return folder


def _run(sweep: SweepSettings, settings: PairSettings) -> None:
    train, engine, found = settings.train_settings(), accelerator("fp32"), datasets.load(settings)
    trained = training.train_or_load(train, found, engine)
    adapted = pairs.adapt_pair(trained, found, settings, engine)
    table = pairs.classify(trained.model, adapted, found, settings, engine).table
    folder = run_folder("tiny", settings.run_name)
    pairs.save(adapted, folder, settings, found.classes)
    metrics = {"classes": found.classes, "pictures": found.counts(), "data": found.fingerprint()}
    results.write_run(run_folder("tiny", train.run_name), train, metrics)
    results.write_run(folder, settings, metrics, table)
    results.collect(sweep)
