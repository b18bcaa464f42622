"""Predictions of a network and of its adapted tails, and the baseline that trains nothing but a linear classifier."""

import logging
import math
import resource
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from fixres_poc.backbones import Tail, create, interpolation, mean_std, trunk
from fixres_poc.config import BASELINE_SIZE, BaselineSettings, InputError, ModelSettings, View
from fixres_poc.datasets import Pictures
from fixres_poc.datasets.loading import PictureDataset, batches, loader
from fixres_poc.folding import folded
from fixres_poc.machine import cores, remembered
from fixres_poc.memory import Portion, keep_freed
from fixres_poc.progress import bar
from fixres_poc.records import processor
from fixres_poc.transforms import Transform, get_transforms

TOP = 5
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
PROBE_BATCH, PROBE_REPEATS = 4, 3
log = logging.getLogger(__name__)


def accelerator(precision: str) -> Accelerator:
    """Device and mixed precision of this machine: the GPU where there is one, else the CPU.

    Args:
        precision: "fp32", "bf16" or "fp16".

    Raises:
        InputError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("precision = 'fp16': needs a CUDA GPU, and none was found; allowed here: fp32, bf16")
    if not torch.cuda.is_available():
        keep_freed()
    AcceleratorState._reset_state(reset_partial_state=False)
    loading = DataLoaderConfiguration(split_batches=True)  # so that the schedule goes on by one a step, on any number
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=3))  # others wait while one downloads or draws
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        dataloader_config=loading,
        kwargs_handlers=[patient],
    )


def now(engine: Accelerator) -> float:
    """A clock in seconds, read once the device has done all that it was told to."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return time.perf_counter()


def workers() -> int:
    """Loader processes: none on the CPU, where the network needs every core, else one a core of ours, at most 8."""
    return min(8, cores()) if torch.cuda.is_available() else 0


def memory_format(model: nn.Module, settings: ModelSettings, engine: Accelerator) -> torch.memory_format:
    """The faster memory format for a network here, NCHW or channels_last; measured once a machine and then kept.

    Which one wins depends on network and device: channels_last is 1.5 times as fast for EfficientNet-Lite0 on a CPU,
    and a third as fast for ResNeXt-101 32x48d on an RTX 3090 (timm's benchmark).
    """
    device = device_name() or f"{processor()}, {torch.get_num_threads()} threads"
    key = f"memory format of {settings.backbone} in {settings.precision} on {device}, torch {torch.__version__}"
    name = remembered(key, lambda: _faster_format(model, settings, engine))
    return FORMATS.get(name, torch.contiguous_format)


def _faster_format(model: nn.Module, settings: ModelSettings, engine: Accelerator) -> str:
    """Name of the format in which a step forward and back takes less time, the two alternating."""
    images = torch.rand(PROBE_BATCH, 3, BASELINE_SIZE, BASELINE_SIZE, device=engine.device)
    seconds = dict.fromkeys(FORMATS, math.inf)
    model.to(engine.device).eval()
    for _ in range(PROBE_REPEATS):
        for name, each in FORMATS.items():
            _to(model, engine, each)
            for _ in range(2):  # the first of the two is to warm up
                start = time.perf_counter()
                with engine.autocast():
                    loss = model(images.contiguous(memory_format=each)).float().mean()
                loss.backward()
                elapsed = now(engine) - start
            seconds[name] = min(seconds[name], elapsed)
            model.zero_grad(set_to_none=True)
    return min(seconds, key=lambda name: seconds[name])


def _to(model: nn.Module, engine: Accelerator, format: torch.memory_format) -> nn.Module:
    return model.to(engine.device, memory_format=format)  # type: ignore[call-overload, no-any-return]


def format_name(model: nn.Module) -> str:
    """Name of the memory format that a network's weights have."""
    kernels = [each for each in model.parameters() if each.dim() == 4]
    last = any(each.is_contiguous(memory_format=torch.channels_last) and not each.is_contiguous() for each in kernels)
    return "channels_last" if last else "NCHW"


