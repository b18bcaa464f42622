"""How large objects appear in train crops and in the test framing, drawn and measured through the real transforms.

`geometry` has the formulas for this; here the crops are drawn by RandomResizedCrop itself, aspect jitter and crops that
do not fit included, on the pictures' own sizes, and the test framing is the one that evaluation uses. An enlargement is
linear: the square root of the area's. An object's apparent size is the side sqrt(width * height) of its box times the
enlargement, in px, whether or not the crop cuts it, since FixRes is about scale and not about what is left out.

"mean of ratios" is the mean over crops of test size / train size, as in `geometry.size_ratio`; "ratio of means" is the
mean size at test over the mean size at train. The second is the smaller one (about 0.74 against 0.81 at 443 x 386 px),
since small crops, which enlarge most, weigh more in it. Tables of pictures have columns width and height in px; tables
of boxes also left, top, right and bottom, a row per object.
"""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torchvision import tv_tensors

from fixres_poc.geometry import neutral_test_size
from fixres_poc.transforms import Resize, Transform, get_transforms

Array = npt.NDArray[np.float64]
DRAWS = 10_000
BOOTSTRAPS = 300


def sample_crops(pictures: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Train crops of randomly chosen pictures; the crop is taken before it is resized, so it fits every train size.

    Args:
        pictures: columns width and height, px.
        draws: number of crops; no picture has more than one crop more than another.
        seed: of pictures and crops.

    Returns:
        `draws` rows with columns row (number of the picture in the table), width, height, and crop_side (square root
        of the crop's area in the picture), px.

    Raises:
        ValueError: no pictures, or a size below 1.
    """
    sizes = pictures[["width", "height"]].to_numpy(dtype=np.int64)
    if not sizes.size or sizes.min() < 1 or draws < 1:
        raise ValueError(f"{len(sizes)} pictures, {draws} draws: need at least one of each, and sizes of 1 px or more")
    rows = np.resize(np.random.default_rng(seed).permutation(len(sizes)), draws)
    crop = _scaling(get_transforms(need=["train"])["train"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = [crop.make_params([torch.empty((1, h, w), device="meta")]) for w, h in sizes[rows].tolist()]
    sides = np.sqrt([each["width"] * each["height"] for each in drawn])
    return pd.DataFrame({"row": rows, "width": sizes[rows, 0], "height": sizes[rows, 1], "crop_side": sides})


def _scaling(transform: Transform) -> Any:
    """The only step of a transform that enlarges: the first after ToImage."""
    return cast(Any, transform).transforms[1]


def enlargement_at_test(pictures: pd.DataFrame, test_size: int, resize: Resize = "short_side") -> Array:
    """Enlargement of each picture in the test framing (N,), from the size that its Resize gives."""
    step = _scaling(get_transforms(test_size=test_size, need=["val"], resize=resize)["val_test"])
    sizes, place = np.unique(pictures[["width", "height"]].to_numpy(), axis=0, return_inverse=True)
    scales = []
    for width, height in sizes.tolist():
        whole = tv_tensors.BoundingBoxes([[0, 0, width, height]], format="XYXY", canvas_size=(height, width))
        after = step(whole).canvas_size
        scales.append((after[0] * after[1] / (width * height)) ** 0.5)
    return cast(Array, np.asarray(scales)[place.reshape(-1)])


def size_ratios(crops: pd.DataFrame, train_size: int, test_size: int, resize: Resize = "short_side") -> Array:
    """Apparent size at test over that in each train crop (N,): the distribution behind the table of `pair_ratios`.

    Args:
        crops: from `sample_crops`.
        train_size: side of the train crop, px.
        test_size: side of the test crop, px.
        resize: the test framing's resize mode.
    """
    sides: Array = crops["crop_side"].to_numpy(dtype=np.float64)
    return enlargement_at_test(crops, test_size, resize) * sides / train_size


def pair_ratios(crops: pd.DataFrame, pairs: Iterable[tuple[int, int]], resize: Resize = "short_side") -> pd.DataFrame:
    """Size ratio of every pair of a sweep.

    Returns:
        One row per pair: train_size, test_size, mean_of_ratios, ratio_of_means, and the quartiles q25, q50 and q75 of
        the ratios of single crops.
    """
    pairs, side = list(pairs), crops["crop_side"].to_numpy()
    scales = {test_size: enlargement_at_test(crops, test_size, resize) for test_size in {test for _, test in pairs}}
    rows = []
    for train_size, test_size in pairs:
        ratios = scales[test_size] * side / train_size
        means = scales[test_size].mean() / (train_size / side).mean()
        quartiles = dict(zip(("q25", "q50", "q75"), np.quantile(ratios, [0.25, 0.5, 0.75]), strict=True))
        pair = {"train_size": train_size, "test_size": test_size}
        rows.append(pair | {"mean_of_ratios": ratios.mean(), "ratio_of_means": means} | quartiles)
    return pd.DataFrame(rows)


def neutral_test_sizes(
    crops: pd.DataFrame, train_sizes: Iterable[int], resize: Resize = "short_side", seed: int = 0
) -> pd.DataFrame:
    """The test sizes at which objects look as large as in training: the predicted best ones.

    The interval is about the average over pictures like these: it joins the 95 % bootstrap intervals (pictures drawn
    again with all their crops) of the two definitions, and is mostly the distance between these. It is not where the
    accuracy's best size must lie: single crops scatter by a quarter around the mean, so no test size suits all of them.

    Returns:
        One row per train size: train_size, mean_of_ratios and ratio_of_means (the test size, px, at which that
        statistic is 1), low and high.
    """
    counts = np.bincount(crops["row"]).astype(np.float64)
    pictures = np.flatnonzero(counts)
    weights = np.random.default_rng(seed).multinomial(
        len(pictures), np.full(len(pictures), 1 / len(pictures)), BOOTSTRAPS
    )
    weights = np.vstack([np.ones(len(pictures)), weights])  # the first row is the sample itself
    rows = []
    for train_size in train_sizes:
        near = round(neutral_test_size(train_size))  # the resized side is a whole number, so not quite linear
        scale, side = enlargement_at_test(crops, near, resize) / near, crops["crop_side"].to_numpy()
        values = [np.bincount(crops["row"], each)[pictures] for each in (scale * side, scale, 1 / side)]
        both, test, train = (weights @ value for value in values)
        by_ratio = train_size * (weights @ counts[pictures]) / both
        by_mean = train_size * train / test
        ends = np.quantile([by_ratio[1:], by_mean[1:]], [0.025, 0.975], axis=1)
        definitions = {"mean_of_ratios": by_ratio[0], "ratio_of_means": by_mean[0]}
        rows.append({"train_size": train_size} | definitions | {"low": ends.min(), "high": ends.max()})
    return pd.DataFrame(rows)


def predicted_object_sizes(
    boxes: pd.DataFrame,
    train_size: int,
    test_size: int,
    resize: Resize = "short_side",
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Apparent sizes of objects as sizes of pictures, boxes and crops foretell them; no picture is looked at.

    Returns:
        One row per draw: train_px and test_px.
    """
    crops = sample_crops(boxes, draws, seed)
    side = _object_sides(boxes)[crops["row"]]
    train = side * train_size / crops["crop_side"].to_numpy()
    return pd.DataFrame({"train_px": train, "test_px": side * enlargement_at_test(crops, test_size, resize)})


def _object_sides(boxes: pd.DataFrame) -> Array:
    area = (boxes["right"] - boxes["left"]) * (boxes["bottom"] - boxes["top"])
    return area.to_numpy(dtype=np.float64) ** 0.5


def measured_object_sizes(
    boxes: pd.DataFrame, train_size: int, test_size: int, resize: Resize = "short_side", crops: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Apparent sizes of objects measured in rendered pictures.

    Each picture is replaced by three layers, its pixels' x and y and a mask of the object's box, which pass through the
    very transforms of training and evaluation. By how much x and y then step from pixel to pixel is the enlargement,
    wherever the crop lies; the sum of the mask is what shows of the object, which a crop may have cut.

    Args:
        boxes: the objects.
        train_size: side of the train crop, px.
        test_size: side of the test crop, px.
        resize: the test framing's resize mode.
        crops: train crops per object.
        seed: of the crops.

    Returns:
        One row per object and crop: train_px and test_px as in `predicted_object_sizes`, train_shown_px and
        test_shown_px (square root of the area of what shows of the object; 0 where nothing does).
    """
    plain = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    through = get_transforms(train_size, test_size, kind="torch", resize=resize, mean_std=plain)
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for box, side in zip(boxes.to_dict("records"), _object_sides(boxes), strict=True):
            layers = _layers(box)
            test = _measured(through["val_test"](layers))
            for _ in range(crops):
                train = _measured(through["train"](layers))
                found.append((side * train[0], side * test[0], train[1], test[1]))
    return pd.DataFrame(found, columns=["train_px", "test_px", "train_shown_px", "test_shown_px"])


def _layers(box: dict[Any, Any]) -> torch.Tensor:
    x, y = torch.arange(1.0, box["width"] + 1), torch.arange(1.0, box["height"] + 1)
    mask = torch.zeros(len(y), len(x))
    mask[box["top"] : box["bottom"], box["left"] : box["right"]] = 1
    return torch.stack([x.expand_as(mask), y[:, None].expand_as(mask), mask])


def _measured(layers: torch.Tensor) -> tuple[float, float]:
    """Enlargement, and the side of what shows of the mask."""
    across, down = _mean_step(layers[0].T), _mean_step(layers[1])
    return (across * down) ** -0.5, float(layers[2].sum()) ** 0.5


def _mean_step(layer: torch.Tensor) -> float:
    """Mean step from row to row, in the picture's px, in the middle half: steps are uneven, and smaller at edges."""
    rim = len(layer) // 4
    middle = layer[rim : len(layer) - rim]
    inside = (middle[1:] > 0) & (middle[:-1] > 0)  # 0 is padding
    return float(middle.diff(dim=0).abs()[inside].mean())


def compare_object_sizes(predicted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Mean and quartiles of predicted and measured apparent sizes, px, and their difference as a share of the measured.

    Returns:
        Rows "train_px" and "test_px" by mean, 25%, 50% and 75%; columns predicted, measured, difference.
    """
    shown = ["mean", "25%", "50%", "75%"]
    frames = [each[["train_px", "test_px"]].describe().loc[shown].T.stack() for each in (predicted, measured)]
    table = pd.concat(frames, axis=1, keys=["predicted", "measured"])
    return table.assign(difference=table["predicted"] / table["measured"] - 1)
