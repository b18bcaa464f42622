"""The published transforms: sizes, framing, the two defects behind their switch."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as F  # noqa: N812

from fixres_poc.data.transforms import PLAIN, get_transforms, resize_height, shifted_crop

SHAPES = [(500, 375), (375, 500), (97, 100)]
CROPS: dict[Any, Any] = {"center": v1.CenterCrop, "five_crop": v1.FiveCrop, "ten_crop": v1.TenCrop}


def noisy(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def white(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def grey_levels(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference between two images in [0, 1]."""
    return float((found - expected).abs().max()) * 255


def test_the_published_call_gives_the_published_sizes() -> None:
    built = get_transforms(
        input_size=320, test_size=380, kind="full", crop=True, need=("train", "val"), backbone=None
    )
    sizes = {name: tuple(transform(noisy(500, 375)).shape) for name, transform in built.items()}
    assert sizes == {"train": (3, 320, 320), "val_test": (3, 380, 380), "val_train": (3, 380, 380)}
    (whole,) = get_transforms(64, 100, crop=False, need=["val"]).values()
    assert whole(noisy(300, 150)).shape == (3, 100, 200)


@pytest.mark.parametrize("view", CROPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("crop_pct", "side"), [(0.875, 182), (0.71, 225), (1.0, 160)])
def test_evaluation_is_torchvisions_pil_pipeline_to_two_grey_levels(
    view: Any, shape: tuple[int, int], crop_pct: float, side: int
) -> None:
    cut = v1.Compose([v1.Resize(side), CROPS[view](160)])(noisy(*shape))
    several = (cut,) if view == "center" else cut
    expected = torch.stack([v1.functional.to_tensor(each) for each in several])
    ours = get_transforms(160, 160, mean_std=PLAIN, view=view, crop_pct=crop_pct)["val_test"]
    found = ours(noisy(*shape))
    assert found.shape == ((3, 160, 160) if view == "center" else (len(several), 3, 160, 160))
    assert grey_levels(found, expected.squeeze(0)) <= 2.01


@pytest.mark.parametrize("crop_pct", [0.875, 0.71, 1.0])
def test_stage_2_shows_the_rows_that_evaluation_shows(crop_pct: float) -> None:
    rows = torch.linspace(0, 255, 375).to(torch.uint8)[None, :, None].expand(3, 375, 500)
    built = get_transforms(160, 160, mean_std=PLAIN, crop_pct=crop_pct)
    torch.manual_seed(0)
    test, train = (built[name](rows)[0, :, 80] for name in ("val_test", "val_train"))
    assert float(test[-1] - test[0]) == pytest.approx(float(train[-1] - train[0]), abs=0.06)


def test_the_whole_area_is_the_whole_square_image() -> None:
    image = noisy(200, 200)
    whole = get_transforms(64, crop_scale=(1.0, 1.0), kind="torch", mean_std=PLAIN)["train"]
    shrunk = v1.Compose([v1.Resize(64), v1.ToTensor()])(image)
    for seed in range(5):
        torch.manual_seed(seed)
        crop = whole(image)
        assert min(grey_levels(each, shrunk) for each in (crop, crop.flip(2))) <= 2.01


@pytest.mark.parametrize(("kind", "jitters"), [("full", True), ("torch", False)])
def test_only_the_full_kind_jitters_colours(kind: Any, jitters: bool) -> None:
    torch.manual_seed(0)
    grey = Image.new("RGB", (64, 64), (100, 100, 100))
    changed = get_transforms(32, 32, kind=kind, mean_std=PLAIN)["train"](grey)
    assert bool((changed - 100 / 255).abs().max() > 1e-4) == jitters


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [(None, (1 - 0.485) / 0.229), ("pnasnet5large", 1.0), ("efficientnet_lite0", 1.0)],
)
def test_mean_and_std_belong_to_the_backbone(backbone: str | None, expected: float) -> None:
    value = get_transforms(32, 32, backbone=backbone)["val_test"](white(64, 64))[0, 0, 0]
    assert value == pytest.approx(expected, abs=1e-5)


def test_resize_by_height_pads_narrow_portraits_with_black_and_the_short_side_does_not() -> None:
    by_height, by_side = (
        get_transforms(64, 112, resize=how, mean_std=PLAIN)["val_test"](white(200, 400))
        for how in ("height", "short_side")
    )
    assert by_height[0, 50].tolist() == [0.0] * 24 + [1.0] * 64 + [0.0] * 24
    assert bool((by_side > 0.99).all())


@pytest.mark.parametrize(
    ("width", "height", "side"), [(500, 375, 182), (97, 100, 73), (20, 600, 64)]
)
def test_resize_by_height_is_pillows_to_the_truncated_width(
    width: int, height: int, side: int
) -> None:
    image = noisy(width, height)
    resized = image.resize((int(side * width / height), side), Image.Resampling.BILINEAR)
    found = resize_height(F.pil_to_tensor(image), side)
    assert grey_levels(found / 255, v1.functional.to_tensor(resized)) <= 2


def lefts(width: int, inside: bool) -> set[int]:
    torch.manual_seed(0)
    columns = torch.arange(1, width + 1).repeat(1, 8, 1)  # what lies outside is 0
    crops = [shifted_crop(columns, 8, inside)[0, 0] for _ in range(300)]
    return {int(crop.max()) - 8 if crop.all() else int(crop[0]) - 1 for crop in crops}


def test_shifted_crop_reaches_both_edges_and_leaves_the_image_only_as_published() -> None:
    assert lefts(8 + 6, inside=True) == set(range(7))
    assert max(lefts(8 + 3, inside=False)) == 4  # one pixel outside
    assert max(lefts(8 + 3, inside=True)) == 3


def test_several_crops_hold_the_centre_crop_padded_where_it_is() -> None:
    views: Any = ("center", "five_crop", "ten_crop")
    centre, *several = (
        get_transforms(64, 64, view=view, resize="height")["val_test"](noisy(100, 300))
        for view in views
    )
    assert all(torch.equal(crops[4], centre) for crops in several)


@pytest.mark.parametrize("resize", ["short_side", "height"])
def test_the_interpolation_reaches_every_resize(resize: Any) -> None:
    image, results = noisy(200, 200), []
    for how in ("bilinear", "bicubic"):
        framing: Any = {"resize": resize, "mean_std": PLAIN, "interpolation": how}
        torch.manual_seed(0)
        built = get_transforms(64, 64, kind="torch", **framing)
        results.append([built[name](image) for name in ("val_test", "train")])
    bicubic = v1.Resize(73, v1.InterpolationMode.BICUBIC)
    expected = v1.Compose([bicubic, v1.CenterCrop(64), v1.ToTensor()])(image)
    assert grey_levels(results[1][0], expected) <= 3.01
    assert all(grey_levels(*both) > 8 for both in zip(*results, strict=True))
