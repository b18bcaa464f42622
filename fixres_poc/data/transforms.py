"""The published transforms of FixRes, on uint8 tensors.

The implementation follows the description in Touvron et al. 2019 and the behaviour of the authors'
code. Every transform takes a PIL image or a uint8 tensor (3, H, W) and returns a normalised float
tensor (3, K, K).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from fixres_poc.config.geometry import CROP_PCT, CROP_SCALE, resized_side
from fixres_poc.config.settings import MeanStd, View

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std that leave values in [0, 1]
HALF = (0.5, 0.5, 0.5)
HALF_BACKBONES = ("pnasnet5large", "nasnetamobile", "efficientnet_lite0")
# The side that is resized to int(test_size / crop_pct). The authors' code resizes the height: it
# then pads narrow portraits with black, and its shifted crop may leave the image by one pixel.
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
    mean_std: MeanStd | None = None,
    interpolation: str = "bilinear",
    crop_pct: float = CROP_PCT,
    crop_scale: tuple[float, float] = CROP_SCALE,
) -> dict[str, Transform]:
    """Transforms by name, with the signature of the authors' `get_transforms`.

    Args:
        input_size, test_size: sides of the train and the test crop in px.
        kind: "full" adds ColorJitter(0.3, 0.3, 0.3) to `train`; "torch" adds none.
        crop: False returns "val" instead of "val_test" and "val_train".
        backbone: without `mean_std`, mean and std are 0.5 for `HALF_BACKBONES`, else ImageNet's.
        interpolation, crop_pct, crop_scale: see `InterpolationMode` and `config.geometry`.

    Returns:
        "train": random resized crop. "val_test": evaluation. "val_train": stage 2, resized as for
        evaluation, with a flip, slight jitter and a sideways shift. "val": resized, not cropped.
    """
    mode = InterpolationMode(interpolation)
    steps: dict[str, list[Any]] = {}
    if "train" in need:
        random_crop = v2.RandomResizedCrop(input_size, crop_scale, interpolation=mode)
        jitter = {"full": [v2.ColorJitter(0.3, 0.3, 0.3)], "torch": []}[kind]
        steps["train"] = [random_crop, v2.RandomHorizontalFlip(), *jitter]
    if "val" in need and crop:
        enlarge = _resize(resized_side(test_size, crop_pct), resize, mode)
        steps["val_test"] = [enlarge, *_crops(test_size, view)]
        steps["val_train"] = [enlarge, *_augmented_crop(test_size, resize)]
    elif "val" in need:
        steps["val"] = [_resize(test_size, resize, mode)]
    published = (HALF, HALF) if backbone in HALF_BACKBONES else (IMAGENET_MEAN, IMAGENET_STD)
    normalize = v2.Normalize(*(mean_std or published))
    last = [v2.ToDtype(torch.float32, scale=True), normalize]
    return {name: v2.Compose([v2.ToImage(), *first, *last]) for name, first in steps.items()}


def _augmented_crop(size: int, resize: Resize) -> list[Callable[[Any], Any]]:
    """Steps of stage 2 after the resize."""
    shift = partial(shifted_crop, size=size, inside=resize == "short_side")
    return [v2.RandomHorizontalFlip(), v2.ColorJitter(0.05, 0.05, 0.05), shift]


def plain_transforms(train_size: int, test_size: int, **framing: Any) -> dict[str, Transform]:
    """`get_transforms` for display: without colour jitter in "train", and with values in [0, 1]."""
    return get_transforms(train_size, test_size, kind="torch", mean_std=PLAIN, **framing)


def as_array(image: torch.Tensor) -> np.ndarray:
    """Image (3, H, W) with values in [0, 1] as an array (H, W, 3) that matplotlib shows."""
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def _crops(size: int, view: View) -> list[Callable[[Any], Any]]:
    """Steps that crop the centre, the centre and the corners, or these and their mirror images."""
    if view == "center":
        return [v2.CenterCrop(size)]
    several = v2.FiveCrop(size) if view == "five_crop" else v2.TenCrop(size)
    return [partial(_at_least, size), several, torch.stack]  # (5 or 10, 3, K, K)


def _at_least(size: int, image: torch.Tensor) -> torch.Tensor:
    """Pad shorter sides with black to `size` px, as CenterCrop does."""
    sides = [max(side, size) for side in F.get_size(image)]
    return cast(torch.Tensor, F.center_crop(image, sides))


def _resize(side: int, resize: Resize, mode: InterpolationMode) -> Callable[[Any], Any]:
    if resize == "short_side":
        return cast(Callable[[Any], Any], v2.Resize(side, mode, antialias=True))
    return partial(resize_height, height=side, interpolation=mode)


def resize_height(
    image: Any, height: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR
) -> Any:
    """Resize to a height in px with the same aspect ratio."""
    old_height, old_width = F.get_size(image)
    width = max(1, int(height * old_width / old_height))  # truncated, as in the authors' code
    return F.resize(image, [height, width], interpolation, antialias=True)


def shifted_crop(image: Any, size: int, inside: bool = True) -> Any:
    """Crop (size, size) px, centred vertically and shifted sideways; pixels outside are black.

    The left edge is at j ± U{0..j} with j = round((width - size) / 2), from torch's random state.

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
