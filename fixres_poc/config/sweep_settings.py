"""Settings of a sweep: the keys of its file, and the notebook runs that follow from them.

Sizes are in pixels.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
"""The job of the notebooks that run once a sweep."""


@dataclass(frozen=True)
class Run:
    """One notebook run of a sweep."""

    name: str
    notebook: str  # its stem
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()  # runs that it waits for
    job: str = ONCE  # runs of one job share a kernel; its `job.done` lies in the folder of that run

    @property
    def folder(self) -> Path:
        """Where its files lie: runs/<sweep>/<name>."""
        return run_folder(self.parameters["sweep"], self.name)


class TrainedNetwork(Settings):
    """A network that was trained elsewhere: stage 1 is read from its file, not run."""

    path: Text
    """Safetensors, or what torch.save wrote."""
    architecture: Backbone | None = None
    """None: the sweep's backbone."""
    train_size: Size | None = None
    """Side of the crop that it was trained on, px; None: train_sizes."""
    classes: Names | None = None
    """In the file's order; None: what the file says, else sorted."""
    weights_key: Text | None = None
    """Entry of the file; None: the plain weights."""


class SweepSettings(MethodSettings):
    """The keys of a sweep file. Only `dataset` and the sizes are required."""

    name: Name
    trained: TrainedNetwork | None = None
    """A network trained elsewhere: a file, or a table."""
    imagenet_list: Text | None = None
    """Text file of ImageNet's training images, one a line."""
    looked_at: Text | None = None
    """Text file of test images that were looked at before, one file name a line."""
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
    """Largest difference that does not matter."""
    primary: tuple[Size, Size] | None = None
    """The pair that decides question 2; None: see `primary_pair`."""
    run_time_limit: Annotated[int, Field(ge=1)] | None = None
    """Most seconds a run may take, or none."""

    @model_validator(mode="before")
    @classmethod
    def _read_not_trained(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What follows from `trained`: the weights, their classifier, and nothing to train."""
        given = values.get("trained")
        given = {"path": given} if isinstance(given, str) else given
        if not isinstance(given, Mapping):
            return values
        size = given.get("train_size")
        named = {
            "weights": given.get("path"),
            "backbone": given.get("architecture"),
            "class_order": given.get("classes"),
            "weights_key": given.get("weights_key"),
            "train_sizes": size and (size,),
            "head_start": "file",
        }
        own = {key: value for key, value in named.items() if value is not None}
        for key, value in own.items():
            if values.get(key, value) != value:
                raise ValueError(
                    f"{key} = {values[key]!r}: trained says {value!r}; give one of the two"
                )
        return {**values, **own, "trained": given}

    @model_validator(mode="after")
    def _sizes_given_once(self) -> Self:
        given = (self.train_sizes is not None, self.test_sizes is not None)
        if any(given) if self.pairs else not all(given):
            raise ValueError("give either pairs, or both train_sizes and test_sizes")
        pairs = self.resolution_pairs()
        if other := set(self.full_pairs or ()) - set(pairs):
            raise ValueError(f"full_pairs: {sorted(map(list, other))} are no pairs of this sweep")
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
        """Pairs r < R of which R = R is a pair too."""
        pairs = self.resolution_pairs()
        return [(train, test) for train, test in pairs if train < test and (test, test) in pairs]

    def primary_pair(self) -> tuple[int, int] | None:
        """The pair that alone enters title and sentences of the report, fixed before any training.

        As `primary` names it; else of the largest R with a smaller partner r that nearest to its
        matched size. None where there is none.
        """

        def rank(pair: tuple[int, int]) -> tuple[int, float]:
            return -pair[1], abs(math.log(pair[1] / self._neutral(pair[0])))

        return self.primary or min(self._claims(), key=rank, default=None)

    def data_settings(self) -> DataSettings:
        """Which images the sweep uses."""
        return DataSettings(**self.model_dump(include=set(DataSettings.model_fields)))

    def runs(self) -> tuple[Run, ...]:
        """Every notebook run but the report's; a training stands before its pairs."""
        pairs = self.resolution_pairs()
        sizes, tried = {BASELINE_SIZE, *(test for _, test in pairs)}, self._with_crop_pcts()
        shared = self.model_dump() | {"sweep": self.name, "seed": self.seeds[0]}
        runs = [_run(stem, shared) for stem in ("00_state_of_the_art", "01_dataset_eda")]
        # a probe of a trained trunk is no reference for training, and a random one has none
        if self.head_start != "file" and self.pretrained:
            shared["crop_pct_sizes"] = tuple(sorted({test for _, test in tried})) or None
            runs.append(_run("02_baseline", shared | {"test_sizes": tuple(sorted(sizes))}))
        usual = {"crop_pct": usual_crop_pct(self.crop_pct)}
        for seed, (train_size, test_size) in product(self.seeds, pairs):
            own = shared | {"seed": seed, "train_size": train_size, "test_size": test_size}
            if (train_size, test_size) in (self.full_pairs or ()):
                own["adaptations"] = tuple(dict.fromkeys((*self.adaptations, "full")))
            runs += self._training_and_pair(
                own | ({} if (train_size, test_size) in tried else usual)
            )
        if self.head_start != "file" and (primary := self.primary_pair()):
            train_size, size = primary
            short = {"train_size": size, "test_size": size, "equal_flops": train_size}
            for seed in self.seeds:
                runs += self._training_and_pair(shared | {"seed": seed} | short)
        return tuple({run.name: run for run in runs}.values())

    def jobs(self) -> dict[str, list[Run]]:
        """The runs of each job in their order, by the name of the folder with its `job.done`."""
        jobs: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs():
            jobs[run.job].append(run)
        return jobs

    def jobs_at_once(self) -> int:
        """Most jobs that do not wait for one another: trainings, and that of the dataset."""
        trainings = [run for run in self.runs() if run.notebook == "03_train"]
        return 1 + max(Counter(bool(run.needs) for run in trainings).values())

    def _neutral(self, train_size: int) -> float:
        """The test resolution that matches the apparent size of training in theory."""
        return neutral_test_size(train_size, self.crop_scale, usual_crop_pct(self.crop_pct))

    def _with_crop_pcts(self) -> set[tuple[int, int]]:
        """Pairs at which a list of crop_pct is tried.

        Those of r < R where R, R is a pair as well, these R, R, and each r near its matched R in
        theory: the images' own shapes, which shift that, are not known here.
        """
        if not isinstance(self.crop_pct, tuple):
            return set()
        claims = set(self._claims())
        near = {
            (train, test)
            for train, test in self.resolution_pairs()
            if train < test and abs(math.log(test / self._neutral(train))) < math.log(1.25)
        }
        return claims | {(test, test) for _, test in claims} | near

    def _training_and_pair(self, values: Mapping[str, Any]) -> list[Run]:
        """A pair, after its training, which later seeds do by the recipe that the first one chose.

        The pair may have a list of `crop_pct`, or adaptations, that its training has not.
        """
        own = {**values, "crop_pct": usual_crop_pct(self.crop_pct), "adaptations": self.adaptations}
        first = _run("03_train", {**own, "seed": self.seeds[0]})
        recipes = len(several(self.learning_rate)) * len(several(self.batch_norm))
        training = _run("03_train", own)
        if own["seed"] != self.seeds[0] and recipes > 1:
            training = _run("03_train", {**own, "tuned_by": self.seeds[0]}, (first.name,))
        training = replace(training, job=training.name)
        pair = {**training.parameters, **values}
        return [training, _run("04_fixres", pair, (training.name,), training.name)]


def _run(
    notebook: str, values: Mapping[str, Any], needs: tuple[str, ...] = (), job: str = ONCE
) -> Run:
    model: Any = NOTEBOOKS[notebook].settings
    settings = model(**{key: value for key, value in values.items() if key in model.model_fields})
    return Run(settings.run_name, notebook, settings.model_dump(), needs, job)
