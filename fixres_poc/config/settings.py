"""Validated, frozen settings of notebook runs, and the table of notebooks. Sizes are in pixels.

`validation` reads settings; a text under a field describes it.
"""

import difflib
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

EMBEDDED_BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
SMALL_BACKBONE = "resnext_small"
"""Has no pre-trained weights: `pretrained: false`, or weights of one's own."""
WSL_BACKBONES = tuple(f"resnext101_32x{width}d_wsl" for width in (8, 16, 32, 48))
Adaptation = Literal["none", "equalised", "bn_stats", "head", "head_bn_stats", "head_bn", "full"]
View = Literal["center", "five_crop", "ten_crop"]
ADAPTED: tuple[Adaptation, ...] = ("bn_stats", "head", "head_bn_stats", "head_bn")
"""Adaptations of a tail on images; each has a control, the same one at the train resolution."""
ADAPTATIONS: tuple[Adaptation, ...] = ("none", "equalised", *ADAPTED)
CONTROL = "control_"
"""What the name of an adaptation's control begins with."""
SPLITS = ("train", "val", "test")
CROPS: dict[View, int] = {"center": 1, "five_crop": 5, "ten_crop": 10}
NAMED_DATASETS = {
    "stanford_dogs": False,
    "oxford_pets": True,
    "flowers102": False,
    "fgvc_aircraft": False,
}
"""Datasets that are downloaded by name, and whether their terms allow to show images."""
BASELINE_SIZE = 224
MOST_EPOCHS = 100_000
T = TypeVar("T")


def _known_backbone(name: str) -> str:
    names = (*EMBEDDED_BACKBONES, SMALL_BACKBONE, *WSL_BACKBONES)
    if name not in names and not (name.startswith("timm:") and len(name) > 5):
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown backbone; {hint}allowed: {', '.join(names)}, timm:<name>")
    return name


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) != len(values):
        raise ValueError("each value may stand once")
    return values


def _with_center(views: tuple[View, ...]) -> tuple[View, ...]:
    if "center" not in views:
        raise ValueError("center must be among them: the others are held against it")
    return views


Several = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(_unique)]
"""One or more values, none of which stands twice."""
Size = Annotated[int, Field(ge=32, le=2048)]
Sizes = Several[Size]
Pairs = Several[tuple[Size, Size]]
Adaptations = Several[Adaptation]
Views = Annotated[Several[View], AfterValidator(_with_center)]
Text = Annotated[str, Field(min_length=1)]
Backbone = Annotated[Text, AfterValidator(_known_backbone)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Epochs = Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
Rate = Annotated[float, Field(gt=0, le=10)]
FirstRate = Annotated[float, Field(ge=0, le=10)]
BatchNorm = Literal["frozen", "train"]
Smoothing = Annotated[float, Field(ge=0, lt=1)]
Triple = tuple[float, float, float]
Names = Annotated[Several[Text], Field(min_length=2)]
NAME, LONGEST_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", 100
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)]


class Settings(BaseModel):
    """Frozen; unknown keys are refused, and no type is converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def several(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """The values of a setting that is one value or a list to choose from on validation."""
    return value if isinstance(value, tuple) else (value,)


class ExtraTest(Settings):
    """A second test part, such as images that the network has not seen in pre-training."""

    name: Name
    """Its name in tables, other than train, val and test."""
    folder: Text
    """Folder of class folders; classes are matched by name."""

    @model_validator(mode="after")
    def _of_its_own(self) -> Self:
        if self.name in SPLITS:
            raise ValueError(
                f"name = {self.name!r}: one of the dataset's own parts; allowed is another name"
            )
        return self


class DataSettings(Settings):
    """Which images, and how they are split."""

    dataset: Text = "synthetic"
    """`synthetic`, a named one, or a folder."""
    image_limit: Annotated[int, Field(ge=30, le=10**9)] | None = None
    """Most images; None: all."""
    split_seed: Seed = 0
    """Seed of the split and of the drawing."""
    extra_test: ExtraTest | None = None
    """A second test part."""
    show_images: bool | None = None
    """May notebooks and report show images? None: by their licence."""

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
        """Whether notebooks and report show images: as set, else by the dataset's terms."""
        if self.show_images is None:
            return NAMED_DATASETS.get(self.dataset, True)
        return self.show_images


class RunSettings(Settings):
    """Where a run's files go."""

    sweep: Name = "notebooks"
    """The sweep this run belongs to: runs/<sweep>/."""


class OverviewSettings(RunSettings):
    """The state of the art and the backbone's place in it (notebook 00)."""

    backbone: Backbone = "efficientnet_lite0"
    run_name: ClassVar[str] = "state_of_the_art"


class DatasetSettings(DataSettings, RunSettings):
    """A look at the images (notebook 01)."""

    imagenet_list: Text | None = None
    """Text file of ImageNet's training images, one a line."""
    run_name: ClassVar[str] = "dataset"


