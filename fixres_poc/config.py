"""Validated, frozen settings of sweeps and runs, and where their files lie.

A sweep file holds the keys of `SweepSettings`; `SweepSettings.runs` derives every notebook run from it. The parameters
cell of a notebook holds the fields of one settings class and `read_parameters` validates it. Sizes are in pixels.
"""

import ast
import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

REPOSITORY = Path(__file__).resolve().parents[1]
EMBEDDED_BACKBONES = ("efficientnet_lite0",)
WSL_BACKBONES = tuple(f"resnext101_32x{width}d_wsl" for width in (8, 16, 32, 48))
Adaptation = Literal["none", "head", "head_bn_stats", "head_bn", "control"]
ADAPTATIONS: tuple[Adaptation, ...] = ("none", "head", "head_bn_stats", "head_bn", "control")
BASELINE_SIZE = 224


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what is allowed."""


def home() -> Path:
    """Folder that holds data/, runs/ and reports/: the repository, or $FIXRES_HOME where that is set."""
    return Path(os.environ.get("FIXRES_HOME", REPOSITORY)).resolve()


def resolve(path: str | Path) -> Path:
    """Absolute form of a path; relative ones are relative to the repository, `~` is the user's home."""
    return (REPOSITORY / Path(path).expanduser()).resolve()


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


Size = Annotated[int, Field(ge=32, le=2048)]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1), AfterValidator(_unique)]
Adaptations = Annotated[tuple[Adaptation, ...], Field(min_length=1), AfterValidator(_unique)]
Backbone = Annotated[str, AfterValidator(_known_backbone)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=10)]
Shown = Annotated[bool, AfterValidator(lambda value, info: value and info.data.get("dataset") != "stanford_dogs")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Settings(BaseModel):
    """What every settings class shares: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataSettings(Settings):
    """Which pictures, and how they are split. Those of stanford_dogs are never shown, as ImageNet's terms want it."""

    dataset: str = Field("synthetic", min_length=1, description="synthetic, stanford_dogs, or a folder")
    image_limit: Annotated[int, Field(ge=30)] | None = Field(None, description="most pictures to use, None for all")
    split_seed: Seed = Field(0, description="seed of the split and of the drawing")
    show_pictures: Shown = Field(True, validate_default=True, description="may notebooks and report show pictures?")


class OverviewSettings(Settings):
    """The state of the art and the backbone's place in it (notebook 00)."""

    sweep: Name = Field("notebooks", description="the sweep this run belongs to: runs/<sweep>/")
    backbone: Backbone = "efficientnet_lite0"

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return "state_of_the_art"


class DatasetSettings(DataSettings):
    """A look at the pictures (notebook 01)."""

    sweep: Name = Field("notebooks", description="the sweep this run belongs to: runs/<sweep>/")

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return "dataset"


class ModelSettings(DataSettings):
    """Which network, and how pictures reach it."""

    backbone: Backbone = "efficientnet_lite0"
    weights: str | None = Field(None, description="file to load instead of the backbone's own weights")
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    resize: Literal["short_side", "height"] = "short_side"


class MethodSettings(ModelSettings):
    """How both stages are trained."""

    epochs: Annotated[int, Field(ge=1)] = 4
    learning_rate: Rate = 0.01
    adapt_epochs: Annotated[int, Field(ge=1)] = 2
    adapt_learning_rate: Rate = 0.01
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1


class BaselineSettings(ModelSettings):
    """Frozen features at 224/224 and a linear classifier (notebook 02)."""

    sweep: Name = Field("notebooks", description="the sweep this run belongs to: runs/<sweep>/")
    seed: Seed = 0

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return "baseline"


class TrainSettings(MethodSettings):
    """Stage 1 at the train size, and the control adapted there (notebook 03)."""

    sweep: Name = Field("notebooks", description="the sweep this run belongs to: runs/<sweep>/")
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


class SweepSettings(MethodSettings):
    """The keys of a sweep file. Only `dataset` and the sizes are required."""

    name: Name
    dataset: str = Field(min_length=1)
    pairs: Annotated[tuple[tuple[Size, Size], ...], Field(min_length=1), AfterValidator(_unique)] | None = None
    train_sizes: Sizes | None = None
    test_sizes: Sizes | None = None
    adaptations: Adaptations = ADAPTATIONS
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_unique)] = (0,)

    @model_validator(mode="after")
    def _sizes_given_once(self) -> Self:
        given = (self.train_sizes is not None, self.test_sizes is not None)
        if any(given) if self.pairs else not all(given):
            raise ValueError("give either pairs, or both train_sizes and test_sizes")
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
                values = _parameters(PairSettings, shared, seed=seed, train_size=train_size, test_size=test_size)
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


