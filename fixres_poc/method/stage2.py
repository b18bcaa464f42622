"""Stage 2: fine-tune the last layers at the test resolution, with test framing.

| name | classifier | last batch norm's running statistics | its affine weights | where from |
|---|---|---|---|---|
| `bn_stats` | frozen | re-estimated | frozen | no gradient: what is mere repair of statistics |
| `head` | trained | frozen | frozen | ablation in Touvron et al. 2019 |
| `head_bn_stats` | trained | re-estimated | frozen | what the authors' code does for ResNet and ResNeXt |
| `head_bn` | trained | re-estimated | trained | what the paper says |

Each has a control, `control_head` and so on: the same for as long at the *train* size, so that what
is owed to the test size can be told from what more training gives.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.accelerator import AcceleratedOptimizer, AcceleratedScheduler, Accelerator
from accelerate.utils import broadcast
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.run_state import bar
from fixres_poc.config.settings import ADAPTED, PairSettings, TrainSettings, several
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method.evaluation import predict, transforms_for
from fixres_poc.method.linear_probe import features
from fixres_poc.model.device import Portion, now, spare_single_values, workers
from fixres_poc.model.trunk import Tail, folded, last_batch_norm

IMAGES = 200
VALUES = 20_000


def distributions(
    model: nn.Module, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> dict[str, np.ndarray]:
    """Pooled features of at most 200 train images: as in training, and framed as in the test at both sizes.

    Returns:
        Name ("train crops, 128 px", "test framing, 128 px", "test framing, 160 px") -> features (N,
        D).
    """
    some, size = data.some("train", IMAGES, settings.split_seed), settings.train_size
    found = {
        f"train crops, {size} px": features(
            model, some, "train", settings, size, accelerator, "train"
        )
    }
    for each in dict.fromkeys((size, settings.test_size)):
        found[f"test framing, {each} px"] = features(
            model, some, "train", settings, each, accelerator
        )
    return found


def summary(found: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per distribution of `distributions`, held against the first.

    Returns:
        Columns images (its name), mean, std, near_zero (share of values below 1 % of the first's
        mean) and large (share above the first's 99th percentile).
    """
    first = next(iter(found.values()))
    zero, large = 0.01 * float(first.mean()), float(np.quantile(first, 0.99))
    rows = [
        (
            name,
            *map(
                float,
                (each.mean(), each.std(), (np.abs(each) <= zero).mean(), (each > large).mean()),
            ),
        )
        for name, each in found.items()
    ]
    return pd.DataFrame(rows, columns=["images", "mean", "std", "near_zero", "large"])


def frechet(values: np.ndarray) -> tuple[float, float]:
    """Location and scale of the Fréchet distribution, with shape 0.3, that is most likely to give the values but for 0.

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
    """A linear classifier behind an activation function that maps features back to the distribution of training.

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
    """A tail that maps features distributed like `given` to ones distributed like `seen` before it classifies.

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
    (location, scale), (own_location, own_scale) = frechet(seen), frechet(given)
    slope = scale / own_scale
    tail.classifier = Equalised(
        tail.classifier, slope, location - slope * own_location, float(seen.min())
    )
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
    """Adapted tails by name, and what each would have cost alone, in seconds (the shared trunk counted for each)."""

    tails: dict[str, Tail]
    seconds: dict[str, float] = field(default_factory=dict)


def possible(model: nn.Module) -> list[str]:
    """Those of `ADAPTED` that a network can have: without a known last batch norm `head` alone."""
    return [name for name in ADAPTED if name == "head" or last_batch_norm(model) is not None]


def free(tail: Tail, adaptation: str) -> list[nn.Parameter]:
    """Let only what one of `ADAPTED` may change be changed, in place, and return it: the trainable parameters.

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


def adapt_tails(
    model: nn.Module,
    data: ImageDataset,
    settings: TrainSettings,
    size: int,
    variants: Mapping[str, Variant],
    accelerator: Accelerator,
) -> AdaptedTails:
    """Adapt one tail per variant, by its name; they share the images and one pass of the frozen trunk per step.

    SGD with the paper's momentum and weight decay, and a cosine schedule to zero. The model is that
    after stage 1, and stays as it is; images are those of the train split, crops of `size` px, in
    stage 2's framing.
    """
    model.requires_grad_(False).eval()
    samples = SplitImages(
        data, "train", transforms_for(settings, size, size)["val_train"], settings.seed
    )
    tails, steps = (
        {name: Tail(model) for name in variants},
        len(batches(samples, settings.batch_size)),
    )
    optimizers = {
        name: _optimizer(tails[name], each, steps, accelerator) for name, each in variants.items()
    }
    # of several processes one may have one image
    hooks = spare_single_values(nn.ModuleList(tails.values()))
    trunk, portion, seconds = (
        folded(model, size),
        Portion(settings.batch_size),
        dict.fromkeys(tails, 0.0),
    )
    last = max((each.epochs for each in variants.values()), default=0)
    for epoch in range(1, last + 1):
        samples.epoch, rows = epoch, batches(samples, settings.batch_size)
        at_work = [name for name, each in variants.items() if epoch <= each.epochs]
        loaded = loader(
            samples, rows, workers(), accelerator.process_index, accelerator.num_processes
        )
        mark, shown = now(accelerator), bar(loaded, f"adapt at {size} px, epoch {epoch}/{last}")
        for batch, (images, labels, _) in zip(rows, shown, strict=True):
            with accelerator.autocast():
                maps = portion.run(
                    lambda part: trunk(part.to(accelerator.device, non_blocking=True)), images
                )
            shared, mark = now(accelerator) - mark, now(accelerator)
            for name in at_work:
                _step(
                    tails[name], maps, labels, len(batch), settings, optimizers[name], accelerator
                )
                own, mark = now(accelerator) - mark, now(accelerator)
                seconds[name] += shared + own
    for tail in tails.values():
        for buffer in tail.requires_grad_(False).eval().buffers():
            # each process has seen other images: all get the first one's statistics
            if accelerator.num_processes > 1:
                buffer.copy_(broadcast(buffer))
    for hook in hooks:
        hook.remove()
    return AdaptedTails(tails, seconds)


def choose(
    model: nn.Module, data: ImageDataset, settings: TrainSettings, accelerator: Accelerator
) -> tuple[dict[str, Variant], list[dict[str, Any]]]:
    """Rate and epochs of every adaptation that the network can have, from the settings' lists, by validation.

    All combinations are adapted in one pass, and compared, at `settings.tuning_size`. Ties go to
    fewer epochs, then to the smaller rate.

    Returns:
        The chosen variant by adaptation, and a row per combination tried: adaptation,
        learning_rate, epochs, val_top1; none where there is nothing to choose.
    """
    rates, epochs = (
        sorted(several(settings.adapt_learning_rate)),
        sorted(several(settings.adapt_epochs)),
    )
    every = [
        Variant(name, rate, count)
        for name in possible(model)
        for count, rate in itertools.product(epochs, rates if name != "bn_stats" else rates[:1])
    ]
    if not settings.tuned:
        return {each.adaptation: each for each in every}, []
    size, named = (
        settings.tuning_size or settings.train_size,
        {str(number): each for number, each in enumerate(every)},
    )
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
    optimizer = torch.optim.SGD(
        parameters, variant.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps * variant.epochs, 1))
    return accelerator.prepare(optimizer, schedule)  # type: ignore[no-any-return]
