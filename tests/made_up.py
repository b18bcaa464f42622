"""Sweeps of which nothing was run: predictions with known accuracies, collected and loaded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from fixres_poc.analysis.answers import decide
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.collection import collect
from fixres_poc.analysis.comparisons import Row
from fixres_poc.analysis.record import TOP, Metrics, write_run
from fixres_poc.analysis.results import Results, load_results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure
from fixres_poc.config.files import run_folder, write_atomically
from fixres_poc.config.geometry import CROP_PCT
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.settings import ADAPTED, CONTROL, SPLITS, TrainSettings, several
from fixres_poc.config.sweep_settings import Run, SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.method.epochs import number_of_epochs
from fixres_poc.report import sentences

ADAPTATIONS = ["none", "head", "head_bn_stats", "head_bn"]
SHOWN = ("02_baseline", "04_fixres")
TESTED = ("val", "test", "photos")
VAL, TEST, PHOTOS = IMAGES = 200, 400, 200
COUNTS = {"train": 300, "val": VAL, "test": TEST, "photos": PHOTOS}
Top1 = dict[str, float]
CLAIM: dict[tuple[int, int], Top1 | None] = {
    (96, 96): dict.fromkeys(ADAPTATIONS, 0.60),
    (96, 112): dict.fromkeys(ADAPTATIONS, 0.65) | {"head_bn": 0.70, "control_head_bn": 0.66},
    (112, 112): dict.fromkeys(ADAPTATIONS, 0.66),
}
"""Trained at 96 px, adapted at 112 px and better there than trained at 112 px."""
KNOWN = {"better": (0.02, 0.04), "as good": (-0.005, 0.02), "worse": (-0.04, -0.02)}
KNOWN |= {"can't tell": (-0.03, 0.03), "not run": (math.nan, math.nan)}


def predictions(
    adaptation: str,
    right: Sequence[int],
    images: Sequence[int],
    test_size: int = 96,
    crop_pct: float = CROP_PCT,
) -> pd.DataFrame:
    """The first images of each part are right: the better of two cells is right on more.

    Args:
        right: how many are right, in each of `TESTED`; the second guess is right for the others.
        images: how many there are.
    """
    number = np.concatenate([np.arange(count) for count in images])
    split, hit = np.repeat(TESTED[: len(images)], images), number < np.repeat(right, images)
    names = [f"{part}/{i:03}" for part, i in zip(split, number, strict=True)]
    table = pd.DataFrame({"image": names, "split": split, "target": 1, "probability": 0.123456})
    table = table.assign(adaptation=adaptation, test_size=test_size, crop_pct=crop_pct)
    table[TOP] = -1
    return table.assign(view="center", top1=hit * 1, top2=1 - hit)


def write(sweep: SweepSettings, name: str, metrics: Metrics, *tables: pd.DataFrame) -> None:
    """Leave what a run of the sweep would."""
    run = next(run for run in sweep.runs() if run.name == name)
    own = validate(NOTEBOOKS[run.notebook].settings, run.parameters, "made up")
    write_run(run_folder(sweep.name, name), own, metrics, pd.concat(tables) if tables else None)


def write_error(sweep: str, name: str, text: str) -> None:
    """Leave what a failed run would."""
    run_state.end(run_folder(sweep, name), Failure("error", text.splitlines()[0]))


def loaded(sweep: SweepSettings) -> Results:
    """The results of a sweep's runs."""
    collect(sweep, run_state.outcomes(sweep))
    return load_results(sweep.name)


def named(run: Run) -> list[str]:
    """What a run classifies with: the probe, or adaptations and, if sizes differ, controls."""
    given, own = run.parameters, list(run.parameters.get("adaptations", ["probe"]))
    differ = run.notebook == "04_fixres" and given["train_size"] != given["test_size"]
    return own + [CONTROL + name for name in own if differ and name in ADAPTED]


def measured(run: Run, classes: list[str], images: dict[str, int]) -> Metrics:
    """What a run has measured: 3e6 pixels/s; 4 s for the probe, 30 s to train, 5 s to adapt.

    A training adapts its controls in 2 s.
    """
    given = run.parameters
    one = {"learning_rate": 0.01, "affine_factor": 1.0, "epochs": given.get("adapt_epochs", 2)}
    facts: dict[str, Any] = {"choices": {"adapt": dict.fromkeys(ADAPTED, one)}}
    facts["seconds"] = {"adapt": dict.fromkeys(given.get("adaptations", ADAPTED), 5.0)}
    facts["peak_memory_bytes"] = 5
    if run.notebook == "03_train":
        facts["choices"] |= {"learning_rate": 0.01, "batch_norm": "train"}
        facts["epochs"] = number_of_epochs(TrainSettings(**given), images)
        facts["steps"] = 250 * facts["epochs"]
        facts["seconds"] = {"probe": 4.0, "train": 30.0, "adapt": dict.fromkeys(ADAPTED, 2.0)}
    sizes = {"center": given.get("test_size", 224)}
    sizes |= {str(size): size for size in given.get("test_sizes", [])}
    speed = {key: 3e6 / size**2 for key, size in sizes.items()}
    return Metrics(classes=classes, images=images, eval_images_per_second=speed, **facts)


