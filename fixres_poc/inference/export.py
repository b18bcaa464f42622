"""Export of a finished run's network as an ONNX file for other programs.

The input is images that are resized and cropped already, RGB in [0, 1]; the output is
probabilities; mean and std are inside. The metadata of the file describe it (see `description`).
"""

import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import check_output, impersonal, named_paths, read_record
from fixres_poc.config.geometry import resized_side, usual_crop_pct
from fixres_poc.config.settings import EQUAL_FLOPS, MeanStd
from fixres_poc.data.dataset import load_dataset
from fixres_poc.data.loading import read_image
from fixres_poc.data.transforms import PLAIN
from fixres_poc.inference.finished_run import FinishedRun
from fixres_poc.method.evaluation import transforms_for
from fixres_poc.model.backbones import interpolation, licence, mean_std
from fixres_poc.model.trunk import Tail, merge_tail

CHECKED = 16
SAME_NETWORK = 1e-4
# a run stores 4 decimals, and a GPU's convolutions are less exact
SAME_RUN = {"fp32": 0.005, "bf16": 0.05, "fp16": 0.05}


class Network(nn.Module):
    """Images (N, 3, K, K), RGB in [0, 1], to probabilities (N, C)."""

    def __init__(self, model: nn.Module, tail: Tail, mean_std: MeanStd) -> None:
        """Copy a network with an adapted tail, and put the normalisation in front of it."""
        super().__init__()
        self.model = merge_tail(model, tail)
        mean, std = torch.tensor(mean_std).reshape(2, 3, 1, 1)
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)
        self.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities."""
        return cast(torch.Tensor, self.model((images - self.mean) / self.std)).softmax(dim=1)


class Exported(NamedTuple):
    """An exported file, and its agreement with the run.

    Attributes:
        images: number of test images in the check.
        from_network: largest difference of a probability from the run's network.
        from_run: largest difference of the first class's probability from the run's stored one.
    """

    file: Path
    images: int
    from_network: float
    from_run: float


def export(run: FinishedRun, adaptation: str, output: Path) -> Exported:
    """Write the file, and keep it only if it agrees with the run on test images.

    Args:
        output: the file, replaced if it exists; a network above 2 GB has a second file beside it.

    Raises:
        InputError: a package is missing, the suffix or folder is wrong, or the run has no
            predictions to compare with.
        RuntimeError: the file's answers differ from the run's.
    """
    check_output(output, ".onnx")
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise InputError(f"export needs {package}; install fixres_poc[export]")
    network = Network(run.model, run.tail(adaptation), _mean_std(run))
    stored, images = _examples(run, adaptation)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        file = Path(folder) / output.name
        _write(network, images, file, description(run, adaptation))
        from_network, from_run = _compare(file, network, images, stored)
        same = from_network <= SAME_NETWORK and from_run <= SAME_RUN[run.settings.precision]
        if not same:  # also if a difference is NaN
            raise RuntimeError(
                f"the exported network differs from the run's by {from_network:.2g}, and from "
                f"what the run stored by {from_run:.2g}; nothing was kept"
            )
        for part in sorted(Path(folder).iterdir(), reverse=True):
            os.replace(part, output.with_name(part.name))
    return Exported(output, len(images), from_network, from_run)


def _mean_std(run: FinishedRun) -> MeanStd:
    return run.settings.mean_std or mean_std(run.settings.backbone)


def _examples(run: FinishedRun, adaptation: str) -> tuple[pd.DataFrame, torch.Tensor]:
    """Stored predictions, evenly spread over the run's test images, and these images."""
    predictions = run.folder / "predictions.parquet"
    if not predictions.is_file():
        raise InputError(
            f"run = {run.folder.name!r}: a training has no predictions to check with; give a pair"
        )
    filters = [
        ("split", "==", "test"),
        ("view", "==", "center"),
        ("adaptation", "in", [adaptation, EQUAL_FLOPS + adaptation]),
        ("crop_pct", "==", run.settings.crop_pct),
    ]
    rows = pd.read_parquet(predictions, filters=filters)
    rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, CHECKED).round().astype(int))]
    plain = run.settings.model_copy(update={"mean_std": PLAIN})
    size = run.settings.test_size
    frame = transforms_for(plain, size, size)["val_test"]
    root = load_dataset(run.settings).root
    return rows, torch.stack([frame(read_image(root / name)) for name in rows["image"]])


