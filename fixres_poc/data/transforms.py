"""The transforms that FixRes was published with, on uint8 tensors.

Written from the description in Touvron et al. 2019 and of the behaviour of the authors' code; every
transform takes a PIL image or a uint8 tensor (3, H, W) and returns a normalised float tensor (3, K,
K).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from fixres_poc.config.geometry import CROP_PCT, CROP_SCALE, resized_side
from fixres_poc.config.settings import Triple, View

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std that leave values in [0, 1]
HALF = (0.5, 0.5, 0.5)
HALF_BACKBONES = ("pnasnet5large", "nasnetamobile", "efficientnet_lite0")
# What is set to int(test_size / crop_pct): the short side, or the height, as in the authors' code:
# narrow portraits are then padded with black, and the shifted crop may leave the image by a pixel.
Resize = Literal["short_side", "height"]
Transform = Callable[[Any], torch.Tensor]


def get_transforms(
    input_size: int = 224,
    test_size: int = 224,
    kind: Literal["full", "torch"] = "full",
    crop: bool = True,
    need: Sequence[Literal["train", "val"]] = ("train", "val"),
    backbone: str | None = None,
    *,
    resize: Resize = "short_side",
    view: View = "center",
    mean_std: tuple[Triple, Triple] | None = None,
    interpolation: str = "bilinear",
    crop_pct: float = CROP_PCT,
    crop_scale: tuple[float, float] = CROP_SCALE,
) -> dict[str, Transform]:
    """Transforms by name, with the signature of the authors' `get_transforms`.

    Args:
        input_size, test_size: sides of the train and the test crop in px.
        kind: "full" adds ColorJitter(0.3, 0.3, 0.3) to `train`; "torch" adds none.
        crop: False gives `val` (resize without crop) instead of `val_test` and `val_train`.
        need: which of "train" and "val" to build.
        backbone: without `mean_std`, 0.5 for `HALF_BACKBONES`, else ImageNet's.
        interpolation, crop_pct, crop_scale: see `InterpolationMode` and `config.geometry`.

    Returns:
        "train": random resized crop; "val_test": evaluation; "val_train": stage 2, test framing
        with flip, slight jitter and sideways shift; "val" (crop=False): resized, nothing cut.

    Raises:
        KeyError: unknown kind.
    """
    how = InterpolationMode(interpolation)
    steps: dict[str, list[Any]] = {}
    if "train" in need:
        random_crop = v2.RandomResizedCrop(input_size, crop_scale, interpolation=how)
        jitter = {"full": [v2.ColorJitter(0.3, 0.3, 0.3)], "torch": []}[kind]
        steps["train"] = [random_crop, v2.RandomHorizontalFlip(), *jitter]
    if "val" in need:
        framed = (test_size, crop_pct, resize, view, how)
        steps |= _cropped(*framed) if crop else {"val": [_resize(test_size, resize, how)]}
    published = (HALF, HALF) if backbone in HALF_BACKBONES else (IMAGENET_MEAN, IMAGENET_STD)
    normalize = v2.Normalize(*(mean_std or published))
    finish = [v2.ToDtype(torch.float32, scale=True), normalize]
    return {name: v2.Compose([v2.ToImage(), *each, *finish]) for name, each in steps.items()}


def _cropped(
    test_size: int, crop_pct: float, resize: Resize, view: View, how: InterpolationMode
) -> dict[str, list[Any]]:
    """Steps of evaluation and of stage 2, which crop alike resized images."""
    enlarge = _resize(resized_side(test_size, crop_pct), resize, how)
    augment = [v2.RandomHorizontalFlip(), v2.ColorJitter(0.05, 0.05, 0.05)]
    shifted = partial(shifted_crop, size=test_size, inside=resize == "short_side")
    return {
        "val_test": [enlarge, *_crops(test_size, view)],
        "val_train": [enlarge, *augment, shifted],
    }


def plain_transforms(train_size: int, test_size: int, **framing: Any) -> dict[str, Transform]:
    """`get_transforms` for looking at: no colour jitter in `train`, values stay in [0, 1]."""
    return get_transforms(train_size, test_size, kind="torch", mean_std=PLAIN, **framing)


def as_array(image: torch.Tensor) -> np.ndarray:
    """Image (3, H, W) with values in [0, 1] as an array (H, W, 3) that matplotlib shows."""
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def _crops(size: int, view: View) -> list[Callable[[Any], Any]]:
    """The centre, or the corners and the centre, or these and the mirror images of all."""
    if view == "center":
        return [v2.CenterCrop(size)]
    several = v2.FiveCrop(size) if view == "five_crop" else v2.TenCrop(size)
    return [partial(_at_least, size), several, torch.stack]  # (5 or 10, 3, K, K)


def _at_least(size: int, image: torch.Tensor) -> torch.Tensor:
    """Pad with black to `size` px where a side is shorter, as CenterCrop does."""
    sides = [max(side, size) for side in F.get_size(image)]
    return cast(torch.Tensor, F.center_crop(image, sides))


def _resize(side: int, mode: Resize, how: InterpolationMode) -> Callable[[Any], Any]:
    if mode == "short_side":
        return cast(Callable[[Any], Any], v2.Resize(side, how, antialias=True))
    return partial(resize_height, height=side, interpolation=how)


def resize_height(
    image: Any, height: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR
) -> Any:
    """Resize to a height in px at the same aspect ratio, whatever the image's short side is."""
    old_height, width = F.get_size(image)
    own = max(1, int(height * width / old_height))  # truncated, as in the authors' code
    return F.resize(image, [height, own], interpolation, antialias=True)


def shifted_crop(image: Any, size: int, inside: bool = True) -> Any:
    """Crop of (size, size) px, vertically centred, what lies outside of the image black.

    Its left edge is at j ± U{0..j} with j = round((width - size) / 2), from torch's random state.

    Args:
        inside: False lets the crop leave the image by one pixel for (width - size) % 4 == 3.
    """
    height, width = F.get_size(image)
    slack = width - size
    middle = round(slack / 2)
    shift = int(torch.randint(0, middle + 1, ())) if middle > 0 else 0
    left = middle + shift if torch.rand(()) < 0.5 else middle - shift
    if inside and slack >= 0:
        left = min(left, slack)
    return F.crop(image, round((height - size) / 2), left, size, size)