def same(value: float) -> Top1:
    """One accuracy with every adaptation."""
    return dict.fromkeys(ADAPTATIONS, value)


def grid(
    *seeds: Mapping[tuple[int, int], Top1 | None],
    once: Top1 | None = None,
    photos: float = 0,
    equal_flops: Top1 | None = None,
    **values: Any,
) -> Results:
    """Results with these accuracies, the same on validation and on test; images of 500 x 400 px.

    Args:
        seeds: of each training, by train and test resolution and adaptation, such as `head_bn` or,
            at another crop_pct than all the others, `head_bn@0.71`; None stands for a failed run.
            Controls that are not named are as good as `none`.
        once: of the linear probe (0.5 if not given), and of zero_shot where there is one, at every
            test resolution.
        photos: if not 0, accuracies on a second test part of that name, as a share of those on
            test.
        equal_flops: with every adaptation of train = test that is cut to equal FLOPs; None: as
            long a training has.
        values: further settings of the sweep.
    """
    settings = {
        "name": "told",
        "dataset": "synthetic",
        "pairs": list(seeds[0]),
        "adaptations": ADAPTATIONS,
        "epochs": 4,
        "seeds": list(range(len(seeds))),
        "extra_test": {"name": "photos", "folder": "x"} if photos else None,
    }
    sweep = validate(SweepSettings, settings | values, "test")
    shares = [1, 1, photos] if photos else [1, 1]
    listed = pd.DataFrame({"image": ["0.jpg", "1.jpg", "2.jpg"], "split": SPLITS, "label": 0})
    listed = listed.assign(width=500, height=400)
    write_atomically(run_folder("told", "images.csv"), listed.to_csv(index=False))
    for run in sweep.runs()[1:]:
        given, top1 = run.parameters, {"probe": 0.5} | (once or {})
        if run.notebook == "04_fixres":
            own = seeds[sweep.seeds.index(given["seed"])][given["train_size"], given["test_size"]]
            if own is None:
                write_error("told", run.name, "OutOfMemoryError: <b>full</b>\n")
                continue
            if given["equal_flops"]:
                own = equal_flops or own
            top1 = {name: own.get(name, own["none"]) for name in named(run)}
            top1 |= {name: value for name, value in own.items() if "@" in name}
        sizes = given.get("test_sizes") or [given.get("test_size", 0)]
        names = [name for name in top1 if "@" not in name]
        tables = []
        for size, name, crop in product(sizes, names, several(given.get("crop_pct", 0))):
            value = top1.get(f"{name}@{crop}", top1[name])
            images = IMAGES[: len(shares)]
            right = [round(n * value * share) for n, share in zip(images, shares, strict=True)]
            tables.append(predictions(name, right, images, size, crop))
        shown = tables if run.notebook in SHOWN else []
        write(sweep, run.name, measured(run, ["a", "b"], COUNTS), *shown)
    return loaded(sweep)


def told(at_96: Top1, at_128: Top1 | None, *seed1: Top1 | None, **values: Any) -> Results:
    """A `grid` trained at 96 px, tested at 96 and 128 px; `seed1` is a second training."""
    pairs, trainings = [(96, 96), (96, 128)], [(at_96, at_128), *([seed1] if seed1 else [])]
    return grid(*(dict(zip(pairs, each, strict=True)) for each in trainings), **values)


def with_facts(found: Results, settings: Mapping[str, Any] | None = None, **facts: Any) -> Results:
    """The results with other settings and other facts in sweep.json."""
    facts["settings"] = found.sweep["settings"] | (settings or {})
    return replace(found, sweep=found.sweep | facts)


def decided(found: Results) -> dict[str, Any]:
    """What answers.json says of the results."""
    return sentences.told(decide(found))


def row(verdict: str, cell: Cell | None = None) -> Row:
    """A primary row with this verdict."""
    low, high = KNOWN[verdict]
    middle = (low + high) / 2
    error = (high - low) / 2 / 1.959964
    found = Difference(middle, low, high, error, centre=middle, seeds=2)
    cell = cell or Cell(96, 112, "head_bn")
    return Row(cell, Cell(112, 112, "none", crop_pct=0.75), found, 0.95, 0.01, (0.5, 0.5))
