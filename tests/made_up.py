"""Sweeps of which nothing was run: predictions with known accuracies, collected and loaded as those of real runs."""

import numpy as np
import pandas as pd

from fixres_poc.analysis.collection import collect
from fixres_poc.analysis.record import TOP, Metrics, write_run
from fixres_poc.analysis.results import Results, load_results
from fixres_poc.config import run_state
from fixres_poc.config.atomic import write_atomically
from fixres_poc.config.paths import run_folder
from fixres_poc.config.settings import NOTEBOOKS, SweepSettings
from fixres_poc.config.validation import validate

PARTS = {"train": 0.5, "val": 0.1, "test": 0.4}
ADAPTATIONS = ["none", "head", "head_bn_stats", "head_bn", "control"]
KEYS = {
    "name": "told",
    "dataset": "synthetic",
    "train_sizes": [96],
    "test_sizes": [96, 128],
    "adaptations": ADAPTATIONS,
}
VAL, TEST = 100, 400


def predictions(adaptation: str, right: tuple[int, int], images: tuple[int, int]) -> pd.DataFrame:
    """The first of the images of val and test right, so that the better of two cells is right on more of them.

    Args:
        right: how many are right, in val and in test; the second guess is right for the others.
        images: how many there are.
    """
    number, split = np.r_[np.arange(images[0]), np.arange(images[1])], np.repeat(["val", "test"], images)
    hit = number < np.repeat(right, images)
    table = pd.DataFrame({name: np.full(len(number), -1) for name in TOP}).assign(top1=hit * 1, top2=1 - hit)
    names = [f"{part}/{i:03}" for part, i in zip(split, number, strict=True)]
    return table.assign(image=names, split=split, adaptation=adaptation, view="center", target=1, probability=0.123456)


def write(sweep: SweepSettings, name: str, metrics: Metrics, *tables: pd.DataFrame) -> None:
    """Leave what a run of the sweep would."""
    run = next(run for run in sweep.runs() if run.name == name)
    own = validate(NOTEBOOKS[run.notebook], run.parameters, "made up")
    write_run(run_folder(sweep.name, name), own, metrics, pd.concat(tables) if tables else None)


def write_error(sweep: str, name: str, text: str) -> None:
    """Leave what a failed run would."""
    write_atomically(run_folder(sweep, name) / "error.txt", text)


def loaded(sweep: SweepSettings) -> Results:
    """The results of a sweep's runs."""
    collect(sweep, run_state.outcomes(sweep))
    return load_results(sweep.name)


def same(value: float) -> dict[str, float]:
    """One accuracy with every adaptation."""
    return dict.fromkeys(ADAPTATIONS, value)


def told(
    at_96: dict[str, float],
    at_128: dict[str, float] | None,
    baseline: float = 0.5,
    seed1: tuple[dict[str, float], dict[str, float] | None] | None = None,
    **values: object,
) -> Results:
    """Results with these accuracies, the same on validation and on test; None at 128 stands for a failed run.

    `seed1` holds those of a second training.
    """
    sweep = validate(SweepSettings, KEYS | values | ({"seeds": [0, 1]} if seed1 else {}), "test")
    top1 = {"baseline": {"baseline": baseline}, "train96_test96_seed0": at_96, "train96_test128_seed0": at_128}
    if seed1:
        top1 |= {"train96_test96_seed1": seed1[0], "train96_test128_seed1": seed1[1]}
    metrics = Metrics(
        classes=["a", "b"],
        images={"train": 300, "val": VAL, "test": TEST},
        eval_images_per_second=50.0,
        seconds={"train": 30.0, "adapt": dict.fromkeys(ADAPTATIONS, 5.0)},
    )
    for run in sweep.runs()[1:]:
        accuracies = top1.get(run.name, {})
        if accuracies is None:
            write_error("told", run.name, "OutOfMemoryError: <b>full</b>\n")
        else:
            tables = [predictions(name, _right(value), (VAL, TEST)) for name, value in accuracies.items()]
            write(sweep, run.name, metrics, *tables)
    return loaded(sweep)


def _right(share: float) -> tuple[int, int]:
    return int((np.arange(VAL) / VAL < share).sum()), int((np.arange(TEST) / TEST < share).sum())


def shaped(classes: int, images: int, **values: object) -> Results:
    """The runs of a sweep on a data set of any shape, nothing trained: an accuracy that grows with the test size.

    Args:
        classes: number of classes, with names of many lengths; the first has half of the images, but for one each.
        images: number of images, of all splits; each class has one at least.
        values: the sweep's settings, beside a data set of one's own that isn't at hand.
    """
    rng = np.random.default_rng(0)
    sweep = validate(SweepSettings, {"name": "shape", "dataset": "birds", **values}, "shape.yml")
    names = [f"{label:03}-{'great_spotted_woodpecker_' * (label % 4)}bird" for label in range(classes)]
    label = np.r_[np.arange(classes), rng.choice(classes, images - classes) * rng.integers(0, 2, images - classes)]
    sizes = {"width": rng.integers(200, 4000, images), "height": rng.integers(200, 4000, images)}
    split = rng.choice(list(PARTS), images, p=list(PARTS.values()))
    split[:3] = list(PARTS)
    table = pd.DataFrame({"image": [f"{i:06}.jpg" for i in range(images)], "label": label, "split": split, **sizes})
    write_atomically(run_folder("shape", "images.csv"), table.to_csv(index=False))
    counts = {part: int((split == part).sum()) for part in PARTS}
    for run in sweep.runs()[2:]:
        adaptations = run.parameters.get("adaptations", ["baseline"])
        size = run.parameters.get("test_size", 160)
        metrics = Metrics(
            classes=names,
            images=counts,
            eval_images_per_second={"center": 3e6 / run.parameters.get("test_size", 224) ** 2},
            seconds={"train": 60.0, "adapt": dict.fromkeys(adaptations, 5.0)},
        )
        found = [_guesses(table, classes, name, 1 - 20 / size + i / 100, rng) for i, name in enumerate(adaptations)]
        write(sweep, run.name, metrics, *([] if run.notebook == "03_train" else found))
    return loaded(sweep)


def _guesses(
    images: pd.DataFrame, classes: int, adaptation: str, accuracy: float, rng: np.random.Generator
) -> pd.DataFrame:
    tested = images[images["split"] != "train"].rename(columns={"label": "target"})
    others = {name: (tested["target"] + place) % classes for place, name in enumerate(TOP)}
    table = tested.assign(**others, adaptation=adaptation, view="center")
    table.loc[:, TOP[classes:]] = -1
    sure = rng.uniform(0.3, 1, len(table))
    wrong = (rng.uniform(size=len(table)) > accuracy) & (classes > 1)
    table.loc[wrong, ["top1", "top2"]] = table.loc[wrong, ["top2", "top1"]].to_numpy()
    return table.assign(probability=sure)
