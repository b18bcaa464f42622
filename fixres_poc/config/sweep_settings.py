"""Settings of a sweep: the keys of its file, and the notebook runs that follow from them. Sizes are in pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from fixres_poc.config.settings import (
    ADAPTATIONS,
    BASELINE_SIZE,
    MOST_EPOCHS,
    NOTEBOOKS,
    Adaptations,
    Backbone,
    DataSettings,
    MethodSettings,
    Name,
    Names,
    Pairs,
    Seed,
    Settings,
    Size,
    Sizes,
    Text,
    Views,
    several,
    unique,
)

NEUTRAL = 1.24
"""Test resolution over train resolution at which objects look as large as in training (`method.apparent_size`)."""


@dataclass(frozen=True)
class Run:
    """One notebook run of a sweep: its name, its notebook's stem, its parameters and the runs it waits for."""

    name: str
    notebook: str
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()


class TrainedNetwork(Settings):
    """A network that was trained elsewhere: stage 1 is read from its file, not run."""

    path: Text = Field(description="safetensors, or what torch.save wrote")
    architecture: Backbone | None = Field(None, description="None: the sweep's backbone")
    train_size: Size | None = Field(
        None, description="side of the crop that it was trained on, px; None: train_sizes"
    )
    classes: Names | None = Field(
        None, description="in the file's order; None: what the file says, else sorted"
    )
    weights_key: Text | None = Field(None, description="entry of the file; None: the plain weights")


