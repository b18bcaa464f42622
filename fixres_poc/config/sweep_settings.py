"""Settings of a sweep: the keys of its file, and the notebook runs that follow from them.

Sizes are in pixels.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fixres_poc.config.files import run_folder
from fixres_poc.config.geometry import neutral_test_size, usual_crop_pct
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.settings import (
    BASELINE_SIZE,
    Backbone,
    DataSettings,
    MethodSettings,
    Name,
    Names,
    Pairs,
    Seed,
    Settings,
    Several,
    Size,
    Sizes,
    Text,
    Views,
    several,
)

ONCE = "dataset"
"""Name of the job that holds the notebooks which run once per sweep."""


@dataclass(frozen=True)
class Run:
    """One notebook run of a sweep."""

    name: str
    notebook: str  # stem of its file
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()  # names of runs that must be done before

    @property
    def folder(self) -> Path:
        """Folder of its files: runs/<sweep>/<name>."""
        return run_folder(self.parameters["sweep"], self.name)

    @property
    def job(self) -> str:
        """Name of the run whose folder holds the `job.done` of this run's job.

        A job is a training with its pairs, or all notebooks that run once; it has one kernel.
        """
        if self.notebook == "03_train":
            return self.name
        return self.needs[0] if self.needs else ONCE


class TrainedNetwork(Settings):
    """A network that was trained elsewhere and replaces stage 1."""

    path: Text
    """File in safetensors format, or written by torch.save."""
    architecture: Backbone | None = None
    """None: the sweep's backbone."""
    train_size: Size | None = None
    """Side of its train crops, px; None: train_sizes."""
    classes: Names | None = None
    """In the order of its outputs; None: as the file says, else sorted."""
    weights_key: Text | None = None
    """Entry of the file; None: the plain weights."""