def _compare(
    file: Path, network: Network, images: torch.Tensor, stored: pd.DataFrame
) -> tuple[float, float]:
    """`from_network` and `from_run` of `Exported`, on a batch of 15 images and on a single one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    batches = torch.split(images, CHECKED - 1)
    answers = [session.run(None, {"images": batch.numpy()})[0] for batch in batches]
    exported = np.concatenate(answers)
    from_network = np.abs(exported - network(images).numpy()).max()
    of_first = exported[np.arange(len(stored)), stored["top1"].to_numpy()]
    first_and_highest = np.stack([of_first, exported.max(axis=1)])
    from_run = np.abs(first_and_highest - stored["probability"].to_numpy()).max()
    return float(from_network), float(from_run)


def description(run: FinishedRun, adaptation: str) -> dict[str, str]:
    """The file's metadata: how to use it, its accuracy, and its origin.

    Values are text; those of preprocessing, classes, accuracy and provenance are JSON.
    """
    settings, size = run.settings, run.settings.test_size
    crop_pct = usual_crop_pct(settings.crop_pct)
    side = "short side" if settings.resize == "short_side" else "height"
    preprocessing = {
        "decode": "RGB, 8 bits, upright by EXIF orientation, transparency dropped",
        "resize": {
            side: resized_side(size, crop_pct),
            "interpolation": interpolation(settings.backbone),
            "antialias": True,
        },
        "crop": {"center": [size, size], "outside": "black"},
        "crop_pct": crop_pct,
        "inside_the_network": dict(zip(("mean", "std"), _mean_std(run), strict=True)),
    }
    arm = {"adaptation": adaptation, "view": "center", "crop_pct": crop_pct}
    accuracies = run.metrics.get("accuracies", ())
    accuracy = next((row for row in accuracies if arm.items() <= row.items()), None)
    provenance = {
        "run": f"{run.folder.parent.name}/{run.folder.name}",
        "adaptation": adaptation,
        "settings": settings.model_dump(mode="json", exclude={"dataset", "weights", "extra_test"}),
        "dataset": Path(settings.dataset).name,
        "images": run.metrics["used"].get("data"),
        "made_with": run.metrics["versions"],
    }
    weights = settings.weights and Path(settings.weights).name
    terms = licence(settings.backbone, weights) if settings.pretrained else None
    unknown = "none known that restricts the weights; the terms of the images hold as well"
    pixels = "RGB, values in [0, 1], resized and cropped"
    described = {
        "input": f"images: float32 (N, 3, {size}, {size}), {pixels}",
        "output": f"probabilities: float32 (N, {len(run.classes)})",
        "preprocessing": json.dumps(preprocessing),
        "classes": json.dumps(run.classes),
        "accuracy": json.dumps(accuracy),
        "licence": terms or unknown,
        "leakage": _leakage(run),
        "provenance": json.dumps(provenance),
    }
    return cast(dict[str, str], impersonal(described, *named_paths(settings.model_dump())))


def _leakage(run: FinishedRun) -> str:
    """The verdicts of the sweep's leakage check and of the backbone's zero-shot check."""
    dataset, baseline = (
        read_record(run.folder.parent / name / "metrics.json") for name in ("dataset", "baseline")
    )
    verdict = (dataset.get("leakage") or {}).get("verdict", "not checked")
    return f"{verdict} {baseline.get('zero_shot') or ''}".replace("**", "").strip()


def _write(network: Network, images: torch.Tensor, file: Path, described: dict[str, str]) -> None:
    program: Any = torch.onnx.export(
        network,
        (images[:1].expand(2, -1, -1, -1),),  # a batch of 1 would fix the batch size
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "batch"},),
    )
    for node in program.model.graph:
        node.metadata_props.clear()  # local paths of this machine
    program.model.metadata_props.update(described)
    program.save(file)
