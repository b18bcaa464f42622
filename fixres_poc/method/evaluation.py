"""Predictions of a network and its adapted tails, and choices by accuracy on validation."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.geometry import CROP_PCT, CROP_SCALE, resized_side, usual_crop_pct
from fixres_poc.config.run_state import bar
from fixres_poc.config.settings import ModelSettings, View, several
from fixres_poc.data.dataset import ImageDataset, image_sizes
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.data.transforms import Transform, get_transforms
from fixres_poc.model.backbones import interpolation, mean_std
from fixres_poc.model.device import Maps, Portions, workers
from fixres_poc.model.trunk import Tail, fold_batch_norms

log = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S", bound=ModelSettings)


def choose_on_validation(
    candidates: Iterable[Mapping[str, Any]], trial: Callable[[Mapping[str, Any]], tuple[float, T]]
) -> tuple[T, list[dict[str, Any]]]:
    """Try candidates, and keep the result with the highest top-1 accuracy on validation.

    Args:
        candidates: values by name; of equally good ones the first wins.
        trial: returns a candidate's accuracy and its result.

    Returns:
        The result of the best candidate, and a row per candidate: its values and val_top1.
    """
    rows: list[dict[str, Any]] = []
    best: list[T] = []
    for candidate in candidates:
        top1, result = trial(candidate)
        if all(row["val_top1"] < top1 for row in rows):
            best = [result]
        rows.append({**candidate, "val_top1": top1})
        del result  # only the best one stays in memory
    return best[0], rows


def transforms_for(
    settings: ModelSettings, train_size: int, test_size: int, view: View = "center"
) -> dict[str, Transform]:
    """`get_transforms` with the settings' framing, and with the network's preprocessing."""
    return get_transforms(
        train_size,
        test_size,
        resize=settings.resize,
        view=view,
        mean_std=settings.mean_std or mean_std(settings.backbone),
        interpolation=interpolation(settings.backbone),
        crop_pct=usual_crop_pct(settings.crop_pct),
        # settings without stage 1 have none
        crop_scale=getattr(settings, "crop_scale", CROP_SCALE),
    )


def framings(settings: S, data: ImageDataset, test_size: int) -> tuple[dict[float, S], str]:
    """The framings to try at a test resolution, px.

    Values of `crop_pct` are left out if they would enlarge most images: if the resized short side
    is above the median of the images' short sides.

    Returns:
        The settings with each `crop_pct`, by its value, and a line on the values left out, else "".
        The value nearest to the usual one comes first, since ties go to the first.
    """
    usual = usual_crop_pct(settings.crop_pct)
    sizes = getattr(settings, "crop_pct_sizes", None) or [test_size]
    others = {*several(settings.crop_pct)} - {usual} if test_size in sizes else set()
    short_px = image_sizes(data)[["width", "height"]].min(axis=1).median() if others else 0
    large = sorted(value for value in others if resized_side(test_size, value) > short_px)
    line = ""
    if large:
        line = f"crop_pct {large} at {test_size} px would enlarge most images: left out"
        log.warning(line)
    values = {usual, *others} - {*large}
    order = sorted(values, key=lambda value: (round(abs(value - usual), 6), value))
    return {value: settings.framed(value) for value in order}, line


def loaded(
    samples: SplitImages, batch_size: int, title: str, process: int = 0, processes: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Images and labels of a process' part of every batch of an epoch, and the batch's size."""
    rows = batches(samples, batch_size)
    parts = bar(loader(samples, rows, workers(), process, processes), title)
    for batch, (images, labels, _) in zip(rows, parts, strict=True):
        yield images, labels, len(batch)


@dataclass(frozen=True)
class Predictions:
    """Predictions for one split.

    The table has one row per image and adaptation: image, split, test_size, adaptation, view,
    crop_pct, target, top1..top5 (class indices, -1 if there are fewer classes) and probability (of
    top1).
    """

    table: pd.DataFrame
    seconds: float  # for reading, transforming and classifying, all tails together
    # images in the network at once: the batch size, at most 8 on a CPU, fewer if memory was short
    at_once: int

    @property
    def images_per_second(self) -> float:
        """Images per second."""
        return self.table["image"].nunique() / self.seconds


def predict(
    model: nn.Module,
    tails: dict[str, Tail],
    data: ImageDataset,
    split: str,
    settings: ModelSettings,
    test_size: int,
    accelerator: Accelerator,
    view: View = "center",
) -> Predictions:
    """Classify one split at one test resolution, px, with every tail.

    The tails share one pass of the model's frozen trunk; the model is left in eval mode.
    Probabilities are averaged over the crops of an image.

    Args:
        tails: by adaptation.
    """
    transform = transforms_for(settings, test_size, test_size, view)["val_test"]
    samples = SplitImages(data, split, transform)
    start = time.perf_counter()
    network = fold_batch_norms(model.eval(), test_size)
    trunk = Portions(network, settings.batch_size, accelerator.device)
    images = loaded(samples, settings.batch_size, f"{split} at {test_size} px")
    parts = [probabilities(trunk, tails, batch, accelerator) for batch, _, _ in images]
    by_tail = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in tails}
    seconds = time.perf_counter() - start
    crop_pct = usual_crop_pct(settings.crop_pct)
    tables = [
        prediction_table(samples.table, name, values, test_size, view, crop_pct)
        for name, values in by_tail.items()
    ]
    return Predictions(pd.concat(tables, ignore_index=True), seconds, trunk.size)


@torch.inference_mode()
def probabilities(
    trunk: Callable[[torch.Tensor], Maps],
    tails: dict[str, Tail],
    images: torch.Tensor,
    accelerator: Accelerator,
) -> dict[str, torch.Tensor]:
    """Probabilities (N, C) by tail.

    Args:
        images: normalised, (N, 3, K, K), or V crops of each, (N, V, 3, K, K), over which
            probabilities are averaged.
    """
    with accelerator.autocast():
        maps = trunk(images.flatten(0, -4))
        crops = {name: tail.eval()(*maps).float().softmax(dim=1) for name, tail in tails.items()}
    return {name: p.unflatten(0, (len(images), -1)).mean(dim=1) for name, p in crops.items()}


def prediction_table(
    rows: pd.DataFrame,
    adaptation: str,
    probabilities: np.ndarray,
    test_size: int,
    view: str = "center",
    crop_pct: float = CROP_PCT,
) -> pd.DataFrame:
    """The table of `Predictions`, for N rows of an image table and probabilities (N, C)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    table = rows[["image", "split"]].assign(
        test_size=test_size, adaptation=adaptation, view=view, crop_pct=crop_pct
    )
    table["target"] = rows["label"].astype("int16")
    for rank in range(5):
        exists = rank < order.shape[1]
        table[f"top{rank + 1}"] = order[:, rank].astype("int16") if exists else np.int16(-1)
    return table.assign(probability=probabilities.max(axis=1).astype("float32"))
