"""A finished run as a network to use: read back from what the run stored, and asked about any images.

A run is a folder runs/<sweep>/<run> with a `metrics.json`: a pair, or a training, which counts as a
pair whose test size is its train resolution. The network itself is not in a pair's folder but in
that of its training, beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.analysis.cells import CANDIDATES
from fixres_poc.analysis.record import summarise
from fixres_poc.analysis.results import load_results
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import home, read_record, report_folder, run_folder
from fixres_poc.config.settings import PairSettings, View, pair_name
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.data.loading import read_image
from fixres_poc.data.sources import image_folder
from fixres_poc.method import stage1
from fixres_poc.method.evaluation import predict, probabilities, transforms_for
from fixres_poc.method.stage1 import Trained
from fixres_poc.method.stage2 import Equalised
from fixres_poc.model import checkpoint
from fixres_poc.model.backbones import check_sizes
from fixres_poc.model.device import Portions, accelerator_for, device_name
from fixres_poc.model.trunk import Tail, Trunk

EXAMPLE = "runs/demo/train96_test160_seed0"


@dataclass
class FinishedRun:
    """A run's network and adapted tails.

    Attributes:
        tails: by adaptation; without `full`, whose network is not kept.
    """

    folder: Path
    settings: PairSettings
    classes: tuple[str, ...]
    metrics: dict[str, Any]
    trained: Trained
    tails: dict[str, Tail]
    accelerator: Accelerator

    def tail(self, adaptation: str) -> Tail:
        """The tail of an adaptation.

        Raises:
            InputError: the run has none of that name.
        """
        if adaptation not in self.tails:
            raise InputError(
                f"adaptation = {adaptation!r}: {self.folder.name} holds {', '.join(self.tails)}"
            )
        return self.tails[adaptation]

    def best(self) -> str:
        """The adaptation that validation prefers in one centre crop; the simplest where it cannot tell."""
        rows = [each for each in self.metrics.get("accuracies", ()) if each["view"] == "center"]
        top1 = {each["adaptation"]: each["val_top1"] for each in rows}
        known = [name for name in CANDIDATES if name in self.tails] or list(self.tails)
        return max(known, key=lambda name: top1.get(name, 0.0))

    def probabilities(
        self,
        images: Sequence[torch.Tensor],
        adaptation: str,
        view: View = "center",
        size: int | None = None,
    ) -> torch.Tensor:
        """Probabilities (N, C) of images, framed as test images are.

        Args:
            images: N images, uint8 (3, H, W).
            size: side of the crop in px, the run's test resolution by default.
        """
        size = size or self.settings.test_size
        frame = transforms_for(self.settings, size, size, view)["val_test"]
        framed, tails = (
            torch.stack([frame(image) for image in images]),
            {adaptation: self.tail(adaptation)},
        )
        network = Trunk(self.trained.model)
        trunk = Portions(network, self.settings.batch_size, self.accelerator.device)
        return probabilities(trunk, tails, framed, self.accelerator)[adaptation].cpu()

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
        files = [
            path / name
            for path in paths
            for name in (path.is_dir() and image_folder.walk(path)[0]) or [""]
        ]
        answers: list[dict[str, Any]] = []
        for start in range(0, len(files), self.settings.batch_size):
            images, readable = [], []
            for file in files[start : start + self.settings.batch_size]:
                answers.append({"image": str(file)})
                try:
                    images.append(read_image(file))
                    readable.append(answers[-1])
                except InputError as error:
                    answers[-1]["error"] = str(error)
            if images:
                best = self.probabilities(images, adaptation, view).topk(
                    min(top, len(self.classes))
                )
                for answer, *pairs in zip(
                    readable, best.indices.tolist(), best.values.tolist(), strict=True
                ):
                    answer["classes"] = {
                        self.classes[index]: p for index, p in zip(*pairs, strict=True)
                    }
        return answers

    def accuracies(
        self,
        data: ImageDataset,
        split: str,
        adaptations: Sequence[str],
        view: View = "center",
        size: int | None = None,
    ) -> pd.DataFrame:
        """How well the run classifies a split.

        Returns:
            One row per adaptation: adaptation, view, images, top1, top1_low and top1_high (95 %
            Wilson), top5, macro_accuracy, ece.

        Raises:
            InputError: the network does not take images of `size` px.
        """
        check_sizes(self.trained.model, self.settings.backbone, [size] if size else [])
        tails = {name: self.tail(name) for name in adaptations}
        common = (self.settings, size or self.settings.test_size, self.accelerator, view)
        table = predict(self.trained.model, tails, data, split, *common).table
        rows = summarise(table.assign(split="test"))
        return rows.drop(columns=["n_val", "val_top1"]).rename(columns={"n_test": "images"})

    def data(self) -> ImageDataset:
        """The images that the run was made with.

        Raises:
            InputError: as `load_dataset`, or they are others now, so that the split may be another
                as well.
        """
        found = load_dataset(self.settings)
        if self.metrics["used"].get("data") != found.fingerprint():
            raise InputError(
                f"dataset = {self.settings.dataset!r}: the images have changed since {self.folder.name}"
            )
        return found


def load(run: str | Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        InputError: no finished training or pair there, or its files do not belong together.
    """
    folder = next(
        (each for each in (Path(run), home() / run) if (each / "metrics.json").is_file()), None
    )
    if folder is None:
        raise InputError(
            f"run = {str(Path(run).absolute())!r}: no finished run there; allowed is one such as {EXAMPLE}"
        )
    folder = folder.resolve()
    metrics = read_record(folder / "metrics.json", settings=dict, classes=list, used=dict | None)
    if not metrics:
        raise InputError(f"{folder / 'metrics.json'}: damaged; the next sweep does this run again")
    metrics.setdefault("used", {"data": metrics.get("data")})  # where an older version wrote it
    values = metrics["settings"]
    if "train_size" not in values:
        raise InputError(
            f"run = {str(run)!r}: neither a training nor a pair; allowed is one such as {EXAMPLE}"
        )
    if "test_size" not in values:
        values = values | {"test_size": values["train_size"]}
    settings = validate(PairSettings, values, f"{folder.name}/metrics.json")
    accelerator = accelerator_for(
        "fp32" if settings.precision == "fp16" and device_name() is None else settings.precision
    )
    train, known = settings.train_settings(), {"classes": metrics["classes"]}
    if metrics["used"].get("data"):
        known["images"] = metrics["used"]["data"]
    trained = stage1.finished(folder.parent / train.run_name, train, known, accelerator)
    tails = {"none": Tail(trained.model)}
    if "test_size" in metrics["settings"]:
        tails = _tails(folder, trained.model, metrics["classes"])
    else:
        tails |= trained.controls  # that is, adapted at its own size
    frozen = {name: tail.requires_grad_(False).eval() for name, tail in tails.items()}
    return FinishedRun(
        folder, settings, tuple(metrics["classes"]), metrics, trained, frozen, accelerator
    )


