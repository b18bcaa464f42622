"""Validated, frozen settings of sweeps and runs, and where their files lie.

A sweep file holds the keys of `SweepSettings`; `SweepSettings.runs` derives every notebook run from it. How settings
are read from files and notebooks stands in `reading`. Sizes are in pixels.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

REPOSITORY = Path(__file__).resolve().parents[1]
EMBEDDED_BACKBONES = ("efficientnet_lite0",)
WSL_BACKBONES = tuple(f"resnext101_32x{width}d_wsl" for width in (8, 16, 32, 48))
Adaptation = Literal["none", "head", "head_bn_stats", "head_bn", "control", "equalised", "full"]
View = Literal["center", "five_crop", "ten_crop"]
ADAPTATIONS: tuple[Adaptation, ...] = ("none", "head", "head_bn_stats", "head_bn", "control", "equalised")
CROPS: dict[View, int] = {"center": 1, "five_crop": 5, "ten_crop": 10}
BASELINE_SIZE = 224


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what is allowed."""

    def __init__(self, message: str) -> None:
        """Keep the message, with what is not printable (line ends in a file's name, say) written as an escape."""
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))


def home() -> Path:
    """Folder that holds data/, runs/ and reports/: the repository, or $FIXRES_HOME where that is set."""
    return Path(os.environ.get("FIXRES_HOME", REPOSITORY)).resolve()


def resolve(path: str | Path) -> Path:
    """Absolute form of a path; relative ones are relative to the repository, `~` is the user's home.

    Raises:
        InputError: it can be no path: a link to itself, a NUL in it, too long a name, an unknown user's home.
    """
    try:
        resolved = (REPOSITORY / Path(path).expanduser()).resolve()
        resolved.exists()  # fails where a name is too long, as is_file() would later
        return resolved
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"path {str(path)!r}: cannot be resolved ({error})") from None


def run_folder(sweep: str, name: str) -> Path:
    """Folder of one run, such as runs/demo/train96_test120_seed0."""
    return home() / "runs" / sweep / name


def report_folder(sweep: str) -> Path:
    """Folder of a sweep's report, such as reports/demo."""
    return home() / "reports" / sweep


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
ImageLimit = Annotated[int, Field(ge=30, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=10)]
Shown = Annotated[bool, AfterValidator(lambda value, info: value and info.data.get("dataset") != "stanford_dogs")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
MOST_PAIR_RUNS = 10_000


class Settings(BaseModel):
    """What every settings class shares: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataSettings(Settings):
    """Which pictures, and how they are split. Those of stanford_dogs are never shown, as ImageNet's terms want it."""

    dataset: str = Field("synthetic", min_length=1, description="synthetic, stanford_dogs, or a folder")
    image_limit: ImageLimit | None = Field(None, description="most pictures to use, None for all")
    split_seed: Seed = Field(0, description="seed of the split and of the drawing")
    show_pictures: Shown = Field(True, validate_default=True, description="may notebooks and report show pictures?")


class RunSettings(Settings):
    """Where a run's files go: runs/<sweep>/."""

    sweep: Name = Field("notebooks", description="the sweep this run belongs to: runs/<sweep>/")


class OverviewSettings(RunSettings):
    """The state of the art and the backbone's place in it (notebook 00)."""

    backbone: Backbone = "efficientnet_lite0"

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return "state_of_the_art"


class AuditSettings(Settings):
    """What the leakage check may compare with."""

    imagenet_list: Text | None = Field(None, description="text file of ImageNet's training pictures, one a line")


class DatasetSettings(DataSettings, AuditSettings, RunSettings):
    """A look at the pictures (notebook 01)."""

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return "dataset"


class ModelSettings(DataSettings):
    """Which network, and how pictures reach it."""

    backbone: Backbone = "efficientnet_lite0"
    weights: Text | None = Field(None, description="file to load instead of the backbone's own weights")
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
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

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return "baseline"


class TrainSettings(MethodSettings, RunSettings):
    """Stage 1 at the train size, and the control adapted there (notebook 03)."""

    seed: Seed = 0
    train_size: Size

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return f"train{self.train_size}_seed{self.seed}"


class PairSettings(TrainSettings):
    """Stage 2 and evaluation at the test size (notebook 04)."""

    test_size: Size
    adaptations: Adaptations = ADAPTATIONS
    views: Views = ("center",)

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return f"train{self.train_size}_test{self.test_size}_seed{self.seed}"

    def train_settings(self) -> TrainSettings:
        """The settings of the training that this pair shares with the others of its train size."""
        return TrainSettings(**self.model_dump(include=set(TrainSettings.model_fields)))


class ResultsSettings(Settings):
    """The report's text (notebook 05)."""

    sweep: Name = Field("demo", description="the sweep to report on: reports/<sweep>/")


@dataclass(frozen=True)
class Run:
    """One notebook run of a sweep: its name, its notebook's stem, its parameters and the runs it waits for."""

    name: str
    notebook: str
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()


class SweepSettings(MethodSettings, AuditSettings):
    """The keys of a sweep file. Only `dataset` and the sizes are required."""

    name: Name
    skip_unreadable: bool = Field(False, description="leave out pictures that cannot be read, and list them")
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
        if (runs := len(self.resolution_pairs()) * len(self.seeds)) > MOST_PAIR_RUNS:
            raise ValueError(f"{runs} pairs times seeds: at most {MOST_PAIR_RUNS} are allowed")
        if other := set(self.full_pairs or ()) - set(self.resolution_pairs()):
            raise ValueError(f"full_pairs: {sorted(map(list, other))} are no pairs of this sweep")
        return self

    def resolution_pairs(self) -> tuple[tuple[int, int], ...]:
        """(train_size, test_size) of every pair, in the file's order."""
        if self.pairs is not None:
            return self.pairs
        return tuple((train, test) for train in self.train_sizes or () for test in self.test_sizes or ())

    def data_settings(self) -> DataSettings:
        """The part of the settings that decides which pictures are used."""
        return DataSettings(**self.model_dump(include=set(DataSettings.model_fields)))

    def runs(self) -> tuple[Run, ...]:
        """Every notebook run of the sweep but the report's own: one training a train size and seed, one run a pair."""
        shared = self.model_dump() | {"sweep": self.name}
        runs = [
            Run("state_of_the_art", "00_state_of_the_art", _parameters(OverviewSettings, shared)),
            Run("dataset", "01_dataset_eda", _parameters(DatasetSettings, shared)),
            Run("baseline", "02_baseline", _parameters(BaselineSettings, shared, seed=self.seeds[0])),
        ]
        for seed in self.seeds:
            trainings: dict[int, str] = {}
            for train_size, test_size in self.resolution_pairs():
                own: dict[str, Any] = {"seed": seed, "train_size": train_size, "test_size": test_size}
                if (train_size, test_size) in (self.full_pairs or ()):
                    own["adaptations"] = tuple(dict.fromkeys((*self.adaptations, "full")))
                values = _parameters(PairSettings, shared, **own)
                pair = PairSettings(**values)
                train = pair.train_settings()
                if train_size not in trainings:
                    trainings[train_size] = train.run_name
                    runs.append(Run(train.run_name, "03_train", train.model_dump()))
                runs.append(Run(pair.run_name, "04_fixres", values, needs=(train.run_name,)))
        return tuple(runs)


def _parameters(model: type[Settings], shared: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    values = {key: value for key, value in shared.items() if key in model.model_fields} | own
    return model(**values).model_dump()