def place(model: nn.Module, settings: ModelSettings, engine: Accelerator) -> nn.Module:
    """The model on its device, in the memory format of `memory_format`."""
    return _to(model, engine, memory_format(model, settings, engine))


def peak_memory_bytes() -> int:
    """Highest memory so far: tensors on the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name() -> str | None:
    """Name of the GPU, None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def transforms_for(
    settings: ModelSettings, train_size: int, test_size: int, view: View = "center"
) -> dict[str, Transform]:
    """`get_transforms` with the backbone's own mean, std and interpolation and the settings' resize mode."""
    own: dict[str, Any] = {"mean_std": mean_std(settings.backbone), "interpolation": interpolation(settings.backbone)}
    return get_transforms(train_size, test_size, resize=settings.resize, view=view, **own)


@dataclass(frozen=True)
class Predictions:
    """What an evaluation gives.

    Attributes:
        table: one row per picture and adaptation: picture, split, adaptation, view, target, top1..top5 (class indices,
            -1 where there are fewer classes) and probability (of top1).
        seconds: for reading, transforming and classifying, by all tails together.
        at_once: pictures that passed the network at once: the batch size, on a CPU 8 at most; less if memory was short.
    """

    table: pd.DataFrame
    seconds: float
    at_once: int

    @property
    def images_per_second(self) -> float:
        """Pictures a second."""
        return self.table["picture"].nunique() / self.seconds


def predict(
    model: nn.Module,
    tails: dict[str, Tail],
    pictures: Pictures,
    split: str,
    settings: ModelSettings,
    test_size: int,
    engine: Accelerator,
    view: View = "center",
) -> Predictions:
    """Classify one split at one test size with every tail; they share one pass of the frozen trunk.

    Of several crops of a picture the probabilities are averaged.

    Args:
        model: network whose trunk is used; left in eval mode.
        tails: adaptation name -> tail.
        pictures: the data set.
        split: "train", "val" or "test".
        settings: backbone, batch size, resize mode.
        test_size: side of the centre crop in px.
        engine: from `accelerator`.
        view: which crops of each picture.
    """
    dataset = PictureDataset(pictures, split, transforms_for(settings, test_size, test_size, view)["val_test"])
    model.eval()
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in tails}
    portion, rows = Portion(settings.batch_size), batches(dataset, settings.batch_size)
    start = time.perf_counter()
    frozen = folded(model, test_size)
    for images, _, _ in bar(loader(dataset, rows, workers()), f"{split} at {test_size} px"):
        for name, each in probabilities(frozen, tails, images, portion, engine).items():
            parts[name].append(each)
    found = {name: torch.cat(part).cpu().numpy() for name, part in parts.items()}
    seconds = time.perf_counter() - start
    frames = [prediction_table(dataset.table, name, each, view) for name, each in found.items()]
    return Predictions(pd.concat(frames, ignore_index=True), seconds, portion.size)


@torch.inference_mode()
def probabilities(
    network: nn.Module, tails: dict[str, Tail], images: torch.Tensor, portion: Portion, engine: Accelerator
) -> dict[str, torch.Tensor]:
    """Probabilities (N, C) by tail, after one pass of the frozen trunk; of several crops they are averaged.

    Args:
        network: whose trunk is used, in eval mode on its device.
        tails: adaptation name -> tail.
        images: (N, 3, K, K), or V crops of each as (N, V, 3, K, K); normalised.
        portion: how many pictures pass at once.
        engine: from `accelerator`.
    """
    crops = images.flatten(0, -4)
    with engine.autocast():
        maps = portion.run(lambda part: trunk(network, part.to(engine.device, non_blocking=True)), crops)
        found = {name: tail.eval()(*maps).float().softmax(dim=1) for name, tail in tails.items()}
    return {name: each.unflatten(0, (len(images), -1)).mean(dim=1) for name, each in found.items()}


