"""The published transforms: sizes, framing, the two defects behind their switch."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as F  # noqa: N812

from fixres_poc.data.transforms import PLAIN, get_transforms, resize_height, shifted_crop

WHITE = (255, 255, 255)


def noisy(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def test_the_published_call_gives_the_published_sizes() -> None:
    built = get_transforms(
        input_size=320, test_size=380, kind="full", crop=True, need=("train", "val"), backbone=None
    )
    sizes = {name: tuple(transform(noisy(500, 375)).shape) for name, transform in built.items()}
    assert sizes == {"train": (3, 320, 320), "val_test": (3, 380, 380), "val_train": (3, 380, 380)}


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (97, 100)])
def test_val_test_agrees_with_torchvisions_pil_pipeline_to_two_grey_levels(
    width: int, height: int
) -> None:
    reference = v1.Compose([v1.Resize(182), v1.CenterCrop(160), v1.ToTensor()])
    ours, image = get_transforms(160, 160, mean_std=PLAIN)["val_test"], noisy(width, height)
    assert (ours(image) - reference(image)).abs().max() <= 2.01 / 255


@pytest.mark.parametrize(("crop_pct", "side"), [(0.875, 182), (0.71, 225), (1.0, 160)])
def test_crop_pct_is_the_crop_over_the_resized_short_side(crop_pct: float, side: int) -> None:
    reference = v1.Compose([v1.Resize(side), v1.CenterCrop(160), v1.ToTensor()])
    ours = get_transforms(160, 160, mean_std=PLAIN, crop_pct=crop_pct)
    image = noisy(500, 375)
    assert (ours["val_test"](image) - reference(image)).abs().max() <= 2.01 / 255
    torch.manual_seed(0)
    assert ours["val_train"](image).shape == (3, 160, 160)
    # stage 2's crop, which only shifts sideways, shows the same rows of a resized gradient
    rows = torch.linspace(0, 255, 375).to(torch.uint8)[None, :, None].expand(3, 375, 500)
    test, train = (ours[name](rows)[0, :, 80] for name in ("val_test", "val_train"))
    assert ours["val_train"](rows).shape == (3, 160, 160)
    assert float(test[-1] - test[0]) == pytest.approx(float(train[-1] - train[0]), abs=0.06)


def test_the_whole_area_is_the_whole_square_image() -> None:
    image = noisy(200, 200)
    whole = get_transforms(64, crop_scale=(1.0, 1.0), kind="torch", mean_std=PLAIN)["train"]
    shrunk = v1.Compose([v1.Resize(64), v1.ToTensor()])(image)
    for seed in range(5):
        torch.manual_seed(seed)
        crop = whole(image)
        assert min((each - shrunk).abs().max() for each in (crop, crop.flip(2))) <= 2.01 / 255


def test_without_crop_nothing_is_cut() -> None:
    assert get_transforms(64, 100, crop=False, need=["val"])["val"](noisy(300, 150)).shape == (
        3,
        100,
        200,
    )


@pytest.mark.parametrize(("kind", "jitters"), [("full", True), ("torch", False)])
def test_only_the_full_kind_jitters_colours(kind: str, jitters: bool) -> None:
    torch.manual_seed(0)
    changed = get_transforms(32, 32, kind=kind, mean_std=PLAIN)["train"](
        Image.new("RGB", (64, 64), (100, 100, 100))
    )
    assert bool((changed - 100 / 255).abs().max() > 1e-4) == jitters


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [(None, (1 - 0.485) / 0.229), ("pnasnet5large", 1.0), ("efficientnet_lite0", 1.0)],
)
def test_mean_and_std_belong_to_the_backbone(backbone: str | None, expected: float) -> None:
    value = get_transforms(32, 32, backbone=backbone)["val_test"](
        Image.new("RGB", (64, 64), WHITE)
    )[0, 0, 0]
    assert value == pytest.approx(expected, abs=1e-5)


def test_resize_by_height_pads_narrow_portraits_with_black_and_the_short_side_does_not() -> None:
    white = Image.new("RGB", (200, 400), WHITE)
    by_height = get_transforms(64, 112, resize="height", mean_std=PLAIN)["val_test"](white)
    by_side = get_transforms(64, 112, mean_std=PLAIN)["val_test"](white)
    assert by_height[0, 50].tolist() == [0.0] * 24 + [1.0] * 64 + [0.0] * 24
    assert bool((by_side > 0.99).all())


@pytest.mark.parametrize(
    ("width", "height", "side"), [(500, 375, 182), (375, 500, 182), (97, 100, 73), (20, 600, 64)]
)
def test_resize_by_height_is_pillows_to_the_truncated_width(
    width: int, height: int, side: int
) -> None:
    image = noisy(width, height)
    expected = np.asarray(
        image.resize((int(side * width / height), side), Image.Resampling.BILINEAR), dtype=float
    )
    found = resize_height(F.pil_to_tensor(image), side).permute(1, 2, 0).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2


def lefts(width: int, inside: bool) -> set[int]:
    torch.manual_seed(0)
    columns = torch.arange(1, width + 1).repeat(1, 8, 1)  # what lies outside is 0
    crops = [shifted_crop(columns, 8, inside)[0, 0] for _ in range(300)]
    return {int(crop.max()) - 8 if crop.all() else int(crop[0]) - 1 for crop in crops}


def test_shifted_crop_reaches_both_edges_and_leaves_the_image_only_as_published() -> None:
    assert lefts(8 + 6, inside=True) == set(range(7))
    assert max(lefts(8 + 3, inside=False)) == 4  # one pixel outside
    assert max(lefts(8 + 3, inside=True)) == 3


@pytest.mark.parametrize("change", [{"kind": "fancy"}, {"need": ["test"]}, {"resize": "width"}])
def test_impossible_arguments_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(*change.values()))):
        get_transforms(**change)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (97, 100)])
@pytest.mark.parametrize(
    ("view", "crop", "count"), [("five_crop", v1.FiveCrop, 5), ("ten_crop", v1.TenCrop, 10)]
)
def test_several_crops_are_torchvisions(
    width: int, height: int, view: Any, crop: Any, count: int
) -> None:
    image = noisy(width, height)
    crops = get_transforms(64, 64, view=view, mean_std=PLAIN)["val_test"](image)
    assert crops.shape == (count, 3, 64, 64)
    each = v1.Compose(
        [
            v1.Resize(73),
            crop(64),
            v1.Lambda(lambda cut: torch.stack([v1.ToTensor()(c) for c in cut])),
        ]
    )
    assert (crops - each(image)).abs().max() <= 2.01 / 255


@pytest.mark.parametrize("view", ["five_crop", "ten_crop"])
@pytest.mark.parametrize(
    ("width", "height", "resize"),
    [(500, 375, "short_side"), (97, 100, "short_side"), (100, 300, "height")],
)
def test_several_crops_hold_the_centre_crop_padded_where_it_is(
    width: int, height: int, resize: Any, view: Any
) -> None:
    image = noisy(width, height)
    crops = get_transforms(64, 64, view=view, resize=resize)["val_test"](image)
    assert torch.equal(crops[4], get_transforms(64, 64, resize=resize)["val_test"](image))


@pytest.mark.parametrize("resize", ["short_side", "height"])
def test_the_interpolation_reaches_every_resize(resize: Any) -> None:
    image, results = noisy(200, 200), []
    for how in ("bilinear", "bicubic"):
        built = get_transforms(
            64, 64, kind="torch", resize=resize, mean_std=PLAIN, interpolation=how
        )
        torch.manual_seed(0)
        results.append({name: transform(image) for name, transform in built.items()})
    reference = v1.Compose(
        [v1.Resize(73, v1.InterpolationMode.BICUBIC), v1.CenterCrop(64), v1.ToTensor()]
    )(image)
    assert (results[1]["val_test"] - reference).abs().max() <= 3.01 / 255
    assert all(
        (results[0][name] - results[1][name]).abs().max() > 8 / 255
        for name in ("train", "val_test")
    )
