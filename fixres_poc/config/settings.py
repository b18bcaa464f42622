"""Validated, frozen settings of sweeps and runs.

A sweep file holds the keys of `SweepSettings`; `SweepSettings.runs` derives every notebook run from it. `validation`
reads settings from sweep files and notebooks. Sizes are in pixels.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

EMBEDDED_BACKBONES = ("efficientnet_lite0",)
WSL_BACKBONES = tuple(f"resnext101_32x{width}d_wsl" for width in (8, 16, 32, 48))
Adaptation = Literal["none", "head", "head_bn_stats", "head_bn", "control", "equalised", "full"]
View = Literal["center", "five_crop", "ten_crop"]
ADAPTATIONS: tuple[Adaptation, ...] = ("none", "head", "head_bn_stats", "head_bn", "control", "equalised")
CROPS: dict[View, int] = {"center": 1, "five_crop": 5, "ten_crop": 10}
BASELINE_SIZE = 224


def _known_backbone(name: str) -> str:
    names = EMBEDDED_BACKBONES + WSL_BACKBONES
    if name not in names and not (name.startswith("timm:") and len(name) > 5):
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown backbone; {hint}allowed: {', '.join(names)}, timm:<name>")
    return name


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("each value may stand once")
    return values


def _with_center(views: tuple[View, ...]) -> tuple[View, ...]:
    if "center" not in views:
        raise ValueError("center must be among them: the others are held against it")
    return views


Size = Annotated[int, Field(ge=32, le=2048)]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1), AfterValidator(_unique)]
Pairs = Annotated[tuple[tuple[Size, Size], ...], Field(min_length=1), AfterValidator(_unique)]
Adaptations = Annotated[tuple[Adaptation, ...], Field(min_length=1), AfterValidator(_unique)]
Views = Annotated[tuple[View, ...], Field(min_length=1), AfterValidator(_unique), AfterValidator(_with_center)]
Text = Annotated[str, Field(min_length=1)]
Backbone = Annotated[Text, AfterValidator(_known_backbone)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=10)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


class Settings(BaseModel):
    """Frozen; unknown keys are refused, and no type is converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataSettings(Settings):
    """Which images, and how they are split."""

    dataset: str = Field("synthetic", min_length=1, description="synthetic, stanford_dogs, or a folder")
    image_limit: Annotated[int, Field(ge=30, le=10**9)] | None = Field(None, description="most images; None: all")
    split_seed: Seed = Field(0, description="seed of the split and of the drawing")
    show_images: bool | None = Field(None, description="may notebooks and report show images? None: by their licence")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.show_images and self.dataset == "stanford_dogs":
            raise ValueError("show_images = True: ImageNet's terms forbid it for stanford_dogs")
        if self.dataset == "synthetic" and (self.image_limit or 0) > 100_000:
            raise ValueError(f"image_limit = {self.image_limit}: at most 100000 synthetic images are drawn")
        return self

    @property
    def images_shown(self) -> bool:
        """Whether notebooks and report show images: as set, else all but those of stanford_dogs."""
        return self.dataset != "stanford_dogs" if self.show_images is None else self.show_images


class RunSettings(Settings):
    """Where a run's files go."""

    sweep: Name = Field("notebooks", description="the sweep this run belongs to: runs/<sweep>/")


class OverviewSettings(RunSettings):
    """The state of the art and the backbone's place in it (notebook 00)."""

    backbone: Backbone = "efficientnet_lite0"
    run_name: ClassVar[str] = "state_of_the_art"


class DatasetSettings(DataSettings, RunSettings):
    """A look at the images (notebook 01)."""

    imagenet_list: Text | None = Field(None, description="text file of ImageNet's training images, one a line")
    run_name: ClassVar[str] = "dataset"


class ModelSettings(DataSettings):
    """Which network, and how images reach it."""

    backbone: Backbone = "efficientnet_lite0"
    weights: Text | None = Field(None, description="file to load instead of the backbone's own weights")
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    memory_format: Literal["auto", "channels_last", "nchw"] = Field("auto", description="auto: see model/device.py")
    resize: Literal["short_side", "height"] = "short_side"


class MethodSettings(ModelSettings):
    """How both stages are trained."""

    epochs: Epochs = 4
    learning_rate: Rate = 0.01
    adapt_epochs: Epochs = 2
    adapt_learning_rate: Rate = 0.01
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    gradient_checkpointing: bool | Literal["auto"] = Field("auto", description="recompute activations, not store them")


class BaselineSettings(ModelSettings, RunSettings):
    """Frozen features at 224/224 and a linear classifier (notebook 02)."""

    seed: Seed = 0
    run_name: ClassVar[str] = "baseline"


