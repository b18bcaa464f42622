"""What enters the classifier, and how a larger test resolution changes it: the second effect that FixRes repairs.

At a larger test resolution the maps before global pooling are larger, so that their means are zero less often and
spread less (Touvron et al. 2019, section 3.2 and figure 3). `equalise` maps the distribution back without training
(section 4).
"""

import math

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import PairSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.method.baseline import features
from fixres_poc.model.trunk import Tail

IMAGES = 200
VALUES = 20_000


def distributions(
    model: nn.Module, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> dict[str, np.ndarray]:
    """Pooled features of at most 200 train images: as in training, and framed as in the test at both sizes.

    Returns:
        Name ("train crops, 128 px", "test framing, 128 px", "test framing, 160 px") -> features (N, D).
    """
    some, size = data.some("train", IMAGES, settings.split_seed), settings.train_size
    found = {f"train crops, {size} px": features(model, some, "train", settings, size, accelerator, "train")}
    for each in dict.fromkeys((size, settings.test_size)):
        found[f"test framing, {each} px"] = features(model, some, "train", settings, each, accelerator)
    return found


def summary(found: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per distribution of `distributions`, held against the first.

    Returns:
        Columns images (its name), mean, std, near_zero (share of values below 1 % of the first's mean) and large
        (share above the first's 99th percentile).
    """
    first = next(iter(found.values()))
    zero, large = 0.01 * float(first.mean()), float(np.quantile(first, 0.99))
    rows = [
        (name, *map(float, (each.mean(), each.std(), (np.abs(each) <= zero).mean(), (each > large).mean())))
        for name, each in found.items()
    ]
    return pd.DataFrame(rows, columns=["images", "mean", "std", "near_zero", "large"])


def frechet(values: np.ndarray) -> tuple[float, float]:
    """Location and scale of the Fréchet distribution, with shape 0.3, that is most likely to give the values but for 0.

    A mean of maps after a ReLU is exactly 0 where nothing was active: for EfficientNet-Lite0 most of them are. No
    distribution with a density gives such a share, so it is left out. At most 20,000 values, evenly spread, are used.
    """
    from scipy.stats import genextreme  # a second of processor time, and most commands fit nothing

    active = values[values != 0]
    some = active[:: max(1, math.ceil(len(active) / VALUES))].astype("float64")
    _, location, scale = genextreme.fit(some, f0=-0.3)  # scipy's shape has the other sign
    return float(location), float(scale)


class Equalised(nn.Linear):
    """A linear classifier behind an activation function that maps features back to the distribution of training.

    Between two Fréchet distributions of one shape the map is a line, the same for all features. What is 0 stays 0.
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
        raise InputError("adaptation 'equalised': only for networks whose classifier is a linear layer")
    (location, scale), (own_location, own_scale) = frechet(seen), frechet(given)
    slope = scale / own_scale
    tail.classifier = Equalised(tail.classifier, slope, location - slope * own_location, float(seen.min()))
    return tail
