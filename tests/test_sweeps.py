"""What the shipped sweep files promise."""

import re
from pathlib import Path

import pytest
import timm
import torch

from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.geometry import neutral_test_size
from fixres_poc.config.validation import load_sweep
from fixres_poc.model.trunk import Tail, Trunk, last_batch_norm
from fixres_poc.report.published import stanford_dogs_2020
from fixres_poc.sweep.plan import expected_images

PERSPECTIVES = (REPOSITORY / "sweeps/perspectives.yml").read_text(encoding="utf-8")
LISTED = re.findall(r"^#   timm:(\S+) +\d(.*)", PERSPECTIVES, re.MULTILINE)


SWEEPS = sorted((REPOSITORY / "sweeps").glob("*.yml"))


def network(name: str) -> torch.nn.Module:
    """A timm network without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name.removeprefix("timm:")).eval()


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_each_is_valid_and_its_header_names_its_command(file: Path) -> None:
    (command,) = re.findall(r"^#   make sweep.*", file.read_text(), re.MULTILINE)
    assert load_sweep(file).runs()
    assert file.name in command or file.stem in ("demo", "images")


def test_the_control_of_the_mechanism_and_its_twin_differ_in_the_crop_alone() -> None:
    control, twin = (load_sweep(f"sweeps/from_scratch{end}.yml") for end in ("", "_no_crop"))
    differ = {key for key, value in control if getattr(twin, key) != value}
    assert differ == {"name", "crop_scale", "pairs"}
    assert twin.crop_scale == (1, 1)
    assert (64, 96) in set(control.resolution_pairs()) & set(twin.resolution_pairs())
    assert control.split_seed != 0  # the seed on which settings were tried
    assert len(control.seeds) == 8
    assert expected_images(control).test >= 3000


@pytest.mark.parametrize("name", ["demo", "from_scratch"])
def test_what_is_trained_from_scratch_needs_no_weights_and_fills_its_maps(name: str) -> None:
    sweep = load_sweep(f"sweeps/{name}.yml")
    assert not sweep.pretrained
    assert {size % 16 for pair in sweep.resolution_pairs() for size in pair} == {0}
    assert "02_baseline" not in {run.notebook for run in sweep.runs()}


def test_stanford_dogs_holds_the_eight_pairs_of_2020_and_those_of_theory() -> None:
    table = stanford_dogs_2020()[["train_size", "test_size"]]
    published = set(table.itertuples(index=False, name=None))
    theory = {(128, 160), (224, 280), (320, 396)}
    pairs = load_sweep("sweeps/stanford_dogs.yml").resolution_pairs()
    assert len(published) == 8
    assert set(pairs) == published | theory | {(128, 128)}
    assert all(abs(test / neutral_test_size(train) - 1) < 0.02 for train, test in theory)


def test_the_weights_that_perspectives_names_are_timms_under_the_licence_it_gives() -> None:
    listed = {name for name, _ in LISTED}
    assert len(listed) == 5
    assert set(re.findall(r"timm:([\w.]+\w)", PERSPECTIVES)) <= set(timm.list_pretrained())
    assert {timm.get_pretrained_cfg(name).license for name in listed} == {"apache-2.0"}  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "rest"), LISTED)
def test_those_it_gives_all_adaptations_have_a_last_batch_norm(name: str, rest: str) -> None:
    assert (last_batch_norm(network(name)) is None) == ("[none, head]" in rest)


def test_its_network_takes_every_size_of_its_grid() -> None:
    sweep = load_sweep("sweeps/perspectives.yml")
    model = network(sweep.backbone)
    for size in {size for pair in sweep.resolution_pairs() for size in pair}:
        logits = Tail(model)(*Trunk(model)(torch.empty(1, 3, size, size, device="meta")))
        assert logits.shape == (1, 1000)
