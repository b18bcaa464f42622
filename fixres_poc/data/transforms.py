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
from torchvision.transforms.v2 import functional as F  # noqa: N812  the name torchvision's own examples use

from fixres_poc.config.settings import Triple, View

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std that leave values in [0, 1]
HALF = (0.5, 0.5, 0.5)
HALF_BACKBONES = ("pnasnet5large", "nasnetamobile", "efficientnet_lite0")
# What is set to int(256/224 * test_size): the short side, or the height, as in the authors' code:
# narrow portraits are then padded with black, and the shifted crop may leave the image by a pixel.
Resize = Literal["short_side", "height"]
Transform = Callable[[Any], torch.Tensor]


def get_transforms(
    input_size: int = 224,
    test_size: int = 224,
    kind: str = "full",
    crop: bool = True,
    need: Sequence[str] = ("train", "val"),
    backbone: str | None = None,
    *,
    resize: Resize = "short_side",
    view: View = "center",
    mean_std: tuple[Triple, Triple] | None = None,
    interpolation: str = "bilinear",
) -> dict[str, Transform]:
    """Transforms by name, with the signature of the authors' `get_transforms`; sizes are sides of crops in px.

    Args:
        kind: "full" adds ColorJitter(0.3, 0.3, 0.3) to `train`; "torch" adds none.
        crop: False gives `val` (resize without crop) instead of `val_test` and `val_train`.
        need: which of "train" and "val" to build.
        backbone: without `mean_std` its name decides: 0.5 for those of `HALF_BACKBONES`, else
            ImageNet's mean and std.
        interpolation: "bilinear" as published, or another name of `InterpolationMode` that a
            backbone was trained with.

    Returns:
        "train": random resized crop; "val_test": evaluation; "val_train": stage 2, test framing
        with a flip, a slight jitter and a random sideways shift; "val" (crop=False): short side or
        height test_size, nothing cut.

    Raises:
        ValueError: unknown kind, need, resize, or a size below 1.
    """
    _check(kind, need, resize, input_size, test_size)
    mean, std = mean_std or (
        (HALF, HALF) if backbone in HALF_BACKBONES else (IMAGENET_MEAN, IMAGENET_STD)
    )
    how, steps = InterpolationMode(interpolation), dict[str, list[Any]]()
    if "train" in need:
        jitter = [v2.ColorJitter(0.3, 0.3, 0.3)] if kind == "full" else []
        random_crop = v2.RandomResizedCrop(input_size, antialias=True, interpolation=how)
        steps["train"] = [random_crop, v2.RandomHorizontalFlip(), *jitter]
    if "val" in need:
        steps |= (
            _framings(test_size, resize, view, how)
            if crop
            else {"val": [_resize(test_size, resize, how)]}
        )
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return {name: v2.Compose([v2.ToImage(), *each, *finish]) for name, each in steps.items()}


def plain_transforms(
    train_size: int, test_size: int, resize: Resize = "short_side"
) -> dict[str, Transform]:
    """`get_transforms` for looking at: no colour jitter in `train`, values stay in [0, 1]."""
    return get_transforms(train_size, test_size, kind="torch", resize=resize, mean_std=PLAIN)


def as_array(image: torch.Tensor) -> np.ndarray:
    """Image (3, H, W) with values in [0, 1] as an array (H, W, 3) that matplotlib shows."""
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def _check(kind: str, need: Sequence[str], resize: str, *sizes: int) -> None:
    if kind not in ("full", "torch"):
        raise ValueError(f"kind = {kind!r}: allowed are 'full' and 'torch'")
    if unknown := set(need) - {"train", "val"}:
        raise ValueError(f"need = {sorted(unknown)}: allowed are 'train' and 'val'")
    if resize not in ("short_side", "height"):
        raise ValueError(f"resize = {resize!r}: allowed are 'short_side' and 'height'")
    if min(sizes) < 1:
        raise ValueError(f"sizes = {sizes}: a size is at least 1 px")


def _framings(
    size: int, resize: Resize, view: View, how: InterpolationMode
) -> dict[str, list[Any]]:
    enlarge, shift = (
        _resize(resized_side(size), resize, how),
        ShiftedCrop(size, inside=resize == "short_side"),
    )
    augment = [v2.RandomHorizontalFlip(), v2.ColorJitter(0.05, 0.05, 0.05)]
    return {"val_test": [enlarge, *_crops(size, view)], "val_train": [enlarge, *augment, shift]}


def _crops(size: int, view: View) -> list[Callable[[Any], Any]]:
    """The centre; with "five_crop" also the corners, with "ten_crop" the mirror images of all: (5 or 10, 3, K, K)."""
    if view == "center":
        return [v2.CenterCrop(size)]
    many = {"five_crop": v2.FiveCrop, "ten_crop": v2.TenCrop}[view](size)
    return [partial(_at_least, size), many, torch.stack]


def _at_least(size: int, image: torch.Tensor) -> torch.Tensor:
    """Pad with black to `size` px where a side is shorter, as CenterCrop does."""
    height, width = F.get_size(image)
    return cast(torch.Tensor, F.center_crop(image, [max(height, size), max(width, size)]))


def resized_side(test_size: int) -> int:
    """Side in px to which an image is resized before the centre crop: int(256/224 * test_size)."""
    return int(256 / 224 * test_size)


def _resize(side: int, mode: Resize, how: InterpolationMode) -> v2.Transform:
    return v2.Resize(side, how, antialias=True) if mode == "short_side" else ResizeHeight(side, how)


class ResizeHeight(v2.Transform):  # type: ignore[misc]  # torchvision is not typed
    """Resize to a height of `height` px at the same aspect ratio, whatever the image's short side is."""

    def __init__(
        self, height: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR
    ) -> None:
        """Keep the height in px."""
        super().__init__()
        self.height, self.interpolation = height, interpolation

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image."""
        height, width = F.get_size(inpt)
        own = max(1, int(self.height * width / height))  # truncated, as in the authors' code
        return F.resize(inpt, [self.height, own], self.interpolation, antialias=True)


class ShiftedCrop(v2.Transform):  # type: ignore[misc]
    """Crop of (size, size) px, vertically centred, its left edge at j ± U{0..j} with j = round((width - size) / 2)."""

    def __init__(self, size: int, *, inside: bool = True) -> None:
        """`inside` False lets the crop leave the image by one pixel for (width - size) % 4 == 3."""
        super().__init__()
        self.size, self.inside = size, inside

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the position from torch's random state."""
        height, width = F.get_size(flat_inputs[0])
        slack = width - self.size
        middle = round(slack / 2)
        shift = int(torch.randint(0, abs(middle) + 1, ())) if middle > 0 else 0
        left = middle + shift * (1 if torch.rand(()) < 0.5 else -1)
        if self.inside and slack >= 0:
            left = min(left, slack)
        return {"top": round((height - self.size) / 2), "left": left}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop one image; what lies outside of it is black."""
        return F.crop(inpt, params["top"], params["left"], self.size, self.size)
