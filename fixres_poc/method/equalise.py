"""The activations that enter the classifier, and `equalised`: mapped back to those of training.

Nothing is trained. Source: Touvron et al. 2019, section 4.
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
from fixres_poc.method.linear_probe import features
from fixres_poc.model.trunk import Tail

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
    some, size = data.some("train", IMAGES, settings.split_seed), settings.train_size
    crops = features(model, some, "train", settings, size, accelerator, "train")
    found = {f"train crops, {size} px": crops}
    for size in dict.fromkeys((settings.train_size, settings.test_size)):
        framed = features(model, some, "train", settings, size, accelerator)
        found[f"test framing, {size} px"] = framed
    return found


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

    def __init__(self, linear: nn.Linear, slope: float, shift: float, least: float) -> None:
        """Take over a linear layer; no mapped feature is below `least`."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        self.slope = nn.Buffer(torch.tensor(slope))
        self.shift = nn.Buffer(torch.tensor(shift))
        self.least = nn.Buffer(torch.tensor(least))
        self.to(linear.weight.device)

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
