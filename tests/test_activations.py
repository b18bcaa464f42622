"""What enters the classifier, and the map that needs no training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import genextreme
from torch import nn

from fixres_poc import activations, datasets, pairs
from fixres_poc.backbones import Tail, classifier, create, trunk
from fixres_poc.config import InputError, PairSettings
from fixres_poc.evaluation import accelerator


def frechet_values(location: float, scale: float, seed: int = 0) -> np.ndarray:
    drawn = genextreme.rvs(-0.3, location, scale, size=(500, 40), random_state=seed)
    return np.asarray(drawn, dtype="float32")


def test_the_fit_finds_what_the_values_were_drawn_from() -> None:
    location, scale = activations.frechet(frechet_values(0.5, 0.2))
    assert location == pytest.approx(0.5, abs=0.01)
    assert scale == pytest.approx(0.2, abs=0.01)


def test_values_that_are_0_are_left_out_of_the_fit() -> None:
    values = frechet_values(0.5, 0.2)
    many = np.concatenate([values.ravel(), np.zeros(4 * values.size, dtype="float32")])
    assert activations.frechet(many) == pytest.approx(activations.frechet(values), abs=0.01)


def test_equalising_undoes_a_change_of_scale_and_place() -> None:
    model = create("efficientnet_lite0", 3, pretrained=False).eval()
    seen = np.maximum(frechet_values(0.5, 0.2), 0.01)
    tail = activations.equalise(model, seen, 3 * seen + 0.7)
    features = 0.1 + torch.rand(5, 1280)
    assert torch.allclose(tail.classifier(3 * features + 0.7), classifier(model)(features), atol=0.03)
    assert pairs.changed(model, tail) == ["classifier.slope", "classifier.shift", "classifier.least"]


def test_what_is_0_stays_0_and_nothing_falls_below_the_least() -> None:
    plain = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
    equalised = activations.Equalised(plain, slope=2.0, shift=-1.0, least=0.5)
    assert equalised(torch.tensor([[0.0, 2.0, 0.6]])).item() == pytest.approx(0 + 10 * 3 + 100 * 0.5)


def test_equal_distributions_change_nothing() -> None:
    model = create("efficientnet_lite0", 3, pretrained=False).eval()
    images = torch.randn(2, 3, 64, 64)
    maps = trunk(model, images)
    seen = Tail(model).pooled(*maps).detach().numpy()
    assert torch.allclose(activations.equalise(model, seen, seen)(*maps), Tail(model)(*maps), atol=1e-5)


def test_another_classifier_is_refused() -> None:
    model = create("efficientnet_lite0", 3, pretrained=False)
    model.classifier = nn.Sequential(nn.Linear(1280, 3))
    with pytest.raises(InputError, match="equalised"):
        activations.equalise(model, frechet_values(0, 1), frechet_values(0, 1))


def test_summary_by_hand() -> None:
    first = np.array([[0.0, 1.0], [1.0, 2.0]])
    table = activations.summary({"a": first, "b": np.array([[0.0, 0.0], [0.0, 9.0]])})
    assert table["pictures"].tolist() == ["a", "b"]
    assert table["mean"].tolist() == [1.0, 2.25]
    assert table["near_zero"].tolist() == [0.25, 0.75]
    assert table["large"].tolist() == [0.25, 0.25]


def test_every_framing_is_looked_at(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "PICTURES", 7)
    settings = PairSettings(dataset=str(colour_folder), train_size=48, test_size=64, batch_size=4)
    model = create("efficientnet_lite0", 3)
    found = activations.distributions(model, datasets.load(settings), settings, accelerator("fp32"))
    assert list(found) == ["train crops, 48 px", "test framing, 48 px", "test framing, 64 px"]
    assert {values.shape for values in found.values()} == {(7, 1280)}
    same = activations.distributions(model, datasets.load(settings), settings, accelerator("fp32"))
    assert all(np.array_equal(found[name], same[name]) for name in found)
