"""Training costs, counted by hand."""

from collections.abc import Iterator

import pytest
from made_up import VAL, grid, with_facts

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.results import Results, training_cost
from fixres_poc.model.memory_plan import parameters_and_flops


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(tmp_path_factory.mktemp("home")))
        top1 = {(64, 96): {"none": 0.60, "head": 0.70}, (96, 96): {"none": 0.60, "head": 0.80}}
        yield grid(top1, adaptations=["none", "head"])


def forward(size: int) -> int:
    return parameters_and_flops("efficientnet_lite0", 2, size)[1]


@pytest.mark.parametrize("train_size", [64, 96])
def test_training_cost_by_hand(trained: Results, train_size: int) -> None:
    """300 train images, once by the probe, thrice by an epoch; those of val once."""
    at_train = (300 + VAL + 4 * (3 * 300 + VAL)) * forward(train_size)
    plain, head = (Cell(train_size, 96, name) for name in ("none", "head"))
    assert training_cost(trained, plain) == (at_train, 4 + 30)
    assert training_cost(trained, head) == (at_train + 2 * 300 * forward(96), 4 + 30 + 5)


def test_what_is_not_trained_costs_its_probe_alone(trained: Results) -> None:
    """A network of a file has no stage 1; the probe is one pass of the train part."""
    given = with_facts(trained, {"head_start": "file"})
    assert training_cost(given, Cell(64, 96, "none"))[0] == 0
    assert training_cost(trained, trained.once("probe", 96)) == (300 * forward(96), 0)
