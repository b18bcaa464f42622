"""A finished run as a network to use: read back from what the run stored, and asked about images.

A run is a folder runs/<sweep>/<run> with a `metrics.json`: a pair, or a training, which counts as a
pair whose test size is its train resolution. The network itself is not in a pair's folder but in
that of its training, beside it.
"""

import operator
from collections.abc import Sequence
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
from fixres_poc.config.settings import CONTROL, PairSettings, View, pair_name
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


def preferred(accuracies: pd.DataFrame, adaptations: Sequence[str]) -> tuple[str, float]:
    """The adaptation and crop_pct that are best on validation in one centre crop.

    Of equals it is the first adaptation, in the framing that comes first in the table.

    Args:
        accuracies: of `record.summarise`.
    """
    rows = accuracies[accuracies["view"] == "center"].to_dict("records")
    order = [row for name in adaptations for row in rows if row["adaptation"] == name]
    best = max(order, key=operator.itemgetter("val_top1"))
    return best["adaptation"], best["crop_pct"]


@dataclass
class FinishedRun:
    """A run's network and adapted tails, in one framing.

    Attributes:
        settings: with the one `crop_pct` that all answers are framed with.
        tails: by adaptation; without `full`, whose network is not kept.
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
            held = ", ".join(self.tails)
            raise InputError(f"adaptation = {adaptation!r}: {self.folder.name} holds {held}")
        return self.tails[adaptation]

    def framed(self, crop_pct: float) -> "FinishedRun":
        """The same run in another framing, with the tails that were adapted in it."""
        if crop_pct == self.settings.crop_pct:
            return self
        tails = _tails(self.folder, self.model, list(self.classes), crop_pct)
        return replace(self, settings=self.settings.framed(crop_pct), tails=tails)

    def best(self, adaptation: str | None = None) -> tuple["FinishedRun", str]:
        """The run in the framing, and the adaptation, that its validation prefers.

        Where that cannot tell, it is the simplest adaptation, as framed here.

        Args:
            adaptation: prefers a framing for this one.

        Raises:
            InputError: the run has none of that name.
        """
        known = [name for name in CANDIDATES if name in self.tails]
        if adaptation is not None:
            self.tail(adaptation)
            known = [adaptation.removeprefix(CONTROL)]
        measured = pd.DataFrame(self.metrics.get("accuracies", ()))
        if measured.empty:
            return self, adaptation or known[0]
        name, crop_pct = preferred(measured, known)
        return self.framed(crop_pct), adaptation or name

    def classify(
        self, paths: Sequence[Path], adaptation: str, view: View = "center", top: int = 5
    ) -> list[dict[str, Any]]:
        """The likeliest classes of images.

        Args:
            paths: images, or folders whose images are meant, however deep.

        Returns:
            `image` and `classes`, name to probability from the highest, an image; `error`, one
            line, where it cannot be read.
        """
        size = self.settings.test_size
        frame = transforms_for(self.settings, size, size, view)["val_test"]
        tails, trunk = {adaptation: self.tail(adaptation)}, Trunk(self.model)
        answers = list[dict[str, Any]]()
        for path in paths:
            names = image_folder.walk(path)[0] if path.is_dir() else []
            # of a folder without images the folder itself, which cannot be read
            answers += [{"image": str(path / name)} for name in names or [""]]
        for answer in answers:
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
        """How well the run, as framed here, classifies a split with each of its tails.

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
        """The images that the run was made with.

        Raises:
            InputError: the images cannot be read, or they have changed, and the split with them.
        """
        found = load_dataset(self.settings, self.settings.sweep)
        if self.metrics["used"].get("data") != found.fingerprint():
            where = f"dataset = {self.settings.dataset!r}"
            raise InputError(f"{where}: the images have changed since {self.folder.name}")
        return found