def _tails(folder: Path, model: nn.Module, classes: list[str]) -> dict[str, Tail]:
    tensors, stored = checkpoint.load(
        folder / "adapted.safetensors",
        {"classes": classes, "stage1": checkpoint.digest(model.state_dict())},
    )
    tails: dict[str, Tail] = {}
    for name in stored["tails"]:
        prefix = f"{name}."
        state = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        tail = tails[name] = Tail(model)
        if "classifier.slope" in state:
            tail.classifier = Equalised(cast(nn.Linear, tail.classifier), 1.0, 0.0, 0.0)
        tail.load_state_dict(state)
    return tails


def chosen(sweep: str | None) -> tuple[Path, str, View]:
    """What a sweep's validation prefers: the pair's folder, the adaptation and the view.

    Args:
        sweep: its file or its name; None for that of the newest finished pair whose sweep has a
            report.

    Raises:
        InputError: there is no report yet, or it has no pair that was run to its end.
    """
    if sweep is None:
        done = (home() / "runs").glob("*/*_test*/metrics.json")
        reported = [
            file for file in done if (report_folder(file.parents[1].name) / "results.csv").is_file()
        ]
        if not reported:
            raise InputError(
                f"no sweep in {home() / 'runs'} has a report; run `fixres-poc sweep` first, or give a run"
            )
        name = max(reported, key=lambda file: file.stat().st_mtime).parents[1].name
    else:
        name = Path(sweep).stem if sweep.endswith((".yml", ".yaml")) else sweep
    cell = load_results(name).choose()
    return (
        run_folder(name, pair_name(cell.train_size, cell.test_size, cell.seed)),
        cell.adaptation,
        cast(View, cell.view),
    )
