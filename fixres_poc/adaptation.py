"""Stage 2: fine-tune the last layers at the test size, with test framing.

| name | classifier | last batch norm's running statistics | its affine weights | where from |
|---|---|---|---|---|
| `head` | trained | frozen | frozen | ablation in Touvron et al. 2019 |
| `head_bn_stats` | trained | re-estimated | frozen | what the authors' code does for ResNet and ResNeXt |
| `head_bn` | trained | re-estimated | trained | what the paper says |

`control` is `head_bn` for as many epochs at the *train* size: what more training alone is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import broadcast
from torch import nn

from fixres_poc.backbones import Tail, trunk
from fixres_poc.config import InputError, TrainSettings
from fixres_poc.datasets import Pictures
from fixres_poc.datasets.loading import PictureDataset, batches, loader
from fixres_poc.evaluation import now, transforms_for, workers
from fixres_poc.folding import folded
from fixres_poc.memory import Portion
from fixres_poc.progress import bar

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
TRAINED = ("head", "head_bn_stats", "head_bn")


@dataclass
class Adapted:
    """Adapted tails by name, and what each would have cost alone, in seconds (the shared trunk counted for each)."""

    tails: dict[str, Tail]
    seconds: dict[str, float] = field(default_factory=dict)


def free(tail: Tail, adaptation: str) -> list[nn.Parameter]:
    """Let only what the adaptation may change be changed.

    Args:
        tail: put into the right mode in place; all else of it is frozen.
        adaptation: "head", "head_bn_stats" or "head_bn".

    Returns:
        The trainable parameters.

    Raises:
        InputError: unknown adaptation, or one of the last batch norm for a network where it is not known.
    """
    if adaptation not in TRAINED:
        raise InputError(f"adaptation {adaptation!r}: allowed here are {', '.join(TRAINED)}")
    tail.requires_grad_(False).eval()
    tail.classifier.requires_grad_(True)
    if adaptation != "head":
        if tail.norm is None:
            raise InputError(f"adaptation {adaptation!r}: the last batch norm is not known; use 'none' or 'head'")
        tail.norm.train()
        tail.norm.requires_grad_(adaptation == "head_bn")
    return [parameter for parameter in tail.parameters() if parameter.requires_grad]


def adapt(
    model: nn.Module,
    pictures: Pictures,
    settings: TrainSettings,
    size: int,
    adaptations: Sequence[str],
    engine: Accelerator,
) -> Adapted:
    """Fine-tune one tail per adaptation; they share the pictures and one pass of the frozen trunk per step.

    SGD with the paper's momentum and weight decay, and a cosine schedule to zero.

    Args:
        model: the network after stage 1; nothing of it changes.
        pictures: the data set, whose train split is used.
        settings: epochs, learning rate, batch size, seed.
        size: side of the crop in px at which the tails are adapted.
        adaptations: names out of `TRAINED`.
        engine: from `evaluation.accelerator`.
    """
    model.requires_grad_(False).eval()
    data = PictureDataset(pictures, "train", transforms_for(settings, size, size)["val_train"], settings.seed)
    tails = {name: Tail(model) for name in adaptations}
    steps = len(batches(data, settings.batch_size)) * settings.adapt_epochs
    optimizers = {name: _optimizer(free(tail, name), settings, steps, engine) for name, tail in tails.items()}
    frozen, portion = folded(model, size), Portion(settings.batch_size)
    seconds = dict.fromkeys(tails, 0.0)
    for epoch in range(1, settings.adapt_epochs + 1 if tails else 1):
        data.epoch = epoch
        rows = batches(data, settings.batch_size)
        loaded = loader(data, rows, workers(), engine.process_index, engine.num_processes)
        mark = now(engine)
        for batch, (images, labels, _) in zip(rows, bar(loaded, _title(size, epoch, settings)), strict=True):
            with engine.autocast():
                features = portion.run(lambda part: trunk(frozen, part.to(engine.device, non_blocking=True)), images)
            shared, mark = now(engine) - mark, now(engine)
            for name, tail in tails.items():
                _step(tail, features, labels, len(batch), settings, optimizers[name], engine)
                own, mark = now(engine) - mark, now(engine)
                seconds[name] += shared + own
    for tail in tails.values():
        _agree(tail, engine)
    return Adapted({name: tail.requires_grad_(False).eval() for name, tail in tails.items()}, seconds)


def _title(size: int, epoch: int, settings: TrainSettings) -> str:
    return f"adapt at {size} px, epoch {epoch}/{settings.adapt_epochs}"


def _step(
    tail: Tail,
    features: Sequence[torch.Tensor],
    labels: torch.Tensor,
    batch: int,
    settings: TrainSettings,
    optimizer: tuple[AcceleratedOptimizer, AcceleratedScheduler],
    engine: Accelerator,
) -> None:
    """One step with the gradient of the mean loss over the whole batch, of which this process has a part."""
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing, reduction="sum")
    with engine.autocast():
        loss = criterion(tail(*features), labels.to(engine.device)) / batch
    engine.backward(loss)
    if engine.num_processes > 1:
        for parameter in tail.parameters():
            if parameter.grad is not None:
                parameter.grad = engine.reduce(parameter.grad, "sum")
    for each in optimizer:
        each.step()
    optimizer[0].zero_grad()


def _agree(tail: Tail, engine: Accelerator) -> None:
    """Give every process the statistics of the first: each has seen other pictures."""
    for buffer in tail.buffers():
        if engine.num_processes > 1:
            buffer.copy_(broadcast(buffer))


def _optimizer(
    parameters: list[nn.Parameter], settings: TrainSettings, steps: int, engine: Accelerator
) -> tuple[AcceleratedOptimizer, AcceleratedScheduler]:
    optimizer = torch.optim.SGD(parameters, settings.adapt_learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    return engine.prepare(optimizer, schedule)  # type: ignore[no-any-return]
