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
    MOST_EPOCHS,
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

VALIDATION = 0.27
"""Validation images per train image, as plain folders are split."""
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
    equal_compute: bool = False
    """Epochs in proportion to 1 / size^2, of the largest size's."""
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
        if (runs := len(pairs) * len(self.seeds)) > 10_000:
            raise ValueError(f"{runs} pairs times seeds: at most 10000 are allowed")
        smallest = min(pairs)[0]
        if self.equal_compute and self._epochs(smallest) > MOST_EPOCHS:
            raise ValueError(f"equal_compute: more than {MOST_EPOCHS} epochs at {smallest} px")
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
        for seed, (train_size, test_size) in product(self.seeds, pairs):
            own = shared | {"seed": seed, "train_size": train_size, "test_size": test_size}
            training = self._training(own | self._of_train_size(train_size))
            pair = own | training.parameters
            if (train_size, test_size) in tried:
                pair["crop_pct"] = self.crop_pct
            if (train_size, test_size) in (self.full_pairs or ()):
                pair["adaptations"] = tuple(dict.fromkeys((*self.adaptations, "full")))
            runs += [training, _run("04_fixres", pair, (training.name,), training.name)]
        if self.head_start != "file" and (primary := self.primary_pair()):
            for seed in self.seeds:
                runs += self._equal_flops(shared | {"seed": seed}, *primary)
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

    def _of_train_size(self, train_size: int) -> dict[str, Any]:
        """What runs of a train resolution share: epochs, and the usual framing."""
        own: dict[str, Any] = {"crop_pct": usual_crop_pct(self.crop_pct)}
        if self.equal_compute:
            own["epochs"] = self._epochs(train_size)
        return own

    def _equal_flops(self, shared: Mapping[str, Any], train_size: int, size: int) -> list[Run]:
        """Train = test at `size`, schedule cut to what training at `train_size` and adapting cost.

        None where that is no less than `size` costs.
        An epoch of stage 1 costs 3 forward passes of the train part and one of validation, one of
        stage 2 one at `size`.
        """
        epochs = self._of_train_size(train_size).get("epochs", self.epochs)
        share, epoch = (train_size / size) ** 2, 3 + VALIDATION
        probe = (1 + VALIDATION) * (self.head_start == "probe")
        budget = share * (probe + epochs * epoch) + max(several(self.adapt_epochs)) - probe
        own = {**shared, **self._of_train_size(size), "train_size": size, "test_size": size}
        cut = max(1, int(budget / epoch))
        if cut >= own["epochs"]:
            return []  # training smaller is not cheaper
        own |= {"epochs": cut, "equal_flops": True}
        training = self._training(own)
        pair = own | training.parameters | {"crop_pct": self.crop_pct}
        return [training, _run("04_fixres", pair, (training.name,), training.name)]

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

    def _epochs(self, train_size: int) -> int:
        """Epochs that cost at this size what `epochs` cost at the largest."""
        largest = max(self.resolution_pairs())[0]
        return round(self.epochs * (largest / train_size) ** 2)

    def _training(self, values: Mapping[str, Any]) -> Run:
        """A training; later seeds wait for the recipe that the first one chooses from lists."""
        first = _run("03_train", {**values, "seed": self.seeds[0]})
        recipes = len(several(self.learning_rate)) * len(several(self.batch_norm))
        if values["seed"] == self.seeds[0] or recipes == 1:
            own = _run("03_train", values)
        else:
            own = _run("03_train", {**values, "tuned_by": self.seeds[0]}, (first.name,))
        return replace(own, job=own.name)


def _run(
    notebook: str, values: Mapping[str, Any], needs: tuple[str, ...] = (), job: str = ONCE
) -> Run:
    model: Any = NOTEBOOKS[notebook].settings
    settings = model(**{key: value for key, value in values.items() if key in model.model_fields})
    return Run(settings.run_name, notebook, settings.model_dump(), needs, job)
