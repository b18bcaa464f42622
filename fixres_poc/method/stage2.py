"""Stage 2: fine-tune the last layers at the test resolution, with test framing.

| name | classifier | last batch norm's running statistics | its affine weights | where from |
|---|---|---|---|---|
| `bn_stats` | frozen | re-estimated | frozen | no gradient: what is mere repair of statistics |
| `head` | trained | frozen | frozen | ablation in Touvron et al. 2019 |
| `head_bn_stats` | trained | re-estimated | frozen | the authors' code for ResNet and ResNeXt |
| `head_bn` | trained | re-estimated or kept | trained | what the paper says |
| `conv_head_bn` | with `conv_head` | the same | trained | the authors' code for EfficientNets |

The paper re-estimates, as its stage 1 does; after a stage 1 that keeps the statistics of another
dataset, new ones change more than the resolution does (docs/design/method.md). This, rates, epochs
and the factor of the affine weights' rate are chosen on validation, by each tail where it is used
(`adapt_best`). Each has a control, `control_head` and so on: the same at the
*train* size, so that what is owed to the test size can be told from what more training gives.
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
    # at the first step; it falls to 0 along a cosine. Without meaning for `bn_stats`
    learning_rate: float
    epochs: int
    # the affine weights' rate over `learning_rate`; None where they are not trained
    affine_factor: float | None = None
    # "frozen": the last batch norm keeps its statistics, as it did in such a stage 1
    batch_norm: BatchNorm | None = None


@dataclass
class AdaptedTails:
    """Adapted tails.

    Attributes:
        tails: by name.
        seconds: what each would have cost alone, trunk included; none for what is not trained.
        choices: by adaptation, what validation prefers at the size that they are used at.
        tried: what was chosen from, see `adapt_best`.
        tuning_s: seconds for what was not chosen.
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
    tail = Tail(model, adaptation.endswith("conv_head_bn"))
    if adaptation.endswith("conv_head_bn") and tail.conv_head is None:
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
        InputError: one of the last batch norm for a network where it is not known.
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

    SGD with the paper's momentum and weight decay, and a cosine schedule to zero. Images are those
    of the train split, crops of `size` px, in stage 2's framing.

    Args:
        model: after stage 1, in eval mode; it stays as it is.

    Raises:
        ValueError: the model is in train mode.
    """
    transform = transforms_for(settings, size, size)["val_train"]
    samples = SplitImages(data, "train", transform, settings.seed)
    steps = len(batches(samples, settings.batch_size))
    work = {
        name: _TailTraining(model, variant, steps, settings, accelerator)
        for name, variant in variants.items()
    }
    tails = nn.ModuleList(each.tail for each in work.values())
    hooks = spare_single_values(tails)  # of several processes one may have one image
    trunk = Portions(fold_batch_norms(model, size), settings.batch_size, accelerator.device)
    last = max(variant.epochs for variant in variants.values())
    processes = accelerator.process_index, accelerator.num_processes
    with without_gradients(model):
        for epoch in range(1, last + 1):
            samples.epoch = epoch
            at_work = [each for each in work.values() if epoch <= each.variant.epochs]
            title = f"adapt at {size} px, epoch {epoch}/{last}"
            parts = loaded(samples, settings.batch_size, title, *processes)
            _adapt_for_an_epoch(at_work, trunk, parts, accelerator)
    for hook in hooks:
        hook.remove()
    share_buffers(tails.requires_grad_(False).eval(), accelerator)
    return AdaptedTails(
        {name: each.tail for name, each in work.items()},
        {name: each.seconds for name, each in work.items()},
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
        """Make a variant's parameters trainable, in `steps` steps an epoch."""
        self.tail, self.variant = tail_for(model, variant.adaptation), variant
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
                {"params": [each], "lr": affine_rate if each in affine else rate}
                for each in self.trained
            ]
            sgd = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps * variant.epochs)
            self.optimizer, self.schedule = accelerator.prepare(sgd, cosine)

    def step(self, maps: Maps, labels: torch.Tensor, batch: int) -> None:
        """One step with the mean loss of a batch, of which this process has a part."""
        if not self.trained:  # the forward pass alone re-estimates statistics
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
    at_work: Sequence[_TailTraining],
    trunk: Callable[[torch.Tensor], Maps],
    parts: Iterable[tuple[torch.Tensor, torch.Tensor, int]],
    accelerator: Accelerator,
) -> None:
    """A step of every tail on each batch; the shared seconds of trunk and loader count for each."""
    mark = now(accelerator)
    for images, labels, batch in parts:
        with accelerator.autocast():
            maps = trunk(images)
        shared = now(accelerator) - mark
        for each in at_work:
            mark = now(accelerator)
            each.step(maps, labels, batch)
            each.seconds += shared + now(accelerator) - mark
        mark = now(accelerator)


@torch.no_grad()
def moved(model: nn.Module, tail: Tail) -> float | None:
    """How far an adaptation moved the affine weights: |change| / |weights|; None without any."""
    own = last_batch_norm(model)
    if own is None or tail.norm is None:
        return None
    before, after = (parameters_to_vector(norm.parameters()) for norm in (own, tail.norm))
    return float((after - before).norm() / before.norm())


def adapt_best(
    model: nn.Module,
    data: ImageDataset,
    settings: TrainSettings,
    size: int,
    names: Iterable[Adaptation],
    accelerator: Accelerator,
) -> AdaptedTails:
    """Adapt a tail in each named way, with the rate, epochs and factor that validation prefers.

    All combinations of the settings' lists are adapted in one pass, and compared, at `size` px. Of
    equals the first of `MethodSettings.grid` is taken.

    Returns:
        One tail per name. A row of `tried` is a variant with val_top1, moved (see `moved`) and, if
        `head_bn_stats` is adapted too, differs: on how many validation images the same rate and
        epochs of that predict another class.
    """
    names, start = tuple(names), time.perf_counter()
    if not names:
        return AdaptedTails()
    every = [Variant(name, **way) for name in names for way in settings.grid(name)]
    variants = {str(each): each for each in every}
    done = adapt_tails(model, data, settings, size, variants, accelerator)
    table = predict(model, done.tails, data, "val", settings, size, accelerator).table
    answers = table.pivot(index="image", columns="adaptation", values="top1")
    right = answers.eq(table.groupby("image")["target"].first(), axis=0).mean()
    best = AdaptedTails()
    for key, each in variants.items():
        row = asdict(each) | {"val_top1": right[key], "moved": moved(model, done.tails[key])}
        plain = str(Variant("head_bn_stats", each.learning_rate, each.epochs))
        if plain in variants:
            row["differs"] = int((answers[key] != answers[plain]).sum())
        best.tried.append(row)
    for name in names:
        own = [key for key, each in variants.items() if each.adaptation == name]
        chosen = str(right[own].idxmax())  # the first of equals
        best.choices[name] = variants[chosen]
        best.tails[name], best.seconds[name] = done.tails[chosen], done.seconds[chosen]
    best.tuning_s = time.perf_counter() - start - max(best.seconds.values())
    return best
