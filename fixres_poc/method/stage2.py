"""Stage 2: fine-tune the last layers at the test resolution, with test framing.

| name | classifier | last batch norm's running statistics | its affine weights | where from |
|---|---|---|---|---|
| `bn_stats` | frozen | re-estimated | frozen | no gradient: what is mere repair of statistics |
| `head` | trained | frozen | frozen | ablation in Touvron et al. 2019 |
| `head_bn_stats` | trained | re-estimated | frozen | the authors' code for ResNet and ResNeXt |
| `head_bn` | trained | re-estimated | trained | what the paper says |

Each has a control, `control_head` and so on: the same for as long at the *train* size, so that what
is owed to the test size can be told from what more training gives.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.run_state import bar
from fixres_poc.config.settings import ADAPTED, PairSettings, TrainSettings, several
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method.evaluation import choose_on_validation, predict, transforms_for
from fixres_poc.method.linear_probe import features
from fixres_poc.model.device import Maps, Portions, now, share_buffers, spare_single_values, workers
from fixres_poc.model.trunk import Tail, fold_batch_norms, last_batch_norm, without_gradients

IMAGES = 200
VALUES = 20_000


def distributions(
    model: nn.Module, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> dict[str, np.ndarray]:
    """Pooled features of at most 200 train images, as the classifier sees them.

    Returns:
        Features (N, D) by name: "train crops, 128 px", as in training, and as framed in the test at
        both sizes, "test framing, 128 px" and "test framing, 160 px".
    """
    some = data.some("train", IMAGES, settings.split_seed)
    ways = [("train crops", settings.train_size, "train")]
    for size in dict.fromkeys((settings.train_size, settings.test_size)):
        ways.append(("test framing", size, "val_test"))
    return {
        f"{name}, {size} px": features(model, some, "train", settings, size, accelerator, framing)
        for name, size, framing in ways
    }


def summary(found: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per distribution of `distributions`, held against the first.

    Returns:
        Columns images (its name), mean, std, near_zero (share of values below 1 % of the first's
        mean) and large (share above the first's 99th percentile).
    """
    first = next(iter(found.values()))
    zero, large = 0.01 * float(first.mean()), float(np.quantile(first, 0.99))
    rows = []
    for name, each in found.items():
        shares = (np.abs(each) <= zero).mean(), (each > large).mean()
        rows.append((name, *map(float, (each.mean(), each.std(), *shares))))
    return pd.DataFrame(rows, columns=["images", "mean", "std", "near_zero", "large"])


def frechet(values: np.ndarray) -> tuple[float, float]:
    """Location and scale of a Fréchet distribution with shape 0.3, fitted to non-zero values.

    It is the maximum-likelihood fit.

    A mean of maps after a ReLU is exactly 0 where nothing was active: for EfficientNet-Lite0 most
    of them are. No distribution with a density gives such a share, so it is left out. At most
    20,000 values, evenly spread, are used.
    """
    from scipy.stats import genextreme  # a second of processor time, and most commands fit nothing

    active = values[values != 0]
    some = active[:: max(1, math.ceil(len(active) / VALUES))].astype("float64")
    _, location, scale = genextreme.fit(some, f0=-0.3)  # scipy's shape has the other sign
    return float(location), float(scale)