class TrainSettings(MethodSettings, RunSettings):
    """Stage 1 at the train size, and the control adapted there (notebook 03)."""

    seed: Seed = 0
    train_size: Size

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return f"train{self.train_size}_seed{self.seed}"


def pair_name(train_size: int, test_size: int, seed: int) -> str:
    """Name of the folder of a pair of sizes (px)."""
    return f"train{train_size}_test{test_size}_seed{seed}"


class PairSettings(TrainSettings):
    """Stage 2 and evaluation at the test size (notebook 04)."""

    test_size: Size
    adaptations: Adaptations = ADAPTATIONS
    views: Views = ("center",)

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return pair_name(self.train_size, self.test_size, self.seed)

    def train_settings(self) -> TrainSettings:
        """The settings of the training that this pair shares with the others of its train size."""
        return TrainSettings(**self.model_dump(include=set(TrainSettings.model_fields)))


class ResultsSettings(Settings):
    """The report (notebook 05)."""

    sweep: Name = Field("demo", description="the sweep to report on: reports/<sweep>/")


NOTEBOOKS: dict[str, type[Settings]] = {
    "00_state_of_the_art": OverviewSettings,
    "01_dataset_eda": DatasetSettings,
    "02_baseline": BaselineSettings,
    "03_train": TrainSettings,
    "04_fixres": PairSettings,
    "05_results": ResultsSettings,
}


@dataclass(frozen=True)
class Run:
    """One notebook run of a sweep: its name, its notebook's stem, its parameters and the runs it waits for."""

    name: str
    notebook: str
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()


class SweepSettings(MethodSettings):
    """The keys of a sweep file. Only `dataset` and the sizes are required."""

    name: Name
    imagenet_list: Text | None = Field(None, description="text file of ImageNet's training images, one a line")
    skip_unreadable: bool = Field(False, description="leave out images that cannot be read, and list them")
    dataset: str = Field(min_length=1)
    pairs: Pairs | None = None
    train_sizes: Sizes | None = None
    test_sizes: Sizes | None = None
    adaptations: Adaptations = ADAPTATIONS
    views: Views = ("center",)
    full_pairs: Pairs | None = Field(None, description="pairs for which `full` is run as well")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_unique)] = (0,)
    run_time_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="most seconds a run may take, or none")

    @model_validator(mode="after")
    def _sizes_given_once(self) -> Self:
        given = (self.train_sizes is not None, self.test_sizes is not None)
        if any(given) if self.pairs else not all(given):
            raise ValueError("give either pairs, or both train_sizes and test_sizes")
        if (runs := len(self.resolution_pairs()) * len(self.seeds)) > 10_000:
            raise ValueError(f"{runs} pairs times seeds: at most 10000 are allowed")
        if other := set(self.full_pairs or ()) - set(self.resolution_pairs()):
            raise ValueError(f"full_pairs: {sorted(map(list, other))} are no pairs of this sweep")
        return self

    def resolution_pairs(self) -> tuple[tuple[int, int], ...]:
        """(train_size, test_size) of every pair, in the file's order."""
        if self.pairs is not None:
            return self.pairs
        return tuple((train, test) for train in self.train_sizes or () for test in self.test_sizes or ())

    def data_settings(self) -> DataSettings:
        """Which images the sweep uses."""
        return DataSettings(**self.model_dump(include=set(DataSettings.model_fields)))

    def runs(self) -> tuple[Run, ...]:
        """Every notebook run of the sweep but the report's own: one training a train size and seed, one run a pair."""
        shared = self.model_dump() | {"sweep": self.name}
        stems = ("00_state_of_the_art", "01_dataset_eda", "02_baseline")
        runs = {run.name: run for run in (_run(stem, shared | {"seed": self.seeds[0]}) for stem in stems)}
        for seed, (train_size, test_size) in product(self.seeds, self.resolution_pairs()):
            own: dict[str, Any] = {"seed": seed, "train_size": train_size, "test_size": test_size}
            if (train_size, test_size) in (self.full_pairs or ()):
                own["adaptations"] = tuple(dict.fromkeys((*self.adaptations, "full")))
            training = _run("03_train", shared | own)
            pair = _run("04_fixres", shared | own, needs=(training.name,))
            runs |= {each.name: runs.get(each.name, each) for each in (training, pair)}
        return tuple(runs.values())


def _run(notebook: str, values: Mapping[str, Any], needs: tuple[str, ...] = ()) -> Run:
    model: Any = NOTEBOOKS[notebook]
    settings = model(**{key: value for key, value in values.items() if key in model.model_fields})
    return Run(settings.run_name, notebook, settings.model_dump(), needs)
