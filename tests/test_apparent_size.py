"""Crops drawn by the real transforms: known ratios, neutral sizes, and prediction against rendered pictures."""

import numpy as np
import pandas as pd
import pytest
import torch

from fixres_poc import apparent_size
from fixres_poc.apparent_size import (
    compare_object_sizes,
    measured_object_sizes,
    neutral_test_sizes,
    pair_ratios,
    predicted_object_sizes,
    sample_crops,
    size_ratios,
)
from fixres_poc.datasets import synthetic
from fixres_poc.transforms import Resize


def pictures(*sizes: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame(sizes, columns=["width", "height"])


def box(left: int, top: int, right: int, bottom: int, width: int = 400, height: int = 400) -> pd.DataFrame:
    names = ["left", "top", "right", "bottom", "width", "height"]
    return pd.DataFrame([(left, top, right, bottom, width, height)], columns=names)


@pytest.mark.parametrize(
    ("size", "mean_of_ratios", "ratio_of_means"),
    [((500, 500), 0.76, 0.695), ((443, 386), 0.81, 0.74), ((500, 375), 0.84, 0.77), ((375, 500), 0.84, 0.77)],
)
def test_ratios_of_known_picture_sizes(size: tuple[int, int], mean_of_ratios: float, ratio_of_means: float) -> None:
    row = pair_ratios(sample_crops(pictures(size)), [(224, 224)]).iloc[0]
    assert row["mean_of_ratios"] == pytest.approx(mean_of_ratios, abs=0.008)
    assert row["ratio_of_means"] == pytest.approx(ratio_of_means, abs=0.008)
    assert row["q25"] < row["q50"] < row["q75"]


def test_a_pair_is_scaled_by_both_sizes() -> None:
    crops = sample_crops(pictures((448, 448)), 500)
    table = pair_ratios(crops, [(224, 224), (112, 224), (224, 448)])
    assert (table["mean_of_ratios"] / table["mean_of_ratios"][0]).tolist() == pytest.approx([1, 2, 2])
    assert size_ratios(crops, 224, 224).mean() == pytest.approx(table["mean_of_ratios"][0])


def test_crops_depend_on_the_seed_alone_and_take_pictures_equally_often() -> None:
    sizes = pictures((300, 200), (500, 375), (97, 100))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    crops = sample_crops(sizes, 100, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert crops.equals(sample_crops(sizes, 100, seed=5))
    assert not crops.equals(sample_crops(sizes, 100, seed=6))
    assert sorted(crops["row"].value_counts()) == [33, 33, 34]
    share = crops["crop_side"] ** 2 / (crops["width"] * crops["height"])
    assert share.between(0.07, 1).all()


def test_impossible_samples_are_named() -> None:
    with pytest.raises(ValueError, match="0 pictures, 10 draws"):
        sample_crops(pictures(), 10)
    with pytest.raises(ValueError, match="sizes of 1 px"):
        sample_crops(pictures((0, 5)))


@pytest.mark.parametrize(("resize", "portrait"), [("short_side", 256 / 375), ("height", 256 / 500)])
def test_enlargement_of_both_resize_modes(resize: Resize, portrait: float) -> None:
    found = apparent_size.enlargement_at_test(pictures((500, 375), (375, 500), (500, 375)), 224, resize)
    assert found == pytest.approx([256 / 375, portrait, 256 / 375], rel=2e-3)


def test_at_the_neutral_sizes_the_statistics_are_one() -> None:
    crops = sample_crops(pictures((443, 386), (500, 375), (333, 500)))
    row = neutral_test_sizes(crops, [224]).iloc[0]
    for definition in ("mean_of_ratios", "ratio_of_means"):
        ratio = pair_ratios(crops, [(224, round(row[definition]))]).iloc[0]
        assert ratio[definition] == pytest.approx(1, abs=0.005)
    assert row["low"] < row["mean_of_ratios"] < row["ratio_of_means"] < row["high"]


def test_the_interval_is_wider_where_few_pictures_tell_the_sizes() -> None:
    def width(copies: int) -> float:
        crops = sample_crops(pictures(*[(500, 500), (600, 200)] * copies), 1000)
        row = neutral_test_sizes(crops, [224]).iloc[0]
        return float(row["high"] - row["low"])

    assert width(2) > 2 * width(200)


def test_sizes_computed_by_hand() -> None:
    predicted = predicted_object_sizes(box(150, 150, 250, 250), 224, 224, draws=200)
    assert predicted["test_px"].unique() == pytest.approx([100 * 256 / 400])
    assert predicted["train_px"].min() >= 100 * 224 / 400
    assert predicted["train_px"].max() <= 100 * 224 / (400 * 0.08**0.5) * 1.02


def test_what_is_measured_is_what_the_mask_shows_where_nothing_is_cut() -> None:
    measured = measured_object_sizes(box(150, 150, 250, 250), 224, 224, crops=60)
    assert measured["test_px"].to_numpy() == pytest.approx(64, rel=2e-3)
    assert measured["test_shown_px"].to_numpy() == pytest.approx(64, rel=2e-3)
    shown = measured["train_shown_px"] / measured["train_px"]
    assert shown.max() == pytest.approx(1, abs=2e-3)
    assert (shown < 0.9).any()


def test_small_pictures_are_measured_without_their_blurred_rim() -> None:
    measured = measured_object_sizes(box(18, 18, 22, 22, 40, 40), 224, 224, crops=60)
    assert (measured["train_shown_px"] / measured["train_px"]).max() == pytest.approx(1, abs=2e-3)


def test_a_padded_portrait_is_measured_without_its_padding() -> None:
    measured = measured_object_sizes(box(20, 50, 80, 110, 100, 400), 224, 224, "height", crops=1)
    assert measured["test_px"].tolist() == pytest.approx([60 * 256 / 400], rel=2e-3)


@pytest.mark.parametrize("resize", ["short_side", "height"])
def test_predicted_sizes_of_drawn_dogs_are_those_of_rendered_pictures(resize: Resize) -> None:
    names = [synthetic.relative_path("train", label, index) for label in range(10) for index in range(3)]
    boxes = synthetic.boxes(0, names)
    measured = measured_object_sizes(boxes, 96, 120, resize, crops=80)
    table = compare_object_sizes(predicted_object_sizes(boxes, 96, 120, resize), measured)
    assert len(table) == 8
    assert table["difference"].abs().max() < 0.03


def test_the_comparison_is_relative_to_the_measured() -> None:
    sizes = pd.DataFrame({"train_px": [10.0, 20.0], "test_px": [30.0, 30.0]})
    table = compare_object_sizes(sizes * 1.5, sizes)
    assert np.allclose(table["difference"], 0.5)
    assert table.loc[("train_px", "mean"), "measured"] == 15
