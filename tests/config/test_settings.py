from typing import Any

import pytest

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import BaselineSettings, DataSettings, PairSettings, SweepSettings, TrainSettings
from fixres_poc.config.validation import validate

BASE: dict[str, Any] = {"name": "x", "dataset": "synthetic", "pairs": [[64, 96]]}
GRID: dict[str, Any] = {"name": "x", "dataset": "synthetic", "train_sizes": [64, 96], "test_sizes": [64, 96, 128]}


def error(values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        validate(SweepSettings, values, "x.yml")
    message = str(caught.value)
    assert message.startswith("x.yml: ")
    assert "\n" not in message
    return message.removeprefix("x.yml: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pairs": [[64]]}, "pairs = (64,): each pair is [train_size, test_size]"),
        ({"pairs": [[64, 96, 128]]}, "pairs = (64, 96, 128): each pair is [train_size, test_size]"),
        ({"pairs": [64, 96]}, "pairs = 64: each pair is [train_size, test_size]"),
        ({"pairs": "64,96"}, "pairs = '64,96': should be a list, such as [64, 96]"),
        ({"pairs": []}, "pairs = (): may not be empty"),
        ({"pairs": [[20, 96]]}, "pairs = 20: should be greater than or equal to 32"),
        ({"pairs": [[64, 4096]]}, "pairs = 4096: should be less than or equal to 2048"),
        ({"pairs": [[64, 96], [64, 96]]}, "pairs = ((64, 96), (64, 96)): each value may stand once"),
        ({"seeds": [-1]}, "seeds = -1: should be greater than or equal to 0"),
        ({"seeds": []}, "seeds = (): may not be empty"),
        ({"epochs": 0}, "epochs = 0: should be greater than or equal to 1"),
        ({"epochs": 1.0}, "epochs = 1.0: should be a valid integer"),
        ({"epochs": True}, "epochs = True: should be a valid integer"),
        ({"epochs": "4"}, "epochs = '4': should be a valid integer"),
        ({"batch_size": 1}, "batch_size = 1: should be greater than or equal to 2"),
        ({"learning_rate": 0}, "learning_rate = 0: should be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan: should be less than or equal to 10"),
        ({"label_smoothing": 1}, "label_smoothing = 1: should be less than 1"),
        ({"image_limit": 10}, "image_limit = 10: should be greater than or equal to 30"),
        ({"precision": "fp8"}, "precision = 'fp8': should be 'fp32', 'bf16' or 'fp16'"),
        ({"memory_format": "nhwc"}, "memory_format = 'nhwc': should be 'auto', 'channels_last' or 'nchw'"),
        ({"resize": "width"}, "resize = 'width': should be 'short_side' or 'height'"),
        (
            {"adaptations": ["hed"]},
            "adaptations = 'hed': should be 'none', 'head', 'head_bn_stats', 'head_bn', 'control', 'equalised' "
            "or 'full'",
        ),
        ({"adaptations": ["head", "head"]}, "adaptations = ('head', 'head'): each value may stand once"),
        ({"show_images": "no"}, "show_images = 'no': should be a valid boolean"),
        (
            {"dataset": "stanford_dogs", "show_images": True},
            "show_images = True: ImageNet's terms forbid it for stanford_dogs",
        ),
        ({"dataset": None}, "dataset = None: should be a valid string"),
        (
            {"backbone": "efficientnet"},
            "backbone = 'efficientnet': unknown backbone; did you mean 'efficientnet_lite0'? "
            "allowed: efficientnet_lite0, resnext101_32x8d_wsl, resnext101_32x16d_wsl, resnext101_32x32d_wsl, "
            "resnext101_32x48d_wsl, timm:<name>",
        ),
        (
            {"backbone": "resnext101_32x48d"},
            "backbone = 'resnext101_32x48d': unknown backbone; did you mean 'resnext101_32x48d_wsl'? "
            "allowed: efficientnet_lite0, resnext101_32x8d_wsl, resnext101_32x16d_wsl, resnext101_32x32d_wsl, "
            "resnext101_32x48d_wsl, timm:<name>",
        ),
        ({"views": ["ten_crop"]}, "views = ('ten_crop',): center must be among them: the others are held against it"),
        ({"weights": 3}, "weights = 3: should be a valid string"),
        ({"train_sizes": [64]}, "give either pairs, or both train_sizes and test_sizes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_value_is_named_with_what_is_allowed(values: dict[str, Any], message: str) -> None:
    assert error(BASE | values) == message


@pytest.mark.parametrize("missing", ["train_sizes", "test_sizes"])
def test_half_a_grid_is_refused(missing: str) -> None:
    assert error({key: value for key, value in GRID.items() if key != missing}).startswith("give either pairs, or both")


@pytest.mark.parametrize(
    ("dataset", "wish", "shown"),
    [("synthetic", None, True), ("stanford_dogs", None, False), ("birds", False, False), ("birds", True, True)],
)
def test_images_are_shown_as_wished_else_by_their_licence(dataset: str, wish: bool | None, shown: bool) -> None:
    assert DataSettings(dataset=dataset, show_images=wish).images_shown == shown


def test_missing_key_is_named() -> None:
    assert error({"name": "x", "pairs": [[64, 96]]}) == "key 'dataset' is missing"


def test_misspelt_key_gets_a_suggestion_and_the_allowed_ones() -> None:
    message = error(BASE | {"learning_rat": 0.1})
    assert message.startswith("unknown key 'learning_rat'; did you mean 'learning_rate'? allowed: adapt_epochs, ")
    assert "name" not in message.split("allowed: ")[1].split(", ")
    assert "did you mean" not in error(BASE | {"zzz": 0.1})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DataSettings().dataset = "other"  # type: ignore[misc]


def test_grid_trains_once_a_train_size_and_seed() -> None:
    runs = validate(SweepSettings, GRID | {"seeds": [0, 1]}, "x.yml").runs()
    count = {stem: sum(run.notebook == stem for run in runs) for stem in {run.notebook for run in runs}}
    once = {"00_state_of_the_art": 1, "01_dataset_eda": 1, "02_baseline": 1}
    assert count == once | {"03_train": 2 * 2, "04_fixres": 2 * 3 * 2}
    assert len({run.name for run in runs}) == len(runs)


def test_pair_waits_for_the_training_that_it_shares() -> None:
    runs = {run.name: run for run in validate(SweepSettings, GRID, "x.yml").runs()}
    pair = runs["train96_test128_seed0"]
    assert pair.needs == ("train96_seed0",)
    shared = PairSettings(**pair.parameters).train_settings()
    assert shared.model_dump() == runs["train96_seed0"].parameters


def test_runs_get_the_sweeps_values_and_its_name() -> None:
    sweep = validate(SweepSettings, BASE | {"epochs": 7, "image_limit": 90, "adaptations": ["head"]}, "x.yml")
    runs = {run.name: run.parameters for run in sweep.runs()}
    pair = runs["train64_test96_seed0"]
    assert (pair["sweep"], pair["epochs"], pair["image_limit"], pair["adaptations"]) == ("x", 7, 90, ("head",))
    assert runs["baseline"].keys() == BaselineSettings.model_fields.keys()
    assert runs["train64_seed0"].keys() == TrainSettings.model_fields.keys()
    assert runs["dataset"].items() >= sweep.data_settings().model_dump().items()


def test_imagenets_list_reaches_the_audit_and_no_training() -> None:
    runs = {run.name: run.parameters for run in validate(SweepSettings, BASE | {"imagenet_list": "x"}, "x.yml").runs()}
    assert runs["dataset"]["imagenet_list"] == "x"
    assert not [name for name, values in runs.items() if "imagenet_list" in values and name != "dataset"]


def test_pairs_keep_their_order_and_train_once() -> None:
    sweep = validate(SweepSettings, BASE | {"pairs": [[96, 64], [64, 64], [96, 96]]}, "x.yml")
    assert sweep.resolution_pairs() == ((96, 64), (64, 64), (96, 96))
    names = [run.name for run in sweep.runs() if run.notebook == "03_train"]
    assert names == ["train96_seed0", "train64_seed0"]
