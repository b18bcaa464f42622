"""A finished run as a network to use: loaded from its files, and applied to images.

A run is a folder runs/<sweep>/<run> with a `metrics.json`: a pair, or a training, which counts as a
pair whose test size is its train resolution. The trunk of a pair lies in the folder of its training
beside it.
"""

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
from accelerate import Accelerator
from torch import nn

from fixres_poc.analysis.cells import CANDIDATES, cell_of
from fixres_poc.analysis.record import summarise
from fixres_poc.analysis.results import load_results
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import CHECKPOINT, home, read_record, report_folder, run_folder
from fixres_poc.config.geometry import usual_crop_pct
from fixres_poc.config.settings import CONTROL, EQUAL_FLOPS, PairSettings, View
from fixres_poc.config.validation import validate
from fixres_poc.data import image_folder
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.data.loading import read_image
from fixres_poc.method import stage1
from fixres_poc.method.adaptations import TAILS
from fixres_poc.method.equalise import Equalised
from fixres_poc.method.evaluation import predict, probabilities, transforms_for
from fixres_poc.method.linear_probe import lasting
from fixres_poc.method.stage2 import tail_for
from fixres_poc.model import checkpoint
from fixres_poc.model.backbones import check_sizes
from fixres_poc.model.device import accelerator_for, device_name
from fixres_poc.model.trunk import Tail, Trunk
from fixres_poc.report import sentences

EXAMPLE = "runs/demo/train64_test80_seed0"


def preferred(accuracies: pd.DataFrame, adaptations: Collection[str]) -> tuple[str, float]:
    """The adaptation and crop_pct that are best on validation in one centre crop.

    Among equals it is the simplest, in the framing that comes first in the table; never `full`.

    Args:
        accuracies: of `record.summarise`.

    Raises:
        InputError: none of these adaptations may be chosen.
    """
    rows = accuracies[accuracies["view"] == "center"].to_dict("records")
    names = [name for name in CANDIDATES if name in adaptations]
    order = [row for name in names for row in rows if row["adaptation"] == name]
    if not order:
        raise InputError(f"adaptations = {sorted(adaptations)}: allowed is a list with none in it")
    best = max(order, key=operator.itemgetter("val_top1"))
    return best["adaptation"], best["crop_pct"]


@dataclass
class FinishedRun:
    """A run's network and adapted tails, in one framing.

    Attributes:
        settings: with the single `crop_pct` of all answers.
        tails: by adaptation; without `full`, whose network is not stored.
    """

    folder: Path
    settings: PairSettings
    classes: tuple[str, ...]
    metrics: dict[str, Any]
    model: nn.Module
    tails: dict[str, Tail]
    accelerator: Accelerator

    def tail(self, adaptation: str) -> Tail:
        """The tail of an adaptation.

        Raises:
            InputError: the run has none of that name.
        """
        if adaptation not in self.tails:
            names = ", ".join(self.tails)
            raise InputError(f"adaptation = {adaptation!r}: {self.folder.name} holds {names}")
        return self.tails[adaptation]

    def framed(self, crop_pct: float) -> "FinishedRun":
        """The run in another framing, with the tails that were adapted in it."""
        if crop_pct == self.settings.crop_pct:
            return self
        tails = _tails(self.folder, self.model, list(self.classes), crop_pct)
        return replace(self, settings=self.settings.framed(crop_pct), tails=tails)

    def best(self, adaptation: str | None = None) -> tuple["FinishedRun", str]:
        """The run in the framing, and the adaptation, that its validation prefers.

        Without accuracies it is the simplest adaptation in the present framing.

        Args:
            adaptation: choose only the framing, for this adaptation.

        Raises:
            InputError: the run has none of that name.
        """
        names = [name for name in CANDIDATES if name in self.tails]
        if adaptation is not None:
            self.tail(adaptation)
            names = [adaptation.removeprefix(CONTROL)]
        accuracies = pd.DataFrame(self.metrics.get("accuracies", ()))
        if accuracies.empty:
            return self, adaptation or names[0]
        name, crop_pct = preferred(accuracies, names)
        return self.framed(crop_pct), adaptation or name

    def classify(
        self, paths: Sequence[Path], adaptation: str, view: View = "center", top: int = 5
    ) -> list[dict[str, Any]]:
        """The most probable classes of images.

        Args:
            paths: images, or folders with images at any depth.

        Returns:
            A dict per image: `image`, and `classes` (name to probability, the highest first) or
            `error`, one line, if it cannot be read.
        """
        size = self.settings.test_size
        frame = transforms_for(self.settings, size, size, view)["val_test"]
        tails, trunk = {adaptation: self.tail(adaptation)}, Trunk(self.model)
        answers = list[dict[str, Any]]()
        for path in paths:
            answers += _images_of(path)
        for answer in answers:
            if "error" in answer:
                continue
            try:
                image = frame(read_image(Path(answer["image"])))
            except InputError as error:
                answer["error"] = str(error)
                continue
            batch = image[None].to(self.accelerator.device)
            (row,) = probabilities(trunk, tails, batch, self.accelerator)[adaptation]
            best = row.topk(min(top, len(self.classes)))
            names = [self.classes[index] for index in best.indices]
            answer["classes"] = dict(zip(names, best.values.tolist(), strict=True))
        return answers

    def accuracies(
        self, data: ImageDataset, split: str, view: View = "center", size: int | None = None
    ) -> pd.DataFrame:
        """Accuracies of the run's tails on a split, in the present framing.

        Returns:
            One row per adaptation: adaptation, view, crop_pct, images, top1, top1_low and top1_high
            (95 % Wilson), top5, macro_accuracy, ece.

        Raises:
            InputError: the network does not take images of `size` px.
        """
        check_sizes(self.model, self.settings.backbone, [size] if size else [])
        common = (self.settings, size or self.settings.test_size, self.accelerator, view)
        table = predict(self.model, self.tails, data, split, *common).table
        rows = summarise(table.assign(split="test"))
        return rows.drop(columns=["n_val", "val_top1"]).rename(columns={"n_test": "images"})

    def data(self) -> ImageDataset:
        """The images of the run.

        Raises:
            InputError: the images cannot be read, or have changed, and with them the split.
        """
        dataset = load_dataset(self.settings, self.settings.sweep)
        if self.metrics["used"].get("data") != dataset.fingerprint():
            raise InputError(
                f"dataset = {self.settings.dataset!r}: the images have changed since "
                f"{self.folder.name}"
            )
        return dataset


