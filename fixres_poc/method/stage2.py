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
from accelerate.accelerator import AcceleratedOptimizer, AcceleratedScheduler, Accelerator
from accelerate.utils import broadcast
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.progress import bar
from fixres_poc.config.settings import TrainSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method.evaluation import transforms_for
from fixres_poc.model.device import now, workers
from fixres_poc.model.micro_batches import Portion
from fixres_poc.model.trunk import Tail, folded

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # of both stages, as in the paper
TRAINED = ("head", "head_bn_stats", "head_bn")


@dataclass
class AdaptedTails:
    """Adapted tails by name, and what each would have cost alone, in seconds (the shared trunk counted for each)."""

    tails: dict[str, Tail]
    seconds: dict[str, float] = field(default_factory=dict)


def free(tail: Tail, adaptation: str) -> list[nn.Parameter]:
    """Let only what one of `TRAINED` may change be changed, in place, and return it: the trainable parameters.

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
        tail.norm.train().requires_grad_(adaptation == "head_bn")
    return [parameter for parameter in tail.parameters() if parameter.requires_grad]


def adapt_tails(
    model: nn.Module,
    data: ImageDataset,
    settings: TrainSettings,
    size: int,
    adaptations: Sequence[str],
    accelerator: Accelerator,
) -> AdaptedTails:
    """Fine-tune one tail per adaptation; they share the images and one pass of the frozen trunk per step.

    SGD with the paper's momentum and weight decay, and a cosine schedule to zero. The model is that after stage 1, and
    stays as it is; images are those of the train split, crops of `size` px, in stage 2's framing.
    """
    model.requires_grad_(False).eval()
    samples = SplitImages(data, "train", transforms_for(settings, size, size)["val_train"], settings.seed)
    tails = {name: Tail(model) for name in adaptations}
    steps = len(batches(samples, settings.batch_size)) * settings.adapt_epochs
    optimizers = {name: _optimizer(free(tail, name), settings, steps, accelerator) for name, tail in tails.items()}
    trunk, portion, seconds = folded(model, size), Portion(settings.batch_size), dict.fromkeys(tails, 0.0)
    for epoch in range(1, settings.adapt_epochs + 1 if tails else 1):
        samples.epoch, title = epoch, f"adapt at {size} px, epoch {epoch}/{settings.adapt_epochs}"
        rows = batches(samples, settings.batch_size)
        loaded = loader(samples, rows, workers(), accelerator.process_index, accelerator.num_processes)
        mark = now(accelerator)
        for batch, (images, labels, _) in zip(rows, bar(loaded, title), strict=True):
            with accelerator.autocast():
                maps = portion.run(lambda part: trunk(part.to(accelerator.device, non_blocking=True)), images)
            shared, mark = now(accelerator) - mark, now(accelerator)
            for name, tail in tails.items():
                _step(tail, maps, labels, len(batch), settings, optimizers[name], accelerator)
                own, mark = now(accelerator) - mark, now(accelerator)
                seconds[name] += shared + own
    for tail in tails.values():
        for buffer in tail.requires_grad_(False).eval().buffers():
            if accelerator.num_processes > 1:  # each process has seen other images: all get the first one's statistics
                buffer.copy_(broadcast(buffer))
    return AdaptedTails(tails, seconds)


def _step(
    tail: Tail,
    maps: Sequence[torch.Tensor],
    labels: torch.Tensor,
    batch: int,
    settings: TrainSettings,
    optimizer: tuple[AcceleratedOptimizer, AcceleratedScheduler],
    accelerator: Accelerator,
) -> None:
    """One step with the gradient of the mean loss over the whole batch, of which this process has a part."""
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing, reduction="sum")
    with accelerator.autocast():
        loss = criterion(tail(*maps), labels.to(accelerator.device)) / batch
    accelerator.backward(loss)
    if accelerator.num_processes > 1:
        for parameter in tail.parameters():
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "sum")
    for each in optimizer:
        each.step()
    optimizer[0].zero_grad()


def _optimizer(
    parameters: list[nn.Parameter], settings: TrainSettings, steps: int, accelerator: Accelerator
) -> tuple[AcceleratedOptimizer, AcceleratedScheduler]:
    optimizer = torch.optim.SGD(parameters, settings.adapt_learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    return accelerator.prepare(optimizer, schedule)  # type: ignore[no-any-return]