class SweepSettings(MethodSettings):
    """The keys of a sweep file. Only `dataset` and the sizes are required."""

    name: Name
    trained: TrainedNetwork | None = Field(
        None, description="a network trained elsewhere: a file, or a table"
    )
    imagenet_list: Text | None = Field(
        None, description="text file of ImageNet's training images, one a line"
    )
    skip_unreadable: bool = Field(
        False, description="leave out images that cannot be read, and list them"
    )
    dataset: str = Field(min_length=1)
    pairs: Pairs | None = None
    train_sizes: Sizes | None = None
    test_sizes: Sizes | None = None
    adaptations: Adaptations = ADAPTATIONS
    views: Views = ("center",)
    full_pairs: Pairs | None = Field(None, description="pairs for which `full` is run as well")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(unique)] = (0,)
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="largest difference that does not matter"
    )
    equal_compute: bool = Field(
        False, description="epochs in proportion to 1 / size^2, of the largest size's"
    )
    run_time_limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most seconds a run may take, or none"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_not_trained(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What follows from `trained`: the weights, their classifier, and nothing to train."""
        given = values.get("trained")
        given = {"path": given} if isinstance(given, str) else given
        if not isinstance(given, Mapping):
            return values
        own = {
            "weights": given.get("path"),
            "backbone": given.get("architecture"),
            "class_order": given.get("classes"),
        }
        own["weights_key"] = given.get("weights_key")
        own["train_sizes"] = given.get("train_size") and (given["train_size"],)
        own = {key: value for key, value in own.items() if value is not None} | {
            "head_start": "file"
        }
        own["learning_rate"] = 0.0
        if other := [key for key in own if key in values and values[key] != own[key]]:
            raise ValueError(
                f"{other[0]} = {values[other[0]]!r}: trained says {own[other[0]]!r}; give one of the two"
            )
        return {**values, **own, "trained": given}

    @model_validator(mode="after")
    def _sizes_given_once(self) -> Self:
        given = (self.train_sizes is not None, self.test_sizes is not None)
        if any(given) if self.pairs else not all(given):
            raise ValueError("give either pairs, or both train_sizes and test_sizes")
        if (runs := len(self.resolution_pairs()) * len(self.seeds)) > 10_000:
            raise ValueError(f"{runs} pairs times seeds: at most 10000 are allowed")
        sizes = [train for train, _ in self.resolution_pairs()]
        if self.equal_compute and self._epochs(min(sizes), max(sizes)) > MOST_EPOCHS:
            raise ValueError(f"equal_compute: more than {MOST_EPOCHS} epochs at {min(sizes)} px")
        if other := set(self.full_pairs or ()) - set(self.resolution_pairs()):
            raise ValueError(f"full_pairs: {sorted(map(list, other))} are no pairs of this sweep")
        return self

    def resolution_pairs(self) -> tuple[tuple[int, int], ...]:
        """(train_size, test_size) of every pair, in the file's order."""
        if self.pairs is not None:
            return self.pairs
        return tuple(
            (train, test) for train in self.train_sizes or () for test in self.test_sizes or ()
        )

    def data_settings(self) -> DataSettings:
        """Which images the sweep uses."""
        return DataSettings(**self.model_dump(include=set(DataSettings.model_fields)))

    def runs(self) -> tuple[Run, ...]:
        """Every notebook run of the sweep but the report's: one per train resolution and seed, one per pair."""
        shared = self.model_dump() | {"sweep": self.name}
        sizes = tuple(sorted({BASELINE_SIZE, *(test for _, test in self.resolution_pairs())}))
        stems = ["00_state_of_the_art", "01_dataset_eda", "02_baseline"]
        # a probe of a trained trunk is no reference for training
        stems = stems[: 2 if self.head_start == "file" else 3]
        once = (_run(stem, shared | {"seed": self.seeds[0], "test_sizes": sizes}) for stem in stems)
        runs = {run.name: run for run in once}
        for seed, (train_size, test_size) in product(self.seeds, self.resolution_pairs()):
            own = {
                "seed": seed,
                "train_size": train_size,
                "test_size": test_size,
                **self._of_train_size(train_size),
            }
            training = self._training(shared | own)
            if (train_size, test_size) in (self.full_pairs or ()):
                own["adaptations"] = tuple(dict.fromkeys((*self.adaptations, "full")))
            pair = _run("04_fixres", training.parameters | shared | own, needs=(training.name,))
            runs |= {each.name: runs.get(each.name, each) for each in (training, pair)}
        return tuple(runs.values())

    def jobs(self) -> dict[str, tuple[Run, ...]]:
        """The runs of each job, which one kernel does in this order: a training and its pairs; all that needs neither.

        Returns:
            By name of the folder that its `job.done` lies in, a run's.
        """
        jobs: dict[str, tuple[Run, ...]] = {}
        for run in self.runs():
            own = (
                run.needs[0]
                if run.notebook == "04_fixres"
                else run.name
                if run.notebook == "03_train"
                else "dataset"
            )
            jobs[own] = (*jobs.get(own, ()), run)
        return jobs

    def trainings_at_once(self) -> int:
        """Most trainings that do not wait for one another."""
        waiting = [bool(run.needs) for run in self.runs() if run.notebook == "03_train"]
        return max(waiting.count(True), waiting.count(False))

    def _of_train_size(self, train_size: int) -> dict[str, Any]:
        """What all runs of a train resolution share: epochs, and where the lists of stage 2 are chosen from."""
        pairs, own = self.resolution_pairs(), dict[str, Any]()
        if self.equal_compute:
            own["epochs"] = self._epochs(train_size, max(train for train, _ in pairs))
        if len(several(self.adapt_learning_rate)) * len(several(self.adapt_epochs)) > 1:
            tests = [test for train, test in pairs if train == train_size]
            larger = [test for test in tests if test > train_size] or tests
            own["tuning_size"] = min(larger, key=lambda test: abs(test - NEUTRAL * train_size))
        return own

    def _epochs(self, train_size: int, largest: int) -> int:
        """Epochs that cost at this size what `epochs` cost at the largest."""
        return round(self.epochs * (largest / train_size) ** 2)

    def _training(self, values: Mapping[str, Any]) -> Run:
        """A training; where there are lists to choose from, later seeds wait for the first one's choice."""
        first = _run("03_train", {**values, "seed": self.seeds[0]})
        lists = (self.learning_rate, self.adapt_learning_rate, self.adapt_epochs)
        if values["seed"] == self.seeds[0] or all(len(several(each)) == 1 for each in lists):
            return _run("03_train", values)
        return _run("03_train", {**values, "tuned_by": self.seeds[0]}, needs=(first.name,))


def _run(notebook: str, values: Mapping[str, Any], needs: tuple[str, ...] = ()) -> Run:
    model: Any = NOTEBOOKS[notebook]
    settings = model(**{key: value for key, value in values.items() if key in model.model_fields})
    return Run(settings.run_name, notebook, settings.model_dump(), needs)