def load(run: str | Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        InputError: no finished training or pair there, or its files do not match.
    """
    folder = Path(run).resolve()
    metrics = read_record(folder / "metrics.json", settings=dict, classes=list, used=dict)
    stored = metrics.get("settings", {})
    for row in metrics.get("accuracies", ()):
        row["adaptation"] = row["adaptation"].removeprefix(EQUAL_FLOPS)
    if "train_size" not in stored:
        raise InputError(
            f"run = {str(folder)!r}: no finished training or pair there, or its metrics.json is "
            f"damaged; allowed is one such as {EXAMPLE}"
        )
    values = {"test_size": stored["train_size"], **stored}
    settings = validate(PairSettings, values, f"{folder.name}/metrics.json")
    crop_pct = usual_crop_pct(settings.crop_pct)
    settings = settings.framed(crop_pct)
    without_gpu = settings.precision == "fp16" and device_name() is None
    accelerator = accelerator_for("fp32" if without_gpu else settings.precision)
    train = settings.train_settings()
    classes = metrics["classes"]
    record = {
        "classes": classes,
        "images": metrics["used"].get("data"),
        # without the library and settings that it had not yet, so that any version is accepted
        "settings": {key: value for key, value in lasting(train).items() if key in stored},
    }
    file = folder.parent / train.run_name / CHECKPOINT
    trained = stage1.restore(_present(file, file.parent), record, train, accelerator)
    if "test_size" in stored:
        tails = _tails(folder, trained.model, classes, crop_pct)
    else:  # a training: its controls are adapted at its own size
        tails = {"none": Tail(trained.model).requires_grad_(False).eval(), **trained.controls}
    return FinishedRun(folder, settings, tuple(classes), metrics, trained.model, tails, accelerator)


def _images_of(path: Path) -> list[dict[str, Any]]:
    """`image` of each image in a folder, or of the file; `error` of a folder without images."""
    if not path.is_dir():
        return [{"image": str(path)}]
    error = f"{path}: a folder without images"
    try:
        names, _ = image_folder.walk(path)
    except InputError as problem:
        names, error = [], str(problem)
    if not names:
        return [{"image": str(path), "error": error}]
    return [{"image": str(path / name)} for name in names]


def _present(file: Path, run: Path) -> Path:
    """The file of a run; an error that says how to get it back if it is missing."""
    if not file.is_file():
        raise InputError(f"{file}: missing; delete {run}, and start its sweep again")
    return file


def _tails(folder: Path, model: nn.Module, classes: list[str], crop_pct: float) -> dict[str, Tail]:
    record = {"classes": classes, "stage1": checkpoint.digest(model.state_dict())}
    file = _present(folder / TAILS.format(crop_pct), folder)
    tensors, stored = checkpoint.load(file, record)
    tails = {name: tail_for(model, name) for name in stored["tails"]}
    for name, tail in tails.items():
        if name == "equalised":
            tail.classifier = Equalised(cast(nn.Linear, tail.classifier), 1.0, 0.0, 0.0)
    nn.ModuleDict(tails).requires_grad_(False).eval().load_state_dict(tensors)
    return tails


def load_best(
    run: Path | None, sweep: str | None, adaptation: str | None = None
) -> tuple[FinishedRun, str, View]:
    """The run, adaptation and view that validation prefers, or that a sweep's report recommends.

    If the report recommends nothing or the probe, the trained cell is used that is best on
    validation.

    Args:
        run: its folder; None for a run of the sweep, whose framing is chosen over all seeds.
        sweep: its file or name; None for the sweep of the newest finished pair that has a report.
        adaptation: replaces the preferred one.

    Raises:
        InputError: there is no report yet, or it has no finished pair.
    """
    if run is not None:
        return *load(run).best(adaptation), "center"
    name = Path(sweep).name.removesuffix(".yml").removesuffix(".yaml") if sweep else _newest()
    results = load_results(name)
    use = sentences.read(name)["answers"][4]["use"]
    # no run stores the network of a recommended probe
    best = cell_of(use) if use and use["train_size"] else results.choose()
    assert best.train_size is not None
    seed = results.row(best)["seed"]
    pair = PairSettings.model_construct(
        train_size=best.train_size, test_size=best.test_size, seed=seed
    )
    network = load(run_folder(name, pair.run_name))
    adaptation = adaptation or best.adaptation
    network.tail(adaptation)
    cell = results.at_chosen_crop(best._replace(adaptation=adaptation))
    return network.framed(cell.crop_pct), adaptation, cast(View, best.view)


def _newest() -> str:
    runs = home() / "runs"
    pairs = [
        file
        for file in runs.glob("*/*_test*/metrics.json")
        if (report_folder(file.parents[1].name) / "results.csv").is_file()
    ]
    if not pairs:
        raise InputError(
            f"no sweep in {runs} has a report; run `fixres-poc sweep` first, or give a run"
        )
    return max(pairs, key=lambda file: file.stat().st_mtime).parents[1].name
