"""`make bench-peers`: the project against fastai and the usual loop; rows of docs/bench.md.

Runs in an environment that has fastai beside the project. Network, weights, images, sizes, batch
size, epochs and rates are the same; the rest is what each does by itself.

`python -m benchmarks.peers FILE...`, settings as JSON: a grid as fastai's user would do it, who
trains once a train size, and from there for every test resolution with all but the last layers
frozen.
"""

import copy
import functools
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.vision import augment
from fastai.vision.data import ImageDataLoaders
from torch import nn

from benchmarks import bench, measure, processes, usual
from benchmarks.processes import Result
from fixres_poc.analysis.cells import read_table
from fixres_poc.config.files import home, write_atomically
from fixres_poc.config.settings import BASELINE_SIZE, Adaptation, PairSettings, several
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.method.epochs import number_of_epochs
from fixres_poc.model.backbones import create, mean_std
from fixres_poc.model.trunk import last_batch_norm

TOP1 = "peers.json"
NAMES: tuple[Adaptation, ...] = ("none", "head", "head_bn")  # the adaptations that fastai has
FROZEN = {"adaptations": list(NAMES), "adapt_batch_norm": "frozen"}  # as its BnFreeze does
GRID = processes.GRID | processes.SAME | FROZEN


def loaders(
    data: ImageDataset, settings: PairSettings, size: int, train: str, test: str, crops: bool
) -> DataLoaders:
    """Loaders of two splits; `crops`: random ones for training, and not stage 2's framing."""
    parts = [data.only(train), data.only(test)]
    names = [str(path) for part in parts for path in part.paths]
    labels = [data.classes[label] for part in parts for label in part.table["label"]]
    held_out = [number for number, part in enumerate(parts) for _ in part.paths]
    table = pd.DataFrame(
        {"file": names, "label": labels, "held_out": [bool(each) for each in held_out]}
    )
    framing = [augment.Resize(int(256 / 224 * size)), augment.RandomCrop(size)]
    light = [
        each(0.15 if crops else 0.025)
        for each in (augment.Brightness, augment.Contrast, augment.Saturation)
    ]
    return ImageDataLoaders.from_df(
        table,
        "/",
        valid_col="held_out",
        bs=settings.batch_size,
        num_workers=usual.CORES,
        device=torch.device("cpu"),
        item_tfms=[augment.RandomResizedCrop(size)] if crops else framing,
        batch_tfms=[
            augment.Flip(),
            *light,
            augment.Normalize.from_stats(*mean_std(settings.backbone)),
        ],
    )


def groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """All weights but the classifier's, and these: fastai freezes by groups."""
    last = list(model.get_classifier().parameters())  # type: ignore[operator]
    rest = [each for each in model.parameters() if all(each is not own for own in last)]
    return [rest, last]


def learner(
    loaded: DataLoaders, model: nn.Module, smoothing: float, *callbacks: Callback
) -> Learner:
    """SGD as in the project's settings."""
    return Learner(
        loaded,
        model,
        LabelSmoothingCrossEntropyFlat(smoothing),
        functools.partial(SGD, mom=0.9),
        wd=1e-4,
        splitter=groups,
        train_bn=False,
        moms=(0.9, 0.9, 0.9),
        metrics=accuracy,
        cbs=list(callbacks),
    )


def train(settings: PairSettings, data: ImageDataset) -> nn.Module:
    """Stage 1 at the train resolution; the last epoch is used, as here."""
    torch.manual_seed(settings.seed)
    model = create(settings.backbone, len(data.classes))
    loaded = loaders(data, settings, settings.train_size, "train", "val", crops=True)
    made = learner(loaded, model, settings.label_smoothing)
    (rate,) = several(settings.learning_rate)
    with made.no_logging():
        made.fit_one_cycle(number_of_epochs(settings, data.counts()), rate, pct_start=0.15)
    return model


