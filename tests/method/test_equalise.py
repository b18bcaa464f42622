"""What enters the classifier, and the map that needs no training."""

import numpy as np
import pytest
import torch
from scipy.stats import genextreme
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.method import adaptations, equalise
from fixres_poc.model.backbones import create
from fixres_poc.model.trunk import classifier


def frechet_values(location: float, scale: float, seed: int = 0) -> np.ndarray:
    drawn = genextreme.rvs(-0.3, location, scale, size=(500, 40), random_state=seed)
    return np.asarray(drawn, dtype="float32")


def test_the_fit_finds_what_the_values_but_for_0_were_drawn_from() -> None:
    values = [frechet_values(0.5, 0.2).ravel(), np.zeros(80_000, dtype="float32")]
    assert equalise.frechet(np.concatenate(values)) == pytest.approx((0.5, 0.2), abs=0.01)


def test_equalising_undoes_a_change_of_scale_and_place() -> None:
    model = create("efficientnet_lite0", 3, pretrained=False).eval()
    seen = np.maximum(frechet_values(0.5, 0.2), 0.01)
    tail = equalise.equalise(model, seen, 3 * seen + 0.7)
    features = 0.1 + torch.rand(5, 1280)
    assert torch.allclose(
        tail.classifier(3 * features + 0.7), classifier(model)(features), atol=0.03
    )
    changed = [f"classifier.{name}" for name in ("slope", "shift", "least")]
    assert adaptations.changed_tensors(model, tail) == changed


def test_what_is_0_stays_0_and_nothing_falls_below_the_least() -> None:
    plain = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
    equalised = equalise.Equalised(plain, slope=2.0, shift=-1.0, least=0.5)
    assert equalised(torch.tensor([[0.0, 2.0, 0.6]])).item() == pytest.approx(
        0 + 10 * 3 + 100 * 0.5
    )


def test_another_classifier_is_refused() -> None:
    model = create("efficientnet_lite0", 3, pretrained=False)
    model.classifier = nn.Sequential(nn.Linear(1280, 3))
    with pytest.raises(InputError, match="equalised"):
        equalise.equalise(model, frechet_values(0, 1), frechet_values(0, 1))


def test_summary_by_hand() -> None:
    first = np.array([[0.0, 1.0], [1.0, 2.0]])
    table = equalise.summary({"a": first, "b": np.array([[0.0, 0.0], [0.0, 9.0]])})
    rows = table[["images", "mean", "near_zero", "large"]].to_numpy().tolist()
    assert rows == [["a", 1.0, 0.25, 0.25], ["b", 2.25, 0.75, 0.25]]
