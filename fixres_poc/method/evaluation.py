"""Predictions of a network and of its adapted tails."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.run_state import bar
from fixres_poc.config.settings import ModelSettings, View
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.data.transforms import Transform, get_transforms
from fixres_poc.model.backbones import interpolation, mean_std
from fixres_poc.model.device import Portion, workers
from fixres_poc.model.trunk import Tail, Trunk, folded

log = logging.getLogger(__name__)


def transforms_for(
    settings: ModelSettings, train_size: int, test_size: int, view: View = "center"
) -> dict[str, Transform]:
    """`get_transforms` with the network's own mean, std and interpolation and the settings' resize mode."""
    own: dict[str, Any] = {"mean_std": settings.mean_std or mean_std(settings.backbone)}
    own["interpolation"] = interpolation(settings.backbone)
    return get_transforms(train_size, test_size, resize=settings.resize, view=view, **own)


@dataclass(frozen=True)
class Predictions:
    """What an evaluation gives.

    The table has one row per image and adaptation: image, split, test_size, adaptation, view,
    target, top1..top5 (class indices, -1 where there are fewer classes) and probability (of top1).
    """

    table: pd.DataFrame
    seconds: float  # for reading, transforming and classifying, by all tails together
    # images in the network at once: the batch size, on a CPU 8 at most; less if memory was short
    at_once: int

    @property
    def images_per_second(self) -> float:
        """Images a second."""
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
    """Classify one split at one test resolution, in px, with every tail, by adaptation; the model is left in eval mode.

    The tails share one pass of the model's frozen trunk. Of several crops of an image the
    probabilities are averaged.
    """
    samples = SplitImages(
        data, split, transforms_for(settings, test_size, test_size, view)["val_test"]
    )
    portion, rows = Portion(settings.batch_size), batches(samples, settings.batch_size)
    start = time.perf_counter()
    trunk = folded(model.eval(), test_size)
    loaded = bar(loader(samples, rows, workers()), f"{split} at {test_size} px")
    parts = [probabilities(trunk, tails, images, portion, accelerator) for images, _, _ in loaded]
    found = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in tails}
    seconds = time.perf_counter() - start
    frames = [
        prediction_table(samples.table, name, each, test_size, view) for name, each in found.items()
    ]
    return Predictions(pd.concat(frames, ignore_index=True), seconds, portion.size)


@torch.inference_mode()
def probabilities(
    trunk: Trunk,
    tails: dict[str, Tail],
    images: torch.Tensor,
    portion: Portion,
    accelerator: Accelerator,
) -> dict[str, torch.Tensor]:
    """Probabilities (N, C) by tail of normalised images (N, 3, K, K), or means over V crops of each (N, V, 3, K, K)."""
    crops = images.flatten(0, -4)
    with accelerator.autocast():
        maps = portion.run(
            lambda part: trunk(part.to(accelerator.device, non_blocking=True)), crops
        )
        found = {name: tail.eval()(*maps).float().softmax(dim=1) for name, tail in tails.items()}
    return {name: each.unflatten(0, (len(images), -1)).mean(dim=1) for name, each in found.items()}


def prediction_table(
    rows: pd.DataFrame,
    adaptation: str,
    probabilities: np.ndarray,
    test_size: int,
    view: str = "center",
) -> pd.DataFrame:
    """Predictions, in the form that a run stores, for N rows of an image table and probabilities (N, C), in [0, 1]."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    table = rows[["image", "split"]].assign(test_size=test_size, adaptation=adaptation, view=view)
    table["target"] = rows["label"].astype("int16")
    for rank in range(5):
        known = rank < order.shape[1]
        table[f"top{rank + 1}"] = order[:, rank].astype("int16") if known else np.int16(-1)
    return table.assign(probability=probabilities.max(axis=1).astype("float32"))