class SweepSettings(MethodSettings):
    """The keys of a sweep file. Only `dataset` and the sizes are required."""

    name: Name
    trained: TrainedNetwork | None = None
    """A network trained elsewhere: a file, or a table."""
    imagenet_list: Text | None = None
    """Text file of ImageNet's training images, one per line."""
    looked_at: Text | None = None
    """Text file of test images that were looked at before, one file name per line."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, and list them."""
    dataset: Text
    pairs: Pairs | None = None
    train_sizes: Sizes | None = None
    test_sizes: Sizes | None = None
    views: Views = ("center",)
    full_pairs: Pairs | None = None
    """Pairs for which `full` is run as well."""
    seeds: Several[Seed] = (0,)
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Largest difference in accuracy that does not matter."""
    primary: tuple[Size, Size] | None = None
    """The pair that decides question 2; None: see `primary_pair`."""
    run_time_limit: Annotated[int, Field(ge=1)] | None = None
    """Longest time of a run, s; None: no limit."""

    @model_validator(mode="before")
    @classmethod
    def _read_not_trained(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Set the keys that follow from `trained`."""
        trained = values.get("trained")
        if isinstance(trained, str):
            trained = {"path": trained}
        if not isinstance(trained, Mapping):
            return values
        size = trained.get("train_size")
        implied = {
            "weights": trained.get("path"),
            "backbone": trained.get("architecture"),
            "class_order": trained.get("classes"),
            "weights_key": trained.get("weights_key"),
            "train_sizes": size and (size,),
            "head_start": "file",
        }
        implied = {key: value for key, value in implied.items() if value is not None}
        for key, value in implied.items():
            if values.get(key, value) != value:
                raise ValueError(
                    f"{key} = {values[key]!r}: trained says {value!r}; give one of the two"
                )
        return {**values, **implied, "trained": trained}

    @model_validator(mode="after")
    def _sizes_given_once(self) -> Self:
        lists = [sizes for sizes in (self.train_sizes, self.test_sizes) if sizes]
        if len(lists) != (0 if self.pairs else 2):
            raise ValueError("give either pairs, or both train_sizes and test_sizes")
        if unknown := set(self.full_pairs or ()).difference(self.resolution_pairs()):
            raise ValueError(f"full_pairs: {sorted(map(list, unknown))} are no pairs of this sweep")
        if self.primary and self.primary not in self._claims():
            raise ValueError(
                f"primary = {list(self.primary)}: allowed is a pair with a smaller train "
                "resolution, whose test resolution is trained at too"
            )
        return self

    def resolution_pairs(self) -> tuple[tuple[int, int], ...]:
        """(train_size, test_size) of every pair, in the file's order."""
        return self.pairs or tuple(product(self.train_sizes or (), self.test_sizes or ()))

    def _claims(self) -> list[tuple[int, int]]:
        """Pairs (r, R) with r < R for which (R, R) is a pair as well."""
        pairs = self.resolution_pairs()
        return [(train, test) for train, test in pairs if train < test and (test, test) in pairs]

    def _mismatch(self, train_size: int, test_size: int) -> float:
        """|log| of the test resolution over the one that matches the apparent size in theory."""
        crop_pct = usual_crop_pct(self.crop_pct)
        neutral = neutral_test_size(train_size, self.crop_scale, crop_pct)
        return abs(math.log(test_size / neutral))

    def primary_pair(self) -> tuple[int, int] | None:
        """The pair that alone enters title and sentences of the report, fixed before any training.

        It is `primary`; else, of the claims with the largest R, the one nearest to its matched
        size. None if there are no claims.
        """

        def rank(pair: tuple[int, int]) -> tuple[int, float]:
            return -pair[1], self._mismatch(*pair)

        return self.primary or min(self._claims(), key=rank, default=None)

    def data_settings(self) -> DataSettings:
        """Which images the sweep uses."""
        return DataSettings(**self.model_dump(include=set(DataSettings.model_fields)))

    def runs(self) -> tuple[Run, ...]:
        """Every notebook run but the report's; a training stands before its pairs."""
        pairs = self.resolution_pairs()
        framed = self._with_crop_pcts()
        shared = self.model_dump() | {"sweep": self.name, "seed": self.seeds[0]}
        runs = [_run(notebook, shared) for notebook in ("00_state_of_the_art", "01_dataset_eda")]
        # a probe of a trained trunk is no reference for training, and a random one has none
        if self.head_start != "file" and self.pretrained:
            sizes = {BASELINE_SIZE, *(test for _, test in pairs)}
            probe = {
                "test_sizes": tuple(sorted(sizes)),
                "crop_pct_sizes": tuple(sorted({test for _, test in framed})) or None,
            }
            runs.append(_run("02_baseline", shared | probe))
        for seed, pair in product(self.seeds, pairs):
            values = shared | {"seed": seed, "train_size": pair[0], "test_size": pair[1]}
            if pair not in framed:
                values["crop_pct"] = usual_crop_pct(self.crop_pct)
            if pair in (self.full_pairs or ()):
                values["adaptations"] = tuple(dict.fromkeys((*self.adaptations, "full")))
            runs += self._training_and_pair(values)
        primary = self.primary_pair()
        if self.head_start != "file" and primary:
            train_size, size = primary
            short = {"train_size": size, "test_size": size, "equal_flops": train_size}
            for seed in self.seeds:
                runs += self._training_and_pair(shared | {"seed": seed} | short)
        return tuple({run.name: run for run in runs}.values())

    def jobs(self) -> dict[str, list[Run]]:
        """The runs of each job in their order, by the job's name, in the order of their starts.

        That is the order of the seeds, so that the first results are whole, and for each seed the
        largest train resolution first: the longest job would otherwise be the last one at work.
        """
        jobs: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs():
            jobs[run.job].append(run)

        def start(job: str) -> tuple[int, int]:
            values = jobs[job][0].parameters
            return self.seeds.index(values.get("seed", self.seeds[0])), -values.get("train_size", 0)

        return {job: jobs[job] for job in sorted(jobs, key=start)}

    def jobs_at_once(self) -> int:
        """Largest number of jobs that do not wait for one another."""
        trainings = [run for run in self.runs() if run.notebook == "03_train"]
        waiting = len([run for run in trainings if run.needs])
        return 1 + max(waiting, len(trainings) - waiting)

    def _with_crop_pcts(self) -> set[tuple[int, int]]:
        """Pairs that try a list of crop_pct.

        They are the claims (r, R), their (R, R), and each pair with r < R that is near the matched
        size in theory. The shapes of the images, which shift that size, are not known here.
        """
        if not isinstance(self.crop_pct, tuple):
            return set()
        claims = self._claims()
        near = {
            (train, test)
            for train, test in self.resolution_pairs()
            if train < test and self._mismatch(train, test) < math.log(1.25)
        }
        return {*claims, *((test, test) for _, test in claims)} | near

    def _training_and_pair(self, values: dict[str, Any]) -> list[Run]:
        """A pair and its training, which takes the recipe that the first seed chose from lists.

        The values of the pair may hold a list of `crop_pct`, or adaptations, that its training has
        not.
        """
        first_seed = self.seeds[0]
        shared = values | {
            "crop_pct": usual_crop_pct(self.crop_pct),
            "adaptations": self.adaptations,
        }
        needs: tuple[str, ...] = ()
        recipes = len(several(self.learning_rate)) * len(several(self.batch_norm))
        if shared["seed"] != first_seed and recipes > 1:
            needs = (_run("03_train", shared | {"seed": first_seed}).name,)
            shared["tuned_by"] = first_seed
        training = _run("03_train", shared, needs)
        return [training, _run("04_fixres", shared | values, (training.name,))]


def _run(notebook: str, values: Mapping[str, Any], needs: tuple[str, ...] = ()) -> Run:
    model: Any = NOTEBOOKS[notebook].settings
    settings = model(**{key: value for key, value in values.items() if key in model.model_fields})
    return Run(settings.run_name, notebook, settings.model_dump(), needs)
