"""What enters the classifier, and how a larger test size changes it: the second effect that FixRes repairs.

At a larger test size the maps before global pooling are larger, so that their means are zero less often and spread less
(Touvron et al. 2019, section 3.2 and figure 3). `equalise` maps the distribution back without training (section 4).
"""

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from scipy.stats import genextreme
from torch import nn

from fixres_poc.backbones import Tail
from fixres_poc.config import InputError, PairSettings
from fixres_poc.datasets import Pictures
from fixres_poc.evaluation import features

SHAPE = 0.3
PICTURES = 500
VALUES = 20_000
NEAR_ZERO = 0.01
LARGE_QUANTILE = 0.99


def distributions(
    model: nn.Module, pictures: Pictures, settings: PairSettings, engine: Accelerator
) -> dict[str, np.ndarray]:
    """Pooled features of at most 500 train pictures: as in training, and framed as in the test at both sizes.

    Returns:
        Name ("train crops, 128 px", "test framing, 128 px", "test framing, 160 px") -> features (N, D).
    """
    some = pictures.some("train", PICTURES, settings.split_seed)
    train, test = settings.train_size, settings.test_size
    framings = {f"train crops, {train} px": ("train", train), f"test framing, {train} px": ("val_test", train)}
    framings[f"test framing, {test} px"] = ("val_test", test)
    return {
        name: features(model, some, "train", settings, size, engine, framing)
        for name, (framing, size) in framings.items()
    }


def summary(found: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per distribution.

    Args:
        found: from `distributions`; the first is the one that the others are held against.

    Returns:
        Columns pictures (its name), mean, std, near_zero (share of values below 1 % of the first's mean) and large
        (share above the first's 99th percentile).
    """
    first = next(iter(found.values()))
    zero, large = NEAR_ZERO * float(first.mean()), float(np.quantile(first, LARGE_QUANTILE))
    rows = [
        {
            "pictures": name,
            "mean": float(values.mean()),
            "std": float(values.std()),
            "near_zero": float((np.abs(values) <= zero).mean()),
            "large": float((values > large).mean()),
        }
        for name, values in found.items()
    ]
    return pd.DataFrame(rows)


def frechet(values: np.ndarray) -> tuple[float, float]:
    """Location and scale of the Fréchet distribution, with shape 0.3, that is most likely to give the values.

    Args:
        values: of any shape; at most 20,000 of them are looked at, evenly spread.
    """
    flat = values.ravel()
    step = max(1, len(flat) // VALUES)
    _, location, scale = genextreme.fit(flat[::step].astype("float64"), f0=-SHAPE)  # scipy's shape has the other sign
    return float(location), float(scale)


def equalise(model: nn.Module, seen: np.ndarray, given: np.ndarray) -> Tail:
    """A tail that maps features distributed like `given` to ones distributed like `seen` before it classifies.

    Between two Fréchet distributions of one shape the map is a line, the same for all features, so it goes into the
    classifier: W (a x + b) + c = (a W) x + (b W 1 + c).

    Args:
        model: the network after stage 1; not changed.
        seen: pooled features of what the classifier was trained on, (N, D).
        given: pooled features at the test size, (M, D).

    Raises:
        InputError: the classifier is not a linear layer.
    """
    tail = Tail(model)
    if not isinstance(tail.classifier, nn.Linear):
        raise InputError("adaptation 'equalised': only for networks whose classifier is a linear layer")
    (location, scale), (own_location, own_scale) = frechet(seen), frechet(given)
    slope = scale / own_scale
    with torch.no_grad():
        weight, bias = tail.classifier.weight, tail.classifier.bias
        bias.add_((location - slope * own_location) * weight.sum(dim=1))
        weight.mul_(slope)
    return tail
