"""What the shipped sweep files promise; that each is valid and names its command is tested with the command line."""

import re

import pytest
import timm
import torch

from fixres_poc.backbones import Tail, last_batch_norm, trunk
from fixres_poc.config import REPOSITORY
from fixres_poc.geometry import size_ratio
from fixres_poc.published import stanford_dogs_2020
from fixres_poc.reading import load_sweep

PERSPECTIVES = (REPOSITORY / "sweeps/perspectives.yml").read_text(encoding="utf-8")
LISTED = re.findall(r"^#   timm:(\S+) +\d", PERSPECTIVES, re.MULTILINE)


def network(name: str) -> torch.nn.Module:
    """A timm network without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name.removeprefix("timm:")).eval()


def test_stanford_dogs_holds_the_eight_pairs_of_2020_and_those_of_theory() -> None:
    pairs = load_sweep("sweeps/stanford_dogs.yml").resolution_pairs()
    table = set(stanford_dogs_2020()[["train_size", "test_size"]].itertuples(index=False, name=None))
    theory = {(128, 160), (224, 280), (320, 396)}
    assert len(table) == 8
    assert set(pairs) == table | theory | {(128, 128)}
    assert all(abs(size_ratio(*pair) - 1) < 0.02 for pair in theory)


@pytest.mark.parametrize("stem", ["stanford_dogs", "perspectives"])
def test_a_sweep_that_was_not_run_says_so_and_what_it_would_cost(stem: str) -> None:
    text = (REPOSITORY / "sweeps" / f"{stem}.yml").read_text(encoding="utf-8")
    for promise in (
        "NOT RUN HERE YET",
        f"make plan SWEEP=sweeps/{stem}.yml",
        "Hardware:",
        "Expected time:",
        "estimate",
    ):
        assert promise in text


def test_the_weights_that_perspectives_names_are_timms_under_the_licence_it_gives() -> None:
    named = set(re.findall(r"timm:([\w.]+\w)", PERSPECTIVES))
    assert {load_sweep("sweeps/perspectives.yml").backbone.removeprefix("timm:"), *LISTED} <= named
    assert len(LISTED) == 5
    assert named <= set(timm.list_pretrained())
    assert {timm.get_pretrained_cfg(name).license for name in LISTED} == {"apache-2.0"}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LISTED)
def test_those_it_gives_all_adaptations_have_a_last_batch_norm(name: str) -> None:
    line = next(line for line in PERSPECTIVES.splitlines() if name in line)
    assert (last_batch_norm(network(name)) is None) == ("[none, head]" in line)


def test_its_network_takes_every_size_of_its_grid() -> None:
    sweep = load_sweep("sweeps/perspectives.yml")
    model = network(sweep.backbone)
    for size in {size for pair in sweep.resolution_pairs() for size in pair}:
        logits = Tail(model)(*trunk(model, torch.empty(1, 3, size, size, device="meta")))
        assert logits.shape == (1, 1000)