class Equalised(nn.Linear):
    """A linear classifier behind a map of features back to the distribution of training.

    Between two Fréchet distributions of one shape the map is a line, the same for all features.
    What is 0 stays 0.
    """

    slope: torch.Tensor
    shift: torch.Tensor
    least: torch.Tensor

    def __init__(self, linear: nn.Linear, slope: float, shift: float, least: float) -> None:
        """Take over a linear layer; no mapped feature is below `least`."""
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device=linear.weight.device)
        self.load_state_dict(linear.state_dict())
        for name, value in {"slope": slope, "shift": shift, "least": least}.items():
            self.register_buffer(name, torch.tensor(value, device=linear.weight.device))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of features (N, D)."""
        mapped = torch.maximum(self.slope * features + self.shift, self.least)
        return super().forward(torch.where(features == 0, features, mapped.to(features.dtype)))


def equalise(model: nn.Module, seen: np.ndarray, given: np.ndarray) -> Tail:
    """A tail that maps features distributed like `given` to the distribution of `seen`.

    Args:
        seen: pooled features of what the classifier was trained on, (N, D).
        given: pooled features at the test resolution, (M, D).

    Raises:
        InputError: the classifier is not a linear layer.
    """
    tail = Tail(model)
    if not isinstance(tail.classifier, nn.Linear):
        raise InputError(
            "adaptation 'equalised': only for networks whose classifier is a linear layer"
        )
    location, scale = frechet(seen)
    own_location, own_scale = frechet(given)
    slope = scale / own_scale
    shift = location - slope * own_location
    tail.classifier = Equalised(tail.classifier, slope, shift, float(seen.min()))
    return tail


MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # of both stages, as in the paper


@dataclass(frozen=True)
class Variant:
    """One way to adapt a tail."""

    adaptation: str  # one of `ADAPTED`
    # at the first step; it falls to 0 along a cosine. Without meaning for `bn_stats`
    learning_rate: float
    epochs: int


@dataclass
class AdaptedTails:
    """Adapted tails by name, and the seconds that each would have cost alone, trunk included."""

    tails: dict[str, Tail]
    seconds: dict[str, float]


def possible_adaptations(model: nn.Module) -> list[str]:
    """Those of `ADAPTED` that a network can have: without a known last batch norm `head` alone."""
    return [name for name in ADAPTED if name == "head" or last_batch_norm(model) is not None]


def unfreeze(tail: Tail, adaptation: str) -> list[nn.Parameter]:
    """Make only this adaptation's parameters trainable, in place.

    Returns:
        The trainable parameters.

    Raises:
        InputError: unknown adaptation, or one of the last batch norm for a network where it is not
            known.
    """
    if adaptation not in ADAPTED:
        raise InputError(f"adaptation {adaptation!r}: allowed here are {', '.join(ADAPTED)}")
    tail.requires_grad_(False).eval()
    tail.classifier.requires_grad_(adaptation != "bn_stats")
    if adaptation != "head":
        if tail.norm is None:
            raise InputError(
                f"adaptation {adaptation!r}: the last batch norm is not known; use 'none' or 'head'"
            )
        tail.norm.train().requires_grad_(adaptation == "head_bn")
    return [parameter for parameter in tail.parameters() if parameter.requires_grad]


def training_batches(
    samples: SplitImages, rows: list[list[int]], accelerator: Accelerator, title: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """This process' part of every batch, images and labels, and the batch's size."""
    process, processes = accelerator.process_index, accelerator.num_processes
    loaded = bar(loader(samples, rows, workers(), process, processes), title)
    for batch, (images, labels, _) in zip(rows, loaded, strict=True):
        yield images, labels, len(batch)


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
        name: _TailTraining(Tail(model), variant, steps, settings, accelerator)
        for name, variant in variants.items()
    }
    tails = nn.ModuleList(each.tail for each in work.values())
    hooks = spare_single_values(tails)  # of several processes one may have one image
    trunk = Portions(fold_batch_norms(model, size), settings.batch_size, accelerator.device)
    last = max((variant.epochs for variant in variants.values()), default=0)
    with without_gradients(model):
        for epoch in range(1, last + 1):
            rows = batches(samples, settings.batch_size)  # in the order of the epoch before
            samples.epoch = epoch
            at_work = [each for each in work.values() if epoch <= each.variant.epochs]
            title = f"adapt at {size} px, epoch {epoch}/{last}"
            loaded = training_batches(samples, rows, accelerator, title)
            _adapt_for_an_epoch(at_work, trunk, loaded, accelerator)
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
        tail: Tail,
        variant: Variant,
        steps: int,
        settings: TrainSettings,
        accelerator: Accelerator,
    ) -> None:
        """Make a variant's parameters trainable, in `steps` steps an epoch."""
        self.tail, self.variant, self.accelerator = tail, variant, accelerator
        self.seconds = 0.0
        self.criterion = nn.CrossEntropyLoss(
            label_smoothing=settings.adapt_label_smoothing, reduction="sum"
        )
        self.trained = unfreeze(tail, variant.adaptation)
        if self.trained:
            sgd = torch.optim.SGD(
                self.trained, variant.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY
            )
            count = max(steps * variant.epochs, 1)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, count)
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
    loaded: Iterable[tuple[torch.Tensor, torch.Tensor, int]],
    accelerator: Accelerator,
) -> None:
    """A step of every tail on each batch; the shared seconds of trunk and loader count for each."""
    mark = now(accelerator)
    for images, labels, batch in loaded:
        with accelerator.autocast():
            maps = trunk(images)
        shared = now(accelerator) - mark
        for each in at_work:
            mark = now(accelerator)
            each.step(maps, labels, batch)
            each.seconds += shared + now(accelerator) - mark
        mark = now(accelerator)


def choose_variants(
    model: nn.Module, data: ImageDataset, settings: TrainSettings, accelerator: Accelerator
) -> tuple[dict[str, Variant], list[dict[str, Any]]]:
    """Rate and epochs of every adaptation that the network can have, chosen on validation.

    All combinations of the settings' lists are adapted in one pass, and compared, at
    `settings.tuning_size`. Ties go to fewer epochs, then to the smaller rate.

    Returns:
        The chosen variant by adaptation, and a row per combination tried: adaptation,
        learning_rate, epochs, val_top1; none where there is nothing to choose.
    """
    epochs = sorted(several(settings.adapt_epochs))
    rates = sorted(several(settings.adapt_learning_rate))
    variants: dict[str, list[Variant]] = {}
    for name in possible_adaptations(model):
        allowed = rates[:1] if name == "bn_stats" else rates  # it has no rate
        ways = itertools.product(epochs, allowed)
        variants[name] = [Variant(name, rate, count) for count, rate in ways]
    if not settings.tuned:
        return {name: only for name, (only,) in variants.items()}, []
    size = settings.tuning_size or settings.train_size
    named = {str(each): each for own in variants.values() for each in own}
    tails = adapt_tails(model, data, settings, size, named, accelerator).tails
    table = predict(model, tails, data, "val", settings, size, accelerator).table
    top1 = (table["top1"] == table["target"]).groupby(table["adaptation"]).mean()

    def look_up(values: Mapping[str, Any]) -> tuple[dict[str, float], Variant]:
        variant = Variant(**values)
        return {"val_top1": float(top1[str(variant)])}, variant

    best: dict[str, Variant] = {}
    tried: list[dict[str, Any]] = []
    for name, own in variants.items():
        best[name], rows = choose_on_validation([asdict(each) for each in own], look_up)
        tried += rows
    return best, tried
