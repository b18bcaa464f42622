"""Crops drawn by the real transforms: known ratios, neutral sizes, predictions of object sizes."""

import inspect
import math

import pandas as pd
import pytest
import torch

from fixres_poc.data import synthetic
from fixres_poc.data.dataset import BOX
from fixres_poc.data.transforms import Resize, Transform, plain_transforms
from fixres_poc.method import apparent_size as crops_module
from fixres_poc.method.apparent_size import (
    enlargement_at_test,
    neutral_test_sizes,
    pair_ratios,
    predicted_object_sizes,
    sample_crops,
)


def images(*sizes: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame(sizes, columns=["width", "height"])


@pytest.mark.parametrize(
    ("size", "mean_of_ratios", "ratio_of_means"),
    [
        ((500, 500), 0.76, 0.695),
        ((443, 386), 0.81, 0.74),
        ((500, 375), 0.84, 0.77),
        ((375, 500), 0.84, 0.77),
    ],
)
def test_ratios_of_known_image_sizes(
    size: tuple[int, int], mean_of_ratios: float, ratio_of_means: float
) -> None:
    row = pair_ratios(sample_crops(images(size)), [(224, 224)]).iloc[0]
    assert row["mean_of_ratios"] == pytest.approx(mean_of_ratios, abs=0.008)
    assert row["ratio_of_means"] == pytest.approx(ratio_of_means, abs=0.008)


def test_crops_are_the_same_each_time_and_take_images_equally_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn_each_time = inspect.unwrap(vars(crops_module)["_crop_areas"])
    monkeypatch.setattr(crops_module, "_crop_areas", drawn_each_time)
    sizes = images((300, 200), (500, 375), (97, 100))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    crops = sample_crops(sizes, 100)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert crops.equals(sample_crops(sizes, 100))
    assert sorted(crops["row"].value_counts()) == [33, 33, 34]


@pytest.mark.parametrize(("resize", "portrait"), [("short_side", 256 / 375), ("height", 256 / 500)])
def test_enlargement_of_both_resize_modes(resize: Resize, portrait: float) -> None:
    found = enlargement_at_test(images((500, 375), (375, 500), (500, 375)), 224, resize)
    assert found == pytest.approx([256 / 375, portrait, 256 / 375], rel=2e-3)


def test_at_the_neutral_sizes_the_statistics_are_one() -> None:
    crops = sample_crops(images((443, 386), (500, 375), (333, 500)))
    row = neutral_test_sizes(crops, [224]).iloc[0]
    for definition in ("mean_of_ratios", "ratio_of_means"):
        ratio = pair_ratios(crops, [(224, round(row[definition]))]).iloc[0]
        assert ratio[definition] == pytest.approx(1, abs=0.005)
    assert row["low"] < row["mean_of_ratios"] < row["ratio_of_means"] < row["high"]


def test_the_interval_is_wider_where_few_images_tell_the_sizes() -> None:
    def width(copies: int) -> float:
        crops = sample_crops(images(*[(500, 500), (600, 200)] * copies), 1000)
        row = neutral_test_sizes(crops, [224]).iloc[0]
        return float(row["high"] - row["low"])

    assert width(2) > 2 * width(200)


def measured_enlargement(transform: Transform, width: int, height: int) -> float:
    """By how much an image is enlarged, wherever the crop lies.

    Its channels are its pixels' x and y, which then step. The mean step is that of the middle,
    where there is no padding; at edges steps are smaller.
    """
    x, y = (
        torch.arange(float(width)).expand(height, width),
        torch.arange(float(height))[:, None].expand(height, width),
    )
    rendered = transform(torch.stack([x, y, y]))
    rim = rendered.shape[1] // 4
    x, y, _ = rendered[:, rim:-rim, rim:-rim]
    return (len(y) - 1) / math.sqrt(abs(float((x[:, -1] - x[:, 0]).mean() * (y[-1] - y[0]).mean())))


def measured_object_sizes(
    boxes: pd.DataFrame, train_size: int, test_size: int, resize: Resize
) -> pd.DataFrame:
    """As `predicted_object_sizes`, but measured in what the transforms render."""
    through, found = plain_transforms(train_size, test_size, resize=resize), []
    torch.manual_seed(0)
    for each in boxes.to_dict("records"):
        side = math.sqrt((each["right"] - each["left"]) * (each["bottom"] - each["top"]))
        size = each["width"], each["height"]
        test = side * measured_enlargement(through["val_test"], *size)
        found += [(side * measured_enlargement(through["train"], *size), test) for _ in range(80)]
    return pd.DataFrame(found, columns=["train_px", "test_px"])


@pytest.mark.parametrize("resize", ["short_side", "height"])
def test_predicted_sizes_of_synthetic_dogs_are_those_of_rendered_images(resize: Resize) -> None:
    names = [
        synthetic.relative_path("train", label, index) for label in range(10) for index in range(3)
    ]
    boxes = pd.DataFrame(synthetic.boxes(0, names), columns=BOX)
    shown = ["mean", "25%", "50%", "75%"]
    predicted = predicted_object_sizes(boxes, 96, 120, resize).describe().loc[shown]
    measured = measured_object_sizes(boxes, 96, 120, resize).describe().loc[shown]
    assert (predicted / measured - 1).abs().to_numpy().max() < 0.03


def test_framing_changes_the_ratio_as_the_formula_says() -> None:
    square, pair = images((448, 448)), [(224, 224)]
    crops = sample_crops(square, 500)
    usual, wider = (
        pair_ratios(crops, pair, crop_pct=crop_pct)["mean_of_ratios"].item()
        for crop_pct in (0.875, 1.0)
    )
    assert wider == pytest.approx(usual * 0.875)
    whole = sample_crops(square, 500, crop_scale=(1.0, 1.0))
    assert (whole["crop_side"] == 448).all()
    neutral = neutral_test_sizes(whole, [224], crop_pct=1.0)["mean_of_ratios"].item()
    assert neutral == pytest.approx(224)
    box = square.assign(left=0, top=0, right=448, bottom=448)
    looks = predicted_object_sizes(box, 224, 224, draws=50, crop_pct=1.0, crop_scale=(1.0, 1.0))
    assert looks.to_numpy() == pytest.approx(224)
