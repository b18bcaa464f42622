"""`python -m benchmarks.gpu`: ResNeXt-101 32x48d on a GPU, training and evaluation, in both memory formats.

Prints one line per size, stage and memory format: images/s on ready tensors, the share of the
card's peak that this is, and, with `--dataset`, images/s from files and the share of time in which
the card waits for images. Weights are random, since nothing here depends on them. A multiply-add
counts as 2 FLOPs, a training step as 3 forward passes.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator
from torch import nn

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
    """Median seconds between one batch's result and the next one's, reading of the batch included."""
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
    settings: PairSettings, size: int, training: bool, format: torch.memory_format
) -> Iterator[torch.Tensor]:
    """Endless batches of a dataset's train images, as stage 1 or an evaluation reads them."""
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


def measure(
    settings: PairSettings, size: int, training: bool, name: str, peak: float | None
) -> dict[str, object]:
    """One line of the result.

    Args:
        settings: backbone, batch size, precision, dataset.
        size: side of the images in px.
        training: whether weights are updated.
        name: of the memory format.
        peak: the card's peak in FLOP/s at this precision, None where it is not given.
    """
    accelerator, format = accelerator_for(settings.precision), FORMATS[name]
    model = create(settings.backbone, CLASSES, pretrained=False)
    model = model.to(accelerator.device, memory_format=format)  # type: ignore[call-overload]
    ready = torch.rand(settings.batch_size, 3, size, size, device=accelerator.device).contiguous(
        memory_format=format
    )
    alone = seconds_a_step(model, itertools.repeat(ready, WARM_UP + STEPS), accelerator, training)
    flops = parameters_and_flops(settings.backbone, CLASSES, size)[1] * (3 if training else 1)
    line: dict[str, object] = {"size": size, "training": training, "memory_format": name}
    line |= {"batch_size": settings.batch_size, "images_per_second": settings.batch_size / alone}
    line |= {"share_of_peak": flops * settings.batch_size / alone / peak if peak else None}
    if settings.dataset != "synthetic":
        read = seconds_a_step(model, files(settings, size, training, format), accelerator, training)
        line |= {
            "images_per_second_from_files": settings.batch_size / read,
            "waiting": max(0.0, 1 - alone / read),
        }
    return line


def main() -> None:
    """Measure every combination, and print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnext101_32x48d_wsl")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 320])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument(
        "--peak-tflops", type=float, help="the card's peak, such as 989 for bf16 on an H100 SXM"
    )
    parser.add_argument(
        "--dataset", default="synthetic", help="folder of class folders, to read images from files"
    )
    chosen = parser.parse_args()
    for size, training, name in itertools.product(chosen.sizes, (True, False), FORMATS):
        settings = PairSettings(
            train_size=size,
            test_size=size,
            backbone=chosen.backbone,
            batch_size=chosen.batch_size,
            precision=chosen.precision,
            dataset=chosen.dataset,
        )
        peak = chosen.peak_tflops * 1e12 if chosen.peak_tflops else None
        print(json.dumps(measure(settings, size, training, name, peak)), flush=True)


if __name__ == "__main__":
    main()
