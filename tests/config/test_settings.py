from itertools import product
from operator import itemgetter
from typing import Any

import pytest

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings, PairSettings, TrainSettings
from fixres_poc.config.sweep_settings import Run, SweepSettings
from fixres_poc.config.validation import validate

BASE: dict[str, Any] = {"name": "x", "dataset": "synthetic", "pairs": [[64, 96]]}
GRID = BASE | {"pairs": None, "train_sizes": [64, 96], "test_sizes": [64, 96, 128]}


def sweep(base: dict[str, Any] = GRID, **values: Any) -> SweepSettings:
    return validate(SweepSettings, base | values, "x.yml")


def error(values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        sweep(values)
    message = str(caught.value)
    assert message.startswith("x.yml: ")
    assert "\n" not in message
    return message.removeprefix("x.yml: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pairs": [[64]]}, "pairs = (64,): a value is missing in it"),
        ({"pairs": [64, 96]}, "pairs = 64: should be a valid list"),
        (
            {"learning_rate": ["1e-3"]},
            "learning_rate = '1e-3': should be a valid number; YAML wants a point in it, such as "
            "1.0e-3",
        ),
        (
            {"extra_test": {"name": "x", "folder": "y", "validation": 1}},
            "extra_test.validation = 1: should be less than or equal to 0.9",
        ),
        (
            {"mean_std": [[124.0, 116.0, 104.0], [58.0, 57.0, 57.0]]},
            "mean_std = 124.0: should be less than or equal to 1",
        ),
        ({"adapt_epochs": [1, 1]}, "adapt_epochs = (1, 1): each value may stand once"),
        ({"full_pairs": [[64, 64]]}, "full_pairs: [[64, 64]] are no pairs of this sweep"),
        ({"extra_test": {"name": "x"}}, "key 'extra_test.folder' is missing"),
        (
            {"extra_test": {"name": "val", "folder": "y"}},
            "extra_test = {'name': 'val', 'folder': 'y'}: name = 'val': one of the dataset's own "
            "parts; allowed is another name",
        ),
        ({"precision": "fp8"}, "precision = 'fp8': should be 'fp32', 'bf16' or 'fp16'"),
        (
            {"dataset": "stanford_dogs", "show_images": True},
            "show_images = True: the terms of stanford_dogs do not allow it",
        ),
        (
            {"backbone": "efficientnet"},
            "backbone = 'efficientnet': unknown backbone; allowed: efficientnet_lite0, "
            "efficientnet_lite1, efficientnet_lite2, resnext_small, resnext101_32x8d_wsl, "
            "resnext101_32x16d_wsl, resnext101_32x32d_wsl, resnext101_32x48d_wsl, timm:<name>",
        ),
        ({"train_sizes": [64]}, "give either pairs, or both train_sizes and test_sizes"),
        (
            {"pairs": None, "train_sizes": [64]},
            "give either pairs, or both train_sizes and test_sizes",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_value_is_named_with_what_is_allowed(
    values: dict[str, Any], message: str
) -> None:
    assert error(BASE | values) == message


REFUSED = {
    "pairs": ([], [[64, 96], [64, 96]], [[64, 96, 128]], [[64, 4096]], "64,96"),
    "seeds": ([], [-1], [2**31]),
    "epochs": (0, 1.0, True, "4"),
    "learning_rate": (0, [0.1, 0.0], [], float("nan")),
    "adapt_learning_rate": (0,),
    "affine_factor": ([1, 0],),
    "adapt_epochs": ([1, 0],),
    "image_limit": (10, 100_001),
    "views": (["ten_crop"],),  # without center
    "crop_pct": (0.2, 1.2, "0.9", True, [], 0.71428571, [0.71, 1.0], [0.875, 2]),
    "crop_scale": (0.5, [0, 1], [0.1, 1.1], [0.1], [0.5, 0.2]),
    "adaptations": (["hed"], ["head", "head"]),
    "weights": (3,),
}


@pytest.mark.parametrize("key", REFUSED)
def test_limits_of_values(key: str) -> None:
    for value in REFUSED[key]:
        assert error(BASE | {key: value}).startswith(f"{key} = "), value


@pytest.mark.parametrize(
    ("dataset", "wish", "shown"),
    [
        ("synthetic", None, True),
        ("stanford_dogs", None, False),
        ("birds", False, False),
        ("birds", True, True),
    ],
)
def test_images_are_shown_as_wished_else_by_their_licence(
    dataset: str, wish: bool | None, shown: bool
) -> None:
    assert DataSettings(dataset=dataset, show_images=wish).images_shown == shown


def test_unknown_keys_are_named_with_those_allowed() -> None:
    start, _, allowed = error(BASE | {"zzz": 0.1}).partition("allowed: ")
    assert start == "unknown key 'zzz'; "
    keys = allowed.split(", ")
    assert keys[0] == "adapt_batch_norm"
    assert "name" not in keys


def runs(**values: Any) -> dict[str, Run]:
    return {run.name: run for run in sweep(**values).runs()}


def test_without_pre_trained_weights_nothing_waits_for_a_probe() -> None:
    found = runs(pretrained=False, backbone="resnext_small")
    assert "baseline" not in found
    training, pair = found["train64_seed0"], found["train64_test96_seed0"]
    assert (training.needs, pair.needs) == ((), ("train64_seed0",))
    assert pair.parameters.items() >= {"pretrained": False, "head_start": "random"}.items()


@pytest.mark.parametrize(
    "more", [{"head_start": "probe"}, {"weights": "a.pt"}, {"trained": "a.pt", "train_sizes": [64]}]
)
def test_random_weights_go_with_no_others_and_no_probe(more: dict[str, Any]) -> None:
    message = "pretrained = False: training starts from random weights; allowed with head_start:"
    assert error(GRID | {"pretrained": False} | more).startswith(message)


@pytest.mark.parametrize(
    ("key", "values"), [("learning_rate", [1, 2]), ("batch_norm", ["train", "frozen"])]
)
def test_with_a_list_of_recipes_later_seeds_wait_for_what_the_first_one_chooses(
    key: str, values: list[Any]
) -> None:
    tuned = {
        name: (run.parameters.get("tuned_by"), *run.needs)
        for name, run in runs(seeds=[3, 1], **{key: values}).items()
    }
    expected = {
        "train64_seed3": (None,),
        "train96_seed1": (3, "train96_seed3"),
        "train96_test64_seed1": (3, "train96_seed1"),
    }
    assert expected.items() <= tuned.items()
    alone = runs(seeds=[3, 1], **{key: values[:1]}, adapt_epochs=[1, 2], affine_factor=[1, 2])
    assert alone["train64_seed1"].needs == (), "every seed chooses stage 2 itself"


def test_the_grid_of_stage_2_begins_with_few_epochs_a_small_rate_and_a_small_factor() -> None:
    lists: dict[str, Any] = {"adapt_epochs": (2, 1), "adapt_learning_rate": (0.1, 0.01)}
    settings = TrainSettings(train_size=64, **lists, affine_factor=(10.0, 1.0))
    keys = itemgetter("epochs", "learning_rate", "affine_factor", "batch_norm")
    ways = [*product((1, 2), (0.01, 0.1), (1, 10), ("frozen", "train"))]
    assert [keys(way) for way in settings.grid("head_bn")] == ways
    without_affine = [*product((1, 2), (0.01, 0.1), [None], [None])]
    assert [keys(way) for way in settings.grid("head_bn_stats")] == without_affine
    assert [way["epochs"] for way in settings.grid("bn_stats")] == [1, 2], "it has no rate"


def test_the_primary_pair_is_the_largest_claim_nearest_to_its_matched_size() -> None:
    """96 to 128 px has a ratio of 1.08, 64 to 128 px one of 1.6; 64 to 96 px is no candidate."""
    assert sweep(train_sizes=[64, 96, 128]).primary_pair() == (96, 128)
    assert sweep(primary=[64, 96]).primary_pair() == (64, 96)
    assert sweep(train_sizes=[128]).primary_pair() is None
    message = "primary = [64, 128]: allowed is a pair with a smaller train resolution"
    assert error(GRID | {"primary": [64, 128]}).startswith(message)


def test_the_primary_pair_has_a_reference_at_equal_flops() -> None:
    training, pair = (runs()[f"train96_equal_flops{name}_seed0"] for name in ("", "_test96"))
    assert training.parameters["equal_flops"] == 64
    assert pair.needs == (training.name,)
    assert not any("equal_flops" in name for name in runs(train_sizes=[96]))


CROPS = (0.875, 0.71, 1.0)


def trying(**values: Any) -> set[str]:
    """Names of the runs that try a list of crop_pct."""
    found = runs(**values, crop_pct=list(CROPS))
    tried = {name for name, run in found.items() if run.parameters.get("crop_pct") == CROPS}
    others = {run.parameters.get("crop_pct") for name, run in found.items() if name not in tried}
    assert others - {None} == {0.875}
    return tried


def test_a_list_of_crop_pct_is_tried_where_it_is_asked_about_and_nowhere_else() -> None:
    sizes = {"train_sizes": [64, 96, 128], "test_sizes": [64, 80, 96, 128]}
    # 64 -> 96, 64 -> 128 and 96 -> 128 with their 96 -> 96 and 128 -> 128; 64 -> 80 is matched
    pairs = [(64, 96), (64, 128), (96, 128), (96, 96), (128, 128), (64, 80)]
    short = "train128_equal_flops_test128_seed0"
    names = {f"train{train}_test{test}_seed0" for train, test in pairs}
    assert trying(**sizes) == {"baseline", short, *names}
    found = runs(**sizes, crop_pct=list(CROPS))
    assert found["baseline"].parameters["crop_pct_sizes"] == (80, 96, 128)
    pair = PairSettings(**found["train64_test96_seed0"].parameters)
    assert pair.train_settings().model_dump() == found["train64_seed0"].parameters


def test_the_crop_scale_moves_the_matched_resolution() -> None:
    sizes = {"train_sizes": [96], "test_sizes": [104, 120, 160]}
    for scale, near in (([0.08, 1.0], [104, 120]), ([1.0, 1.0], [104])):
        names = {f"train96_test{size}_seed0" for size in near}
        assert trying(**sizes, crop_scale=scale) == {"baseline", *names}
