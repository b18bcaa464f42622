"""Stage 2: fine-tune the last layers at the test resolution, with test framing.

| name | classifier | last batch norm's running statistics | its affine weights | where from |
|---|---|---|---|---|
| `bn_stats` | frozen | re-estimated | frozen | no gradient: what is mere repair of statistics |
| `head` | trained | frozen | frozen | ablation in Touvron et al. 2019 |
| `head_bn_stats` | trained | re-estimated | frozen | what the authors' code does for ResNet and ResNeXt |
| `head_bn` | trained | re-estimated | trained | what the paper says |

Each has a control, `control_head` and so on: the same for as long at the *train* size, so that what is owed to the test
size can be told from what more training gives.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate.accelerator import AcceleratedOptimizer, AcceleratedScheduler, Accelerator
from accelerate.utils import broadcast
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.progress import bar
from fixres_poc.config.settings import ADAPTED, TrainSettings, several
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method.evaluation import predict, transforms_for
from fixres_poc.model.device import now, workers
from fixres_poc.model.micro_batches import Portion, spare_single_values
from fixres_poc.model.trunk import Tail, folded, last_batch_norm

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # of both stages, as in the paper


@dataclass(frozen=True)
class Variant:
    """One way to adapt a tail."""

    adaptation: str  # one of `ADAPTED`
    learning_rate: float  # at the first step; it falls to 0 along a cosine. Without meaning for `bn_stats`
    epochs: int


@dataclass
class AdaptedTails:
    """Adapted tails by name, and what each would have cost alone, in seconds (the shared trunk counted for each)."""

    tails: dict[str, Tail]
    seconds: dict[str, float] = field(default_factory=dict)


def possible(model: nn.Module) -> list[str]:
    """Those of `ADAPTED` that a network can have: without a known last batch norm `head` alone."""
    return [name for name in ADAPTED if name == "head" or last_batch_norm(model) is not None]


def free(tail: Tail, adaptation: str) -> list[nn.Parameter]:
    """Let only what one of `ADAPTED` may change be changed, in place, and return it: the trainable parameters.

    Raises:
        InputError: unknown adaptation, or one of the last batch norm for a network where it is not known.
    """
    if adaptation not in ADAPTED:
        raise InputError(f"adaptation {adaptation!r}: allowed here are {', '.join(ADAPTED)}")
    tail.requires_grad_(False).eval()
    tail.classifier.requires_grad_(adaptation != "bn_stats")
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
    variants: Mapping[str, Variant],
    accelerator: Accelerator,
) -> AdaptedTails:
    """Adapt one tail per variant, by its name; they share the images and one pass of the frozen trunk per step.

    SGD with the paper's momentum and weight decay, and a cosine schedule to zero. The model is that after stage 1, and
    stays as it is; images are those of the train split, crops of `size` px, in stage 2's framing.
    """
    model.requires_grad_(False).eval()
    samples = SplitImages(data, "train", transforms_for(settings, size, size)["val_train"], settings.seed)
    tails, steps = {name: Tail(model) for name in variants}, len(batches(samples, settings.batch_size))
    optimizers = {name: _optimizer(tails[name], each, steps, accelerator) for name, each in variants.items()}
    hooks = spare_single_values(nn.ModuleList(tails.values()))  # of several processes one may have one image
    trunk, portion, seconds = folded(model, size), Portion(settings.batch_size), dict.fromkeys(tails, 0.0)
    last = max((each.epochs for each in variants.values()), default=0)
    for epoch in range(1, last + 1):
        samples.epoch, rows = epoch, batches(samples, settings.batch_size)
        at_work = [name for name, each in variants.items() if epoch <= each.epochs]
        loaded = loader(samples, rows, workers(), accelerator.process_index, accelerator.num_processes)
        mark, shown = now(accelerator), bar(loaded, f"adapt at {size} px, epoch {epoch}/{last}")
        for batch, (images, labels, _) in zip(rows, shown, strict=True):
            with accelerator.autocast():
                maps = portion.run(lambda part: trunk(part.to(accelerator.device, non_blocking=True)), images)
            shared, mark = now(accelerator) - mark, now(accelerator)
            for name in at_work:
                _step(tails[name], maps, labels, len(batch), settings, optimizers[name], accelerator)
                own, mark = now(accelerator) - mark, now(accelerator)
                seconds[name] += shared + own
    for tail in tails.values():
        for buffer in tail.requires_grad_(False).eval().buffers():
            if accelerator.num_processes > 1:  # each process has seen other images: all get the first one's statistics
                buffer.copy_(broadcast(buffer))
    for hook in hooks:
        hook.remove()
    return AdaptedTails(tails, seconds)


def choose(
    model: nn.Module, data: ImageDataset, settings: TrainSettings, accelerator: Accelerator
) -> tuple[dict[str, Variant], list[dict[str, Any]]]:
    """Rate and epochs of every adaptation that the network can have, from the settings' lists, by validation.

    All combinations are adapted in one pass, and compared, at `settings.tuning_size`. Ties go to fewer epochs, then to
    the smaller rate.

    Returns:
        The chosen variant by adaptation, and a row per combination tried: adaptation, learning_rate, epochs, val_top1;
        none where there is nothing to choose.
    """
    rates, epochs = sorted(several(settings.adapt_learning_rate)), sorted(several(settings.adapt_epochs))
    every = [
        Variant(name, rate, count)
        for name in possible(model)
        for count, rate in itertools.product(epochs, rates if name != "bn_stats" else rates[:1])
    ]
    if not settings.tuned:
        return {each.adaptation: each for each in every}, []
    size, named = settings.tuning_size or settings.train_size, {str(number): each for number, each in enumerate(every)}
    tails = adapt_tails(model, data, settings, size, named, accelerator).tails
    table = predict(model, tails, data, "val", settings, size, accelerator).table
    top1 = (table["top1"] == table["target"]).groupby(table["adaptation"]).mean()
    tried = [asdict(each) | {"val_top1": float(top1[name])} for name, each in named.items()]
    best: dict[str, Variant] = {}
    for name in possible(model):
        own = [number for number, each in named.items() if each.adaptation == name]
        best[name] = named[max(own, key=lambda number: top1[number])]  # the first of equals
    return best, tried


def _step(
    tail: Tail,
    maps: Sequence[torch.Tensor],
    labels: torch.Tensor,
    batch: int,
    settings: TrainSettings,
    optimizer: tuple[AcceleratedOptimizer, AcceleratedScheduler] | None,
    accelerator: Accelerator,
) -> None:
    """One step with the gradient of the mean loss over the whole batch, of which this process has a part."""
    if optimizer is None:  # nothing is trained: the forward pass alone re-estimates statistics
        with torch.no_grad(), accelerator.autocast():
            tail.pooled(*maps)
        return
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.adapt_label_smoothing, reduction="sum")
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
    tail: Tail, variant: Variant, steps: int, accelerator: Accelerator
) -> tuple[AcceleratedOptimizer, AcceleratedScheduler] | None:
    """Optimizer and schedule for `steps` steps an epoch, None where nothing is trained."""
    if not (parameters := free(tail, variant.adaptation)):
        return None
    optimizer = torch.optim.SGD(parameters, variant.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps * variant.epochs, 1))
    return accelerator.prepare(optimizer, schedule)  # type: ignore[no-any-return]
