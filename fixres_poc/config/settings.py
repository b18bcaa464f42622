"""Frozen settings of notebook runs, sizes in pixels. The text under a field describes it."""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fixres_poc.config.geometry import CROP_PCT, CROP_SCALE, usual_crop_pct

EMBEDDED_BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
SMALL_BACKBONE = "resnext_small"
"""Has no pre-trained weights: use it with `pretrained: false` or `weights`."""
WSL_BACKBONES = tuple(f"resnext101_32x{width}d_wsl" for width in (8, 16, 32, 48))
Adaptation = Literal[
    "none", "equalised", "bn_stats", "head", "head_bn_stats", "head_bn", "conv_head_bn", "full"
]
View = Literal["center", "five_crop", "ten_crop"]
AFFINE: tuple[Adaptation, ...] = ("head_bn", "conv_head_bn")
"""Adaptations that train the affine weights of the last batch norm."""
ADAPTED: tuple[Adaptation, ...] = ("bn_stats", "head", "head_bn_stats", *AFFINE)
"""Adaptations of a tail on images; each has a control, adapted at the train resolution."""
CONTROL = "control_"
"""Prefix of the name of an adaptation's control."""
EQUAL_FLOPS = "equal_flops_"
"""Prefix of the names of question 2's reference: train = test, cut to equal FLOPs."""
SPLITS = ("train", "val", "test")
CROPS: dict[View, int] = {"center": 1, "five_crop": 5, "ten_crop": 10}
NAMED_DATASETS = {
    "stanford_dogs": False,
    "oxford_pets": True,
    "flowers102": False,
    "fgvc_aircraft": False,
}
"""Datasets to download by name, and whether their terms allow to show images."""
BASELINE_SIZE = 224
ENOUGH_STEPS = 640
"""Steps of stage 1 with `epochs: auto`; after fewer, no gain is no finding (design/method.md)."""
FEWEST_VAL = 200
"""Validation images that question 5 needs to recommend an arm."""
T = TypeVar("T")


def _known_backbone(name: str) -> str:
    names = (*EMBEDDED_BACKBONES, SMALL_BACKBONE, *WSL_BACKBONES)
    if name not in names and not name.startswith("timm:"):
        raise ValueError(f"unknown backbone; allowed: {', '.join(names)}, timm:<name>")
    return name


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) != len(values):
        raise ValueError("each value may stand once")
    return values


def _with_center(views: tuple[View, ...]) -> tuple[View, ...]:
    if "center" not in views:
        raise ValueError("center must be among them: the others are held against it")
    return views


def _with_usual(crop_pcts: tuple[float, ...]) -> tuple[float, ...]:
    if CROP_PCT not in crop_pcts:
        raise ValueError(f"{CROP_PCT} must be among them: most comparisons are made at it")
    return crop_pcts


def _rising(crop_scale: tuple[float, float]) -> tuple[float, float]:
    if crop_scale[0] > crop_scale[1]:
        raise ValueError("allowed is [least, most] share of the area, the least first")
    return crop_scale