def adapt(
    settings: PairSettings, data: ImageDataset, trained: nn.Module, size: int, adaptation: str
) -> nn.Module:
    """Stage 2: only the classifier, and for `head_bn` the last batch norm, are trained."""
    model = copy.deepcopy(trained)
    (epochs,), (rate,) = several(settings.adapt_epochs), several(settings.adapt_learning_rate)
    loaded = loaders(data, settings, size, "train", "val", crops=False)
    made = learner(loaded, model, settings.adapt_label_smoothing, BnFreeze(), NoValidation())
    made.freeze()
    if adaptation == "head_bn" and (norm := last_batch_norm(model)) is not None:
        norm.requires_grad_(True)
        made.create_opt()
    with made.no_logging():
        made.fit(epochs, rate, cbs=ParamScheduler({"lr": SchedCos(rate, 0.0)}))
    return model


class NoValidation(Callback):  # type: ignore[misc]
    """Training alone."""

    def before_validate(self) -> None:
        """Leave it out."""
        raise CancelValidException


def evaluate(
    settings: PairSettings, data: ImageDataset, model: nn.Module, size: int, split: str
) -> float:
    """Top-1 accuracy on one split."""
    made = learner(loaders(data, settings, size, split, split, crops=False), model, 0.0)
    probabilities, labels = made.get_preds(dl=made.dls.valid, with_loss=False)[:2]
    return float((probabilities.argmax(dim=1) == labels).float().mean())


def grid(every: Sequence[PairSettings]) -> dict[str, float]:
    """Top-1 on test by "<train size>/<test size> <adaptation>" of pairs that share trainings."""
    found: dict[str, float] = {}
    for train_size, pairs in itertools.groupby(every, lambda each: each.train_size):
        models: dict[tuple[str, int], nn.Module] = {}
        for pair in pairs:
            data = load_dataset(pair)
            if not models:
                models["none", 0] = train(pair, data)
            for name, way in usual.ways(pair).items():
                way = ("none", 0) if name == "none" else way
                if way not in models:
                    models[way] = adapt(pair, data, models["none", 0], way[1], way[0])
                for split in ("val", "test"):
                    top1 = evaluate(pair, data, models[way], pair.test_size, split)
                found[f"{train_size}/{pair.test_size} {name}"] = top1
    return found


def evaluation(made: bench.Bench) -> Result:
    """JPEG files to predictions at 224 px."""
    common = (made.settings, made.data, made.plain)
    fastai: bench.Ways = {"fastai": lambda: evaluate(*common, BASELINE_SIZE, "test")}
    return made.measure(fastai | made.passes(BASELINE_SIZE))


def epoch(made: bench.Bench) -> Result:
    """One epoch of stage 1 at 128 px."""
    part, ways = bench.training(made)
    model = create(made.settings.backbone, len(part.classes))
    loaded = loaders(part, made.settings, bench.TRAIN_SIZE, "train", "train", crops=True)
    peer = learner(loaded, model, made.settings.label_smoothing, NoValidation())

    def fit() -> None:
        with peer.no_logging():
            peer.fit(1, 1e-4)

    return made.measure({"fastai": fit, **ways}, part)


def question() -> Result:
    """A grid of 2 x 4 pairs with three adaptations and two controls, from the start."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        measure.run(["-c", f"{processes.DRAW}(0, {processes.IMAGES}, 1)"], folder)
        own = processes.sweep(folder, "grid", **GRID)
        files = processes.pair_files(folder, NAMES)
        theirs = measure.run(["-m", "benchmarks.peers", *files], folder)
        here = read_table(folder / "reports" / "grid" / "results.csv")
        there = pd.Series(json.loads((folder / TOP1).read_text(encoding="utf-8")))
    top1 = {
        "own": here[here["adaptation"].isin(NAMES)].groupby("adaptation")["top1"].mean().to_dict(),
        "fastai": there.groupby(there.index.str.split().str[-1]).mean().to_dict(),
    }
    return {"fastai": [theirs.seconds], "own": [own.seconds], "top1": top1}


ROWS: dict[str, Callable[[bench.Bench], Result]] = {
    "peers_evaluation": evaluation,
    "peers_epoch": epoch,
    "peers_grid": lambda _: question(),
}


if __name__ == "__main__":
    files = [each for each in sys.argv[1:] if each.endswith(".json")]
    if files:
        top1 = grid([usual.settings_of(file) for file in files])
        write_atomically(home() / TOP1, json.dumps(top1))
    else:
        bench.main(ROWS)
