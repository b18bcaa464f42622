"""Stage 2: fine-tune the last layers at the test resolution, with test framing.

| name | classifier | last batch norm's running statistics | its affine weights | source |
|---|---|---|---|---|
| `bn_stats` | frozen | re-estimated | frozen | no gradient: the share of repaired statistics |
| `head` | trained | frozen | frozen | ablation in Touvron et al. 2019 |
| `head_bn_stats` | trained | re-estimated | frozen | the authors' code for ResNet and ResNeXt |
| `head_bn` | trained | re-estimated or kept | trained | the paper |
| `conv_head_bn` | with `conv_head` | the same | trained | the authors' code for EfficientNets |

The paper re-estimates statistics, as its stage 1 does. After a stage 1 that keeps the statistics of
another dataset, new ones change more than the resolution does (docs/design/method.md). Each tail
chooses this, rates, epochs and the factor of the affine weights' rate on validation, at the size
that it is used at (`adapt_best`). Each adaptation has a control, `control_head` and so on: the same
at the *train* size, which separates the effect of the test size from that of more training.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import parameters_to_vector

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import AFFINE, Adaptation, BatchNorm, TrainSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches
from fixres_poc.method.evaluation import loaded, predict, transforms_for
from fixres_poc.model.device import Maps, Portions, now, share_buffers, spare_single_values
from fixres_poc.model.trunk import Tail, fold_batch_norms, last_batch_norm, without_gradients

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # of both stages, as in the paper


@dataclass(frozen=True)
class Variant:
    """One way to adapt a tail."""

    adaptation: str  # one of `ADAPTED`
    # at the first step of a cosine schedule to 0; `bn_stats` does not use it
    learning_rate: float
    epochs: int
    # learning rate of the affine weights over `learning_rate`; None if they are not trained
    affine_factor: float | None = None
    # "frozen": the last batch norm keeps its statistics, as in a stage 1 of that mode
    batch_norm: BatchNorm | None = None


@dataclass
class AdaptedTails:
    """Adapted tails.

    Attributes:
        tails: by name.
        seconds: by name, for each alone, including the trunk; only for trained ones.
        choices: by adaptation, the best variant on validation at the size of use.
        tried: a row per candidate, see `adapt_best`.
        tuning_s: seconds spent on candidates that were not chosen.
    """

    tails: dict[str, Tail] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    choices: dict[str, Variant] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    tuning_s: float = 0.0


def tail_for(model: nn.Module, adaptation: str) -> Tail:
    """A tail with a copy of all that an adaptation, or its control, may change.

    Raises:
        InputError: the network has no such tail.
    """
    with_conv_head = adaptation.endswith("conv_head_bn")
    tail = Tail(model, with_conv_head)
    if with_conv_head and tail.conv_head is None:
        raise InputError("adaptation 'conv_head_bn': for EfficientNets alone; use 'head_bn'")
    return tail


def unfreeze(
    tail: Tail, adaptation: str, batch_norm: BatchNorm | None = None
) -> list[nn.Parameter]:
    """Make only this adaptation's parameters trainable, in place.

    Args:
        adaptation: one of `ADAPTED`.
        batch_norm: see `Variant`.

    Returns:
        The trainable parameters.

    Raises:
        InputError: the adaptation needs the last batch norm, which is not known for the network.
    """
    tail.requires_grad_(False).eval()
    tail.classifier.requires_grad_(adaptation != "bn_stats")
    if tail.conv_head is not None:
        tail.conv_head.requires_grad_(True)
    if adaptation != "head":
        if tail.norm is None:
            raise InputError(
                f"adaptation {adaptation!r}: the last batch norm is not known; use 'none' or 'head'"
            )
        tail.norm.train(batch_norm != "frozen").requires_grad_(adaptation in AFFINE)
    return [parameter for parameter in tail.parameters() if parameter.requires_grad]


def adapt_tails(
    model: nn.Module,
    data: ImageDataset,
    settings: TrainSettings,
    size: int,
    variants: Mapping[str, Variant],
    accelerator: Accelerator,
) -> AdaptedTails:
    """Adapt one tail per variant, by its name; they share the images and the frozen trunk.

    The optimizer is SGD with the paper's momentum and weight decay and a cosine schedule to zero.
    Images are crops of `size` px of the train split, in stage 2's framing.

    Args:
        model: after stage 1, in eval mode; it is not changed.

    Raises:
        ValueError: the model is in train mode.
    """
    transform = transforms_for(settings, size, size)["val_train"]
    samples = SplitImages(data, "train", transform, settings.seed)
    steps = len(batches(samples, settings.batch_size))
    tasks = {
        name: _TailTraining(model, variant, steps, settings, accelerator)
        for name, variant in variants.items()
    }
    tails = nn.ModuleList(task.tail for task in tasks.values())
    hooks = spare_single_values(tails)  # one of several processes may get a single image
    trunk = Portions(fold_batch_norms(model, size), settings.batch_size, accelerator.device)
    last = max(variant.epochs for variant in variants.values())
    processes = accelerator.process_index, accelerator.num_processes
    with without_gradients(model):
        for epoch in range(1, last + 1):
            samples.epoch = epoch
            active = [task for task in tasks.values() if epoch <= task.variant.epochs]
            title = f"adapt at {size} px, epoch {epoch}/{last}"
            parts = loaded(samples, settings.batch_size, title, *processes)
            _adapt_for_an_epoch(active, trunk, parts, accelerator)
    for hook in hooks:
        hook.remove()
    share_buffers(tails.requires_grad_(False).eval(), accelerator)
    return AdaptedTails(
        {name: task.tail for name, task in tasks.items()},
        {name: task.seconds for name, task in tasks.items()},
    )


class _TailTraining:
    """A tail that is being adapted."""

    def __init__(
        self,
        model: nn.Module,
        variant: Variant,
        steps: int,
        settings: TrainSettings,
        accelerator: Accelerator,
    ) -> None:
        """Make a variant's parameters trainable, for `steps` steps an epoch."""
        self.tail = tail_for(model, variant.adaptation)
        self.variant = variant
        self.accelerator = accelerator
        self.seconds = 0.0
        self.criterion = nn.CrossEntropyLoss(
            label_smoothing=settings.adapt_label_smoothing, reduction="sum"
        )
        self.trained = unfreeze(self.tail, variant.adaptation, variant.batch_norm)
        if self.trained:
            affine = set(self.tail.norm.parameters()) if self.tail.norm else set()
            rate = variant.learning_rate
            affine_rate = rate * (variant.affine_factor or 1)
            groups = [
                {"params": [parameter], "lr": affine_rate if parameter in affine else rate}
                for parameter in self.trained
            ]
            sgd = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps * variant.epochs)
            self.optimizer, self.schedule = accelerator.prepare(sgd, cosine)

    def step(self, maps: Maps, labels: torch.Tensor, batch: int) -> None:
        """One step with the mean loss of `batch` images, a part of which this process has."""
        if not self.trained:  # a forward pass re-estimates statistics
            with torch.no_grad(), self.accelerator.autocast():
                self.tail.pooled(*maps)
            return
        with self.accelerator.autocast():
            loss = self.criterion(self.tail(*maps), labels.to(self.accelerator.device)) / batch
        self.accelerator.backward(loss)
        if self.accelerator.num_processes > 1:
            for parameter in self.trained:
                parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


