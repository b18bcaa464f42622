"""`python -m benchmarks.gpu`: ResNeXt-101 32x48d on a GPU, in both memory formats.

Prints one line per size, stage and memory format: images/s on ready tensors, the share of the
card's peak that this is, and, with `--dataset`, images/s from files and the share of time in which
the card waits for images. Weights are random, since nothing here depends on them. A multiply-add
counts as 2 FLOPs, a training step as 3 forward passes.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from torch import nn
from typer import Option

from fixres_poc.config.settings import PairSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method.evaluation import transforms_for
from fixres_poc.model.backbones import create
from fixres_poc.model.device import FORMATS, accelerator_for, now, workers
from fixres_poc.model.memory_plan import parameters_and_flops

WARM_UP, STEPS, CLASSES = 3, 10, 120


def seconds_a_step(
    model: nn.Module, loaded: Iterable[torch.Tensor], accelerator: Accelerator, training: bool
) -> float:
    """Median seconds from one batch's result to the next one's, reading of the batch included."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, nesterov=True)
    model.train(training)
    found, mark = list[float](), now(accelerator)
    for images in loaded:
        with torch.set_grad_enabled(training), accelerator.autocast():
            logits = model(images.to(accelerator.device, non_blocking=True))
            loss = logits.float().logsumexp(dim=1).mean()
        if training:
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        mark, before = now(accelerator), mark
        found.append(mark - before)
    return statistics.median(found[WARM_UP:])


def files(
    settings: PairSettings, training: bool, format: torch.memory_format
) -> Iterator[torch.Tensor]:
    """Endless batches of a dataset's train images, as stage 1 or an evaluation reads them."""
    size = settings.test_size
    transform = transforms_for(settings, size, size)["train" if training else "val_test"]
    samples = SplitImages(load_dataset(settings), "train", transform, 0 if training else None)
    rows = [
        batch
        for batch in batches(samples, settings.batch_size)
        if len(batch) == settings.batch_size
    ]
    steps = list(itertools.islice(itertools.cycle(rows), WARM_UP + STEPS))
    for images, _, _ in loader(samples, steps, workers()):
        yield images.contiguous(memory_format=format)


def measure(settings: PairSettings, training: bool, name: str, peak: float) -> dict[str, object]:
    """One line of the result.

    Args:
        settings: backbone, batch size, precision, dataset, and the side of the images, test_size.
        training: whether weights are updated.
        name: of the memory format.
        peak: the card's peak in FLOP/s at this precision, nan where it is not known.
    """
    accelerator, format = accelerator_for(settings.precision), FORMATS[name]
    size, batch = settings.test_size, settings.batch_size
    model = create(settings.backbone, CLASSES, pretrained=False)
    model = model.to(accelerator.device, memory_format=format)  # type: ignore[call-overload]
    ready = torch.rand(batch, 3, size, size, device=accelerator.device)
    ready = ready.contiguous(memory_format=format)
    alone = seconds_a_step(model, itertools.repeat(ready, WARM_UP + STEPS), accelerator, training)
    flops = parameters_and_flops(settings.backbone, CLASSES, size)[1] * (3 if training else 1)
    share = flops * batch / alone / peak
    line: dict[str, object] = {
        "size": size,
        "training": training,
        "memory_format": name,
        "batch_size": batch,
        "images_per_second": batch / alone,
        "share_of_peak": None if math.isnan(share) else share,
    }
    if settings.dataset != "synthetic":
        read = seconds_a_step(model, files(settings, training, format), accelerator, training)
        line |= {
            "images_per_second_from_files": batch / read,
            "waiting": max(0.0, 1 - alone / read),
        }
    return line


def main(
    backbone: str = "resnext101_32x48d_wsl",
    size: Annotated[list[int] | None, Option(help="in px; default: 224 and 320")] = None,
    batch_size: int = 32,
    precision: Annotated[str, Option(help="fp32, bf16 or fp16")] = "bf16",
    peak_tflops: Annotated[float, Option(help="989 for bf16 on an H100 SXM")] = math.nan,
    dataset: Annotated[str, Option(help="class folders, to read files")] = "synthetic",
) -> None:
    """Measure every combination, and print one JSON line each."""
    common: dict[str, Any] = {"backbone": backbone, "batch_size": batch_size}
    common |= {"precision": precision, "dataset": dataset}
    for each, training, name in itertools.product(size or (224, 320), (True, False), FORMATS):
        settings = PairSettings(train_size=each, test_size=each, **common)
        line = measure(settings, training, name, peak_tflops * 1e12)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    typer.run(main)