Several = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(_unique)]
"""One or more different values."""
Size = Annotated[int, Field(ge=32, le=2048)]
Sizes = Several[Size]
Pairs = Several[tuple[Size, Size]]
Adaptations = Several[Adaptation]
Views = Annotated[Several[View], AfterValidator(_with_center)]
Text = Annotated[str, Field(min_length=1)]
Backbone = Annotated[Text, AfterValidator(_known_backbone)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=10)]
Factor = Annotated[float, Field(gt=0, le=1000)]
CropPct = Annotated[float, Field(ge=0.3, le=1, multiple_of=1e-4)]
CropPcts = CropPct | Annotated[Several[CropPct], AfterValidator(_with_usual)]
Share = Annotated[float, Field(gt=0, le=1)]
CropScale = Annotated[tuple[Share, Share], AfterValidator(_rising)]
BatchNorm = Literal["frozen", "train"]
Smoothing = Annotated[float, Field(ge=0, lt=1)]
Mean = Annotated[float, Field(ge=0, le=1)]
MeanStd = tuple[tuple[Mean, Mean, Mean], tuple[Share, Share, Share]]
Names = Annotated[Several[Text], Field(min_length=2)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys and convert no types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def several(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """The values of a setting that may be one value or a list to choose from on validation."""
    return value if isinstance(value, tuple) else (value,)


def stage1_passes(head_start: str, epochs: int, counts: Mapping[str, int]) -> int:
    """Cost of stage 1 and of the probe that it starts from, in forward passes of one image.

    An epoch takes three passes of each train image, two of them for the backward pass, and one of
    each validation image.

    Args:
        counts: images by split.
    """
    probe = counts["train"] + counts["val"] if head_start == "probe" else 0
    return probe + epochs * (3 * counts["train"] + counts["val"])


class ExtraTest(Settings):
    """A second test part, such as images that the network has not seen in pre-training."""

    name: Name
    """Name in tables, other than train, val and test."""
    folder: Text
    """Folder of class folders; classes are matched by name."""
    validation: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of each class that replaces the dataset's validation part; the rest is for testing."""

    @model_validator(mode="after")
    def _of_its_own(self) -> Self:
        if self.name in SPLITS:
            raise ValueError(
                f"name = {self.name!r}: one of the dataset's own parts; allowed is another name"
            )
        return self


class DataSettings(Settings):
    """The images and their split."""

    dataset: Text = "synthetic"
    """`synthetic`, a named dataset, or a folder."""
    image_limit: Annotated[int, Field(ge=30, le=10**9)] | None = None
    """Largest number of images; None: all."""
    split_seed: Seed = 0
    """Seed of the split and of the synthetic images."""
    extra_test: ExtraTest | None = None
    """A second test part."""
    show_images: bool | None = None
    """Whether notebooks and report show images; None: if their licence allows it."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.show_images and not NAMED_DATASETS.get(self.dataset, True):
            raise ValueError(f"show_images = True: the terms of {self.dataset} do not allow it")
        if self.dataset == "synthetic" and (self.image_limit or 0) > 100_000:
            raise ValueError(
                f"image_limit = {self.image_limit}: at most 100000 synthetic images are drawn"
            )
        return self

    @property
    def images_shown(self) -> bool:
        """`show_images`, else what the dataset's terms allow."""
        if self.show_images is None:
            return NAMED_DATASETS.get(self.dataset, True)
        return self.show_images


class RunSettings(Settings):
    """The sweep of a run."""

    sweep: Name = "notebooks"
    """Name of the sweep, whose folder runs/<sweep>/ holds the run."""


class OverviewSettings(RunSettings):
    """Published results and the backbone's place among them (notebook 00)."""

    backbone: Backbone = "efficientnet_lite0"
    run_name: ClassVar[str] = "state_of_the_art"


class DatasetSettings(DataSettings, RunSettings):
    """A look at the images (notebook 01)."""

    imagenet_list: Text | None = None
    """Text file of ImageNet's training images, one per line."""
    run_name: ClassVar[str] = "dataset"


class ModelSettings(DataSettings):
    """The network and its input."""

    backbone: Backbone = "efficientnet_lite0"
    weights: Text | None = None
    """File to load instead of the backbone's own weights."""
    weights_key: Text | None = None
    """Entry of that file; None: the plain weights."""
    mean_std: MeanStd | None = None
    """Per channel, of images in [0, 1]; None: the backbone's."""
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    memory_format: Literal["auto", "channels_last", "nchw"] = "auto"
    """`auto`: see model/device.py."""
    resize: Literal["short_side", "height"] = "short_side"
    crop_pct: CropPcts = CROP_PCT
    """Test crop over resized short side; a list: validation chooses for each arm."""

    def framed(self, crop_pct: float) -> Self:
        """The same settings with this one `crop_pct`."""
        return self.model_copy(update={"crop_pct": crop_pct})


class MethodSettings(ModelSettings):
    """Training of both stages."""

    pretrained: bool = True
    """False: stage 1 starts from random weights, and there is no probe."""
    epochs: Epochs | Literal["auto"] = "auto"
    """Of stage 1; auto: `ENOUGH_STEPS` steps."""
    learning_rate: Rate | Several[Rate] = 1e-3
    """Of the classifier in stage 1."""
    trunk_factor: Factor = 0.1
    """Rate of all other weights in stage 1, as a multiple of the classifier's."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    head_start: Literal["probe", "random", "file"] = "probe"
    """Classifier at the start of stage 1; file: the network of the weights file, no stage 1."""
    class_order: Names | None = None
    """Classes in the order of the weights file; None: sorted."""
    batch_norm: BatchNorm | Several[BatchNorm] = "frozen"
    """Of stage 1; frozen: batch norms keep their statistics."""
    crop_scale: CropScale = CROP_SCALE
    """Range of the crop's share of the image's area in stage 1."""
    label_smoothing: Smoothing = 0.1
    adapt_epochs: Epochs | Several[Epochs] = 2
    adapt_learning_rate: Rate | Several[Rate] = 0.01
    affine_factor: Factor | Several[Factor] = (1.0, 10.0, 100.0)
    """Rate of the last batch norm's affine weights, as a multiple of the classifier's."""
    adapt_batch_norm: BatchNorm | Several[BatchNorm] = ("frozen", "train")
    """Of `AFFINE` adaptations; train: the last batch norm's statistics are re-estimated."""
    adapt_label_smoothing: Smoothing = 0.0
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations instead of storing them."""
    adaptations: Adaptations = ("none", "head_bn")

    @model_validator(mode="before")
    @classmethod
    def _from_scratch(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Set the defaults for random weights, which have no features to preserve."""
        if values.get("pretrained") is not False:
            return values
        defaults = {"head_start": "random", "trunk_factor": 1.0}
        defaults |= dict.fromkeys(["batch_norm", "adapt_batch_norm"], "train")
        return defaults | values

    @model_validator(mode="after")
    def _starts_from_something(self) -> Self:
        if not self.pretrained and (self.head_start != "random" or self.weights is not None):
            raise ValueError(
                "pretrained = False: training starts from random weights; "
                "allowed with head_start: random, and without weights and trained"
            )
        if self.head_start == "file" and self.weights is None:
            raise ValueError("head_start = 'file': of a weights file; allowed with weights")
        if self.weights_key is not None and self.weights is None:
            raise ValueError("weights_key: an entry of a weights file; allowed with weights")
        if self.class_order is not None and self.head_start != "file":
            raise ValueError("class_order: of a weights file; allowed with head_start: file")
        return self

    @property
    def adapted(self) -> tuple[Adaptation, ...]:
        """The adaptations of this run that have a control."""
        return tuple(name for name in self.adaptations if name in ADAPTED)

    def grid(self, adaptation: Adaptation) -> list[dict[str, Any]]:
        """The candidates of an adaptation on validation, the simplest first.

        Returns:
            Dicts of epochs, learning_rate, affine_factor and batch_norm; the last two are None
            outside `AFFINE`.
        """
        affine = adaptation in AFFINE
        rates = sorted(several(self.adapt_learning_rate))
        lists: dict[str, list[Any]] = {
            "epochs": sorted(several(self.adapt_epochs)),
            "learning_rate": rates[:1] if adaptation == "bn_stats" else rates,  # it uses no rate
            "affine_factor": sorted(several(self.affine_factor)) if affine else [None],
            "batch_norm": sorted(several(self.adapt_batch_norm)) if affine else [None],
        }
        combinations = itertools.product(*lists.values())
        return [dict(zip(lists, values, strict=True)) for values in combinations]


class BaselineSettings(ModelSettings, RunSettings):
    """A linear classifier on frozen features, fitted and tested at each size (notebook 02)."""

    seed: Seed = 0
    test_sizes: Sizes = (BASELINE_SIZE,)
    crop_pct_sizes: Sizes | None = None
    """Sizes, px, that try a list of crop_pct; None: all."""
    run_name: ClassVar[str] = "baseline"


class TrainSettings(MethodSettings, RunSettings):
    """Stage 1 at the train resolution, and the controls adapted there (notebook 03)."""

    seed: Seed = 0
    train_size: Size
    tuned_by: Seed | None = None
    """Seed of the training whose recipe of stage 1 is taken over; None: chosen here."""
    equal_flops: Size | None = None
    """Train resolution, px, whose training FLOPs limit this training: question 2's reference."""

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        short = "_equal_flops" if self.equal_flops else ""
        return f"train{self.train_size}{short}_seed{self.seed}"


class PairSettings(TrainSettings):
    """Stage 2 and evaluation at the test resolution (notebook 04)."""

    test_size: Size
    views: Views = ("center",)

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        training, _, seed = super().run_name.rpartition("_")
        return f"{training}_test{self.test_size}_{seed}"

    def train_settings(self) -> TrainSettings:
        """The settings of this pair's training, which has the usual framing."""
        framed = self.framed(usual_crop_pct(self.crop_pct))
        return TrainSettings(**framed.model_dump(include=set(TrainSettings.model_fields)))


class ResultsSettings(Settings):
    """The report (notebook 05)."""

    report: Text = "docs/reports/demo"
    """Folder with the tables of a report."""