def load(run: str | Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        InputError: no finished training or pair there, or its files do not belong together.
    """
    folder = Path(run).resolve()
    metrics = read_record(folder / "metrics.json", settings=dict, classes=list, used=dict)
    wanted = metrics.get("settings", {})
    if "train_size" not in wanted:
        what = "no finished training or pair there, or its metrics.json is damaged"
        raise InputError(f"run = {str(folder)!r}: {what}; allowed is one such as {EXAMPLE}")
    values = {"test_size": wanted["train_size"], **wanted}
    settings = validate(PairSettings, values, f"{folder.name}/metrics.json")
    settings = settings.framed(usual_crop_pct(settings.crop_pct))
    without_gpu = settings.precision == "fp16" and device_name() is None
    accelerator = accelerator_for("fp32" if without_gpu else settings.precision)
    train = settings.train_settings()
    record = {"classes": metrics["classes"], "images": metrics["used"].get("data")}
    record["settings"] = lasting(train)  # whichever version of the library made it
    file = folder.parent / train.run_name / CHECKPOINT
    trained = stage1.restore(file, record, train, accelerator)
    # adapted at its own size
    tails = {"none": Tail(trained.model).requires_grad_(False).eval(), **trained.controls}
    if "test_size" in wanted:
        tails = _tails(folder, trained.model, metrics["classes"], usual_crop_pct(settings.crop_pct))
    classes = tuple(metrics["classes"])
    return FinishedRun(folder, settings, classes, metrics, trained.model, tails, accelerator)


def _tails(folder: Path, model: nn.Module, classes: list[str], crop_pct: float) -> dict[str, Tail]:
    record = {"classes": classes, "stage1": checkpoint.digest(model.state_dict())}
    tensors, stored = checkpoint.load(folder / TAILS.format(crop_pct), record)
    tails = {name: tail_for(model, name) for name in stored["tails"]}
    for name, tail in tails.items():
        if name == "equalised":
            tail.classifier = Equalised(cast(nn.Linear, tail.classifier), 1.0, 0.0, 0.0)
    nn.ModuleDict(tails).requires_grad_(False).eval().load_state_dict(tensors)
    return tails


def load_best(
    run: Path | None, sweep: str | None, adaptation: str | None = None
) -> tuple[FinishedRun, str, View]:
    """A run with what validation prefers; of a sweep what its report says to use.

    Where the report recommends nothing, or the probe, it is the trained cell that is the best on
    validation.

    Args:
        run: its folder; None for a sweep's, whose framing is chosen over all seeds.
        adaptation: takes the place of the preferred one.
        sweep: its file or its name; None for that of the newest finished pair whose sweep has a
            report.

    Raises:
        InputError: there is no report yet, or it has no pair that was run to its end.
    """
    if run is not None:
        return *load(run).best(adaptation), "center"
    name = Path(sweep).name.removesuffix(".yml").removesuffix(".yaml") if sweep else _newest()
    results = load_results(name)
    use = sentences.read(name)["answers"][4]["use"]
    # a recommended probe is no network that a run has kept
    best = cell_of(use) if use and use["train_size"] else results.choose()
    assert best.train_size is not None
    seed = results.row(best)["seed"]
    network = load(run_folder(name, pair_name(best.train_size, best.test_size, seed)))
    adaptation = adaptation or best.adaptation
    network.tail(adaptation)
    own = results.at_chosen_crop(best._replace(adaptation=adaptation))
    return network.framed(own.crop_pct), adaptation, cast(View, best.view)


def _newest() -> str:
    runs = home() / "runs"
    done = sorted(runs.glob("*/*_test*/metrics.json"), key=lambda file: file.stat().st_mtime)
    names = [file.parents[1].name for file in done]
    reported = [name for name in names if (report_folder(name) / "results.csv").is_file()]
    if not reported:
        advice = "run `fixres-poc sweep` first, or give a run"
        raise InputError(f"no sweep in {runs} has a report; {advice}")
    return reported[-1]