class ModelSettings(DataSettings):
    """Which network, and how images reach it."""

    backbone: Backbone = "efficientnet_lite0"
    weights: Text | None = None
    """File to load instead of the backbone's own weights."""
    weights_key: Text | None = None
    """Entry of that file; None: the plain weights."""
    mean_std: tuple[Triple, Triple] | None = None
    """Per channel, in [0, 1]; None: the backbone's."""
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    memory_format: Literal["auto", "channels_last", "nchw"] = "auto"
    """`auto`: see model/device.py."""
    resize: Literal["short_side", "height"] = "short_side"


class MethodSettings(ModelSettings):
    """How both stages are trained."""

    pretrained: bool = True
    """False: stage 1 starts from random weights, and there is no probe."""
    epochs: Epochs = 4
    learning_rate: FirstRate | Several[FirstRate] = 0.01
    """Of stage 1; 0: the trunk stays as it is."""
    head_start: Literal["probe", "random", "file"] = "probe"
    """Classifier that stage 1 starts from."""
    class_order: Names | None = None
    """Classes of the weights file in its order; None: sorted."""
    batch_norm: BatchNorm | Several[BatchNorm] = "train"
    """Of stage 1; frozen: it keeps its statistics."""
    label_smoothing: Smoothing = 0.1
    adapt_epochs: Epochs | Several[Epochs] = 2
    adapt_learning_rate: Rate | Several[Rate] = 0.01
    adapt_label_smoothing: Smoothing = 0.0
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations, not store them."""

    @model_validator(mode="before")
    @classmethod
    def _random_head(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Random weights go with a random classifier."""
        return {"head_start": "random", **values} if values.get("pretrained") is False else values

    @model_validator(mode="after")
    def _starts_from_something(self) -> Self:
        if not self.pretrained and (self.head_start != "random" or self.weights is not None):
            raise ValueError(
                "pretrained = False: training starts from random weights; "
                "allowed with head_start: random, and without weights and trained"
            )
        if 0 in several(self.learning_rate) and self.head_start == "random":
            raise ValueError(
                "learning_rate = 0: leaves a random classifier as it is; "
                "allowed with head_start: probe"
            )
        if self.head_start == "file" and self.weights is None:
            raise ValueError(
                "head_start = 'file': the classifier of a weights file; allowed with weights"
            )
        if self.weights_key is not None and self.weights is None:
            raise ValueError("weights_key: an entry of a weights file; allowed with weights")
        if self.class_order is not None and self.head_start != "file":
            raise ValueError(
                "class_order: of a weights file's classifier; allowed with head_start: file"
            )
        return self


class BaselineSettings(ModelSettings, RunSettings):
    """Frozen features and a linear classifier, fitted and tested at each size (notebook 02)."""

    seed: Seed = 0
    test_sizes: Sizes = (BASELINE_SIZE,)
    run_name: ClassVar[str] = "baseline"


class TrainSettings(MethodSettings, RunSettings):
    """Stage 1 at the train resolution, and the controls adapted there (notebook 03)."""

    seed: Seed = 0
    train_size: Size
    tuning_size: Size | None = None
    """Where stage 2's lists are chosen from; None: train resolution."""
    tuned_by: Seed | None = None
    """Seed of the training whose choices hold here; None: chosen here."""

    @property
    def tuned(self) -> bool:
        """Whether anything of stage 2 is chosen from a list."""
        return len(several(self.adapt_learning_rate)) * len(several(self.adapt_epochs)) > 1

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return f"train{self.train_size}_seed{self.seed}"


def pair_name(train_size: int, test_size: int, seed: int) -> str:
    """Name of the folder of a pair of sizes (px)."""
    return f"train{train_size}_test{test_size}_seed{seed}"


class PairSettings(TrainSettings):
    """Stage 2 and evaluation at the test resolution (notebook 04)."""

    test_size: Size
    adaptations: Adaptations = ADAPTATIONS
    views: Views = ("center",)

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return pair_name(self.train_size, self.test_size, self.seed)

    def train_settings(self) -> TrainSettings:
        """The settings of the training that this pair shares with others."""
        return TrainSettings(**self.model_dump(include=set(TrainSettings.model_fields)))


class ResultsSettings(Settings):
    """The report (notebook 05)."""

    report: Text = "docs/reports/demo"
    """Folder with the tables of a report."""


METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"


class Notebook(NamedTuple):
    """What a notebook takes, needs and leaves."""

    settings: type[Settings]
    # a run that has them is done; of checkpoints see `run_state.checkpoint_is_intact`
    outputs: tuple[str, ...] = (METRICS,)
    uses_gpu: bool = False
    needs: str | None = None  # the notebook whose checkpoint it reads


NOTEBOOKS = {
    "00_state_of_the_art": Notebook(OverviewSettings),
    "01_dataset_eda": Notebook(DatasetSettings),
    "02_baseline": Notebook(BaselineSettings, (METRICS, PREDICTIONS), uses_gpu=True),
    "03_train": Notebook(TrainSettings, uses_gpu=True),
    "04_fixres": Notebook(PairSettings, (METRICS, PREDICTIONS), uses_gpu=True, needs="03_train"),
    "05_results": Notebook(ResultsSettings, outputs=()),
}