def _adapt_for_an_epoch(
    tasks: Sequence[_TailTraining],
    trunk: Callable[[torch.Tensor], Maps],
    parts: Iterable[tuple[torch.Tensor, torch.Tensor, int]],
    accelerator: Accelerator,
) -> None:
    """One step of every tail on each batch; seconds of trunk and loader count for every tail."""
    mark = now(accelerator)
    for images, labels, batch in parts:
        with accelerator.autocast():
            maps = trunk(images)
        shared = now(accelerator) - mark
        for task in tasks:
            mark = now(accelerator)
            task.step(maps, labels, batch)
            task.seconds += shared + now(accelerator) - mark
        mark = now(accelerator)


@torch.no_grad()
def moved(model: nn.Module, tail: Tail) -> float | None:
    """Relative change of the last batch norm's affine weights; None if it is not known."""
    original = last_batch_norm(model)
    if original is None or tail.norm is None:
        return None
    before, after = (parameters_to_vector(norm.parameters()) for norm in (original, tail.norm))
    return float((after - before).norm() / before.norm())


def adapt_best(
    model: nn.Module,
    data: ImageDataset,
    settings: TrainSettings,
    size: int,
    names: Iterable[Adaptation],
    accelerator: Accelerator,
) -> AdaptedTails:
    """Adapt one tail per adaptation, with the rate, epochs and factor that are best on validation.

    All combinations of the settings' lists are adapted in one pass, and compared, at `size` px. Of
    equally good ones the first of `MethodSettings.grid` wins.

    Returns:
        One tail per name. A row of `tried` is a variant with val_top1, moved (see `moved`) and, if
        `head_bn_stats` is adapted too, differs: the number of validation images for which
        `head_bn_stats` with the same rate and epochs predicts another class.
    """
    start = time.perf_counter()
    names = tuple(names)
    if not names:
        return AdaptedTails()
    grid = [Variant(name, **values) for name in names for values in settings.grid(name)]
    variants = {str(variant): variant for variant in grid}
    done = adapt_tails(model, data, settings, size, variants, accelerator)
    table = predict(model, done.tails, data, "val", settings, size, accelerator).table
    predicted = table.pivot(index="image", columns="adaptation", values="top1")
    top1 = predicted.eq(table.groupby("image")["target"].first(), axis=0).mean()
    best = AdaptedTails()
    for key, variant in variants.items():
        row = asdict(variant) | {"val_top1": top1[key], "moved": moved(model, done.tails[key])}
        plain = str(Variant("head_bn_stats", variant.learning_rate, variant.epochs))
        if plain in variants:
            row["differs"] = int((predicted[key] != predicted[plain]).sum())
        best.tried.append(row)
    for name in names:
        keys = [key for key, variant in variants.items() if variant.adaptation == name]
        chosen = str(top1[keys].idxmax())  # the first of equally good ones
        best.choices[name] = variants[chosen]
        best.tails[name], best.seconds[name] = done.tails[chosen], done.seconds[chosen]
    best.tuning_s = time.perf_counter() - start - max(best.seconds.values())
    return best