def prediction_table(
    rows: pd.DataFrame, adaptation: str, probabilities: np.ndarray, view: str = "center"
) -> pd.DataFrame:
    """Predictions in the form that a run stores.

    Args:
        rows: N rows of a picture table.
        adaptation: name of the adaptation.
        probabilities: (N, C), in [0, 1].
        view: how the pictures were cropped.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    table = rows[["picture", "split"]].assign(adaptation=adaptation, view=view, target=rows["label"].astype("int16"))
    for rank in range(TOP):
        known = rank < order.shape[1]
        table[f"top{rank + 1}"] = order[:, rank].astype("int16") if known else np.int16(-1)
    return table.assign(probability=probabilities.max(axis=1).astype("float32"))


def features(
    model: nn.Module,
    pictures: Pictures,
    split: str,
    settings: ModelSettings,
    size: int,
    engine: Accelerator,
    framing: str = "val_test",
) -> np.ndarray:
    """Pooled features (N, D) of one split.

    Args:
        model: left in eval mode.
        pictures: the data set.
        split: "train", "val" or "test".
        settings: backbone, batch size, resize mode.
        size: side of the crop in px.
        engine: from `accelerator`.
        framing: "val_test", in order of path, or a random one ("train", "val_train"), in any order.
    """
    transform = transforms_for(settings, size, size)[framing]
    dataset = PictureDataset(pictures, split, transform, None if framing == "val_test" else settings.split_seed)
    tail, portion, rows = Tail(model.eval()), Portion(settings.batch_size), batches(dataset, settings.batch_size)
    frozen = folded(model, size)

    def pooled(images: torch.Tensor) -> tuple[torch.Tensor]:
        return (tail.pooled(*trunk(frozen, images.to(engine.device, non_blocking=True))).float().cpu(),)

    with torch.inference_mode(), engine.autocast():
        loaded = bar(loader(dataset, rows, workers()), f"features of {split} at {size} px")
        parts = [portion.run(pooled, images)[0] for images, _, _ in loaded]
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Baseline:
    """The linear baseline: its predictions on val and test, the chosen inverse penalty C, and its cost in seconds."""

    predictions: pd.DataFrame
    penalty: float
    val_top1: dict[float, float]
    seconds: dict[str, float]
    images_per_second: float


def baseline(settings: BaselineSettings, pictures: Pictures) -> Baseline:
    """Frozen pre-trained features at 224 px and logistic regression, its penalty chosen on validation."""
    engine = accelerator(settings.precision)
    model = place(create(settings.backbone, weights=settings.weights), settings, engine)
    start = time.perf_counter()
    x = {split: features(model, pictures, split, settings, BASELINE_SIZE, engine) for split in ("train", "val", "test")}
    extracted = time.perf_counter()
    y = {split: pictures.split(split)["label"].to_numpy() for split in x}
    fitted = {
        penalty: make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)).fit(
            x["train"], y["train"]
        )
        for penalty in PENALTIES
    }
    val_top1 = {penalty: float(each.score(x["val"], y["val"])) for penalty, each in fitted.items()}
    best = max(PENALTIES, key=lambda penalty: val_top1[penalty])
    if best in (PENALTIES[0], PENALTIES[-1]):
        log.warning("baseline: the chosen C = %g is at an edge of those tried, so a better one may lie beyond", best)
    tables = []
    for split in ("val", "test"):
        probabilities = np.zeros((len(x[split]), len(pictures.classes)))
        probabilities[:, fitted[best].classes_] = fitted[best].predict_proba(x[split])
        tables.append(prediction_table(pictures.split(split), "baseline", probabilities))
    seconds = {"features": extracted - start, "fit": time.perf_counter() - extracted}
    count = sum(len(each) for each in x.values())
    return Baseline(pd.concat(tables, ignore_index=True), best, val_top1, seconds, count / seconds["features"])
