"""Activations that enter the classifier, and `equalised`, which maps them back to training's.

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
    """Pooled features, which enter the classifier, of at most 200 train images.

    Returns:
        Features (N, D) by name: "train crops, 128 px", as in training, then "test framing, 128 px"
        and "test framing, 160 px", one of the two if the sizes are equal.
    """
    images = data.some("train", IMAGES, settings.split_seed)
    size = settings.train_size
    crops = features(model, images, "train", settings, size, accelerator, "train")
    activations = {f"train crops, {size} px": crops}
    for size in (settings.train_size, settings.test_size):
        name = f"test framing, {size} px"
        if name not in activations:
            activations[name] = features(model, images, "train", settings, size, accelerator)
    return activations


def summary(activations: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per distribution of `distributions`, compared with the first.

    Returns:
        Columns images (its name), mean, std, near_zero (share of values of at most 1 % of the
        first's mean) and large (share above the first's 99th percentile).
    """
    reference = next(iter(activations.values()))
    small = 0.01 * float(reference.mean())
    large = float(np.quantile(reference, 0.99))
    rows = []
    for name, values in activations.items():
        shares = (np.abs(values) <= small).mean(), (values > large).mean()
        rows.append((name, *map(float, (values.mean(), values.std(), *shares))))
    return pd.DataFrame(rows, columns=["images", "mean", "std", "near_zero", "large"])


def frechet(values: np.ndarray) -> tuple[float, float]:
    """Location and scale of a Fréchet distribution with shape 0.3, by maximum likelihood.

    The fit leaves out zeros: a mean of maps after a ReLU is exactly 0 if nothing was active, which
    is true of most in EfficientNet-Lite0, and no distribution with a density has such a share. It
    uses at most 20,000 values, evenly spread.
    """
    from scipy.stats import genextreme  # a slow import

    active = values[values != 0]
    sample = active[:: max(1, math.ceil(len(active) / VALUES))].astype("float64")
    _, location, scale = genextreme.fit(sample, f0=-0.3)  # scipy's shape has the other sign
    return float(location), float(scale)


class Equalised(nn.Linear):
    """A linear classifier of features that are first mapped back to the distribution of training.

    Between two Fréchet distributions of one shape the map is a line, the same for all features.
    Zeros stay zeros.
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


def equalise(model: nn.Module, in_training: np.ndarray, in_test: np.ndarray) -> Tail:
    """A tail that maps features distributed like `in_test` to the distribution of `in_training`.

    Args:
        in_training: pooled features as the classifier was trained on, (N, D).
        in_test: pooled features at the test resolution, (M, D).

    Raises:
        InputError: the classifier is not a linear layer.
    """
    tail = Tail(model)
    if not isinstance(tail.classifier, nn.Linear):
        raise InputError(
            "adaptation 'equalised': only for networks whose classifier is a linear layer"
        )
    location, scale = frechet(in_training)
    test_location, test_scale = frechet(in_test)
    slope = scale / test_scale
    shift = location - slope * test_location
    tail.classifier = Equalised(tail.classifier, slope, shift, float(in_training.min()))
    return tail