S = TypeVar("S", bound=Settings)


def validate(model: type[S], values: Mapping[str, Any], source: str) -> S:
    """Build settings from plain values.

    Args:
        model: the settings class.
        values: keys and values; lists are taken for tuples.
        source: where they come from, named in the error.

    Raises:
        InputError: unknown key, missing key or impossible value, in one line that names it and what is allowed.
    """
    try:
        return model.model_validate({key: _as_tuple(value) for key, value in values.items()})
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error, model)}") from None


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


def _explain(error: ValidationError, model: type[Settings]) -> str:
    first = error.errors()[0]
    key, kind = str(first["loc"][0]) if first["loc"] else "", first["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(key, model.model_fields, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown key {key!r}; {hint}allowed: {', '.join(sorted({*model.model_fields} - {'name'}))}"
    if kind == "missing" and len(first["loc"]) == 1:
        return f"key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = {"tuple_type": "should be a list, such as [64, 96]", "too_short": "may not be empty"}.get(kind, message)
    if key == "pairs" and kind in ("missing", "too_long", "tuple_type") and len(first["loc"]) > 1:
        message = "each pair is [train_size, test_size]"
    if kind == "float_type" and isinstance(first["input"], str):
        message += "; YAML wants a point in it, such as 1.0e-3"
    return f"{key} = {first['input']!r}: {message}" if key else message


def load_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> SweepSettings:
    """Read a sweep file; its name is the file's stem.

    Args:
        path: the YAML file.
        overrides: keys that replace those of the file (None values are passed over).

    Raises:
        InputError: no such file, not YAML, not a table of keys, or a wrong key or value.
    """
    file = resolve(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read as a sweep file ({reason})") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place else ""
        problem = getattr(error, "problem", None) or "syntax error"
        raise InputError(f"{path}{where}: not valid YAML ({problem})") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: a sweep file holds 'key: value' lines, dataset and sizes at least")
    if "name" in content:
        raise InputError(f"{path}: unknown key 'name'; a sweep's name is its file's stem, here {file.stem!r}")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    return validate(SweepSettings, content | given | {"name": file.stem}, str(path))


def read_parameters(model: type[S], namespace: Mapping[str, Any]) -> S:
    """Validate a notebook's parameters: the fields of `model` among the notebook's globals.

    papermill puts a misspelt parameter into a cell of its own and only warns. So the names assigned in the cells of
    literals that ran right before this one (the parameters cell and papermill's) are checked as well.

    Args:
        model: the settings class whose fields the parameters cell sets.
        namespace: the notebook's `globals()`.

    Raises:
        InputError: as `validate`.
    """
    names = set(_assigned_before(namespace.get("In", ()))) | {key for key in model.model_fields if key in namespace}
    return validate(model, {name: namespace[name] for name in names if name in namespace}, "parameters")


def _assigned_before(history: Iterable[str]) -> list[str]:
    names: list[str] = []
    for source in reversed(list(history)[1:-1]):
        try:
            statements = ast.parse(source).body
        except SyntaxError:
            break
        if not statements or not all(isinstance(each, ast.Assign) and _is_literal(each.value) for each in statements):
            break
        names += [target.id for each in statements for target in each.targets if isinstance(target, ast.Name)]  # type: ignore[attr-defined]
    return names


def _is_literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True
