"""The baseline: frozen features and a linear classifier; no network is trained."""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from fixres_poc.config.progress import bar
from fixres_poc.config.settings import BASELINE_SIZE, BaselineSettings, ModelSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.data.sources.splitting import SPLITS
from fixres_poc.method.evaluation import log, prediction_table, transforms_for
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for, place, workers
from fixres_poc.model.micro_batches import Portion
from fixres_poc.model.trunk import Tail, folded

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)


def features(
    model: nn.Module,
    data: ImageDataset,
    split: str,
    settings: ModelSettings,
    size: int,
    accelerator: Accelerator,
    framing: str = "val_test",
) -> np.ndarray:
    """Pooled features (N, D) of one split, of crops of `size` px; in order of path for the framing "val_test" alone."""
    transform = transforms_for(settings, size, size)[framing]
    samples = SplitImages(data, split, transform, None if framing == "val_test" else settings.split_seed)
    tail, portion, rows = Tail(model.eval()), Portion(settings.batch_size), batches(samples, settings.batch_size)
    trunk = folded(model, size)

    def pooled(images: torch.Tensor) -> tuple[torch.Tensor]:
        return (tail.pooled(*trunk(images.to(accelerator.device, non_blocking=True))).float().cpu(),)

    with torch.inference_mode(), accelerator.autocast():
        loaded = bar(loader(samples, rows, workers()), f"features of {split} at {size} px")
        parts = [portion.run(pooled, images)[0] for images, _, _ in loaded]
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Baseline:
    """The linear baseline."""

    predictions: pd.DataFrame  # on val and test
    penalty: float  # the chosen inverse penalty C
    val_top1: dict[float, float]  # by C
    seconds: dict[str, float]
    images_per_second: float


def train_baseline(settings: BaselineSettings, data: ImageDataset) -> Baseline:
    """Frozen pre-trained features at 224 px and logistic regression, its penalty chosen on validation."""
    accelerator = accelerator_for(settings.precision)
    model = place(create(settings.backbone, weights=settings.weights), settings, accelerator)
    start = time.perf_counter()
    x = {split: features(model, data, split, settings, BASELINE_SIZE, accelerator) for split in SPLITS}
    extracted = time.perf_counter()
    y = {split: data.split(split)["label"].to_numpy() for split in SPLITS}
    models = {c: make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)) for c in PENALTIES}
    fitted = {c: each.fit(x["train"], y["train"]) for c, each in models.items()}
    val_top1 = {c: float(each.score(x["val"], y["val"])) for c, each in fitted.items()}
    best = max(PENALTIES, key=lambda penalty: val_top1[penalty])
    if best in (PENALTIES[0], PENALTIES[-1]):
        log.warning("baseline: the chosen C = %g is at an edge of those tried, so a better one may lie beyond", best)
    tables = []
    for split in ("val", "test"):
        probabilities = np.zeros((len(x[split]), len(data.classes)))
        probabilities[:, fitted[best].classes_] = fitted[best].predict_proba(x[split])
        tables.append(prediction_table(data.split(split), "baseline", probabilities))
    seconds = {"features": extracted - start, "fit": time.perf_counter() - extracted}
    count = sum(len(each) for each in x.values())
    return Baseline(pd.concat(tables, ignore_index=True), best, val_top1, seconds, count / seconds["features"])
