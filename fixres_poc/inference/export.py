"""A finished run's network as one ONNX file for other programs.

It takes images that are resized and cropped already, RGB in [0, 1], and gives probabilities; mean
and std are inside. ONNX's metadata describe the file (see `description`).
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import check_output, impersonal, named_paths, read_record
from fixres_poc.config.provenance import environment, library_hash
from fixres_poc.config.settings import Triple
from fixres_poc.data.dataset import load_dataset
from fixres_poc.data.loading import read_image
from fixres_poc.data.transforms import PLAIN, get_transforms, resized_side
from fixres_poc.inference.finished_run import FinishedRun
from fixres_poc.model.backbones import interpolation, licence, mean_std
from fixres_poc.model.trunk import Tail, merge_tail

CHECKED = 16
SAME_NETWORK = 1e-4
# what stands in the run is rounded to 4 decimals, and a GPU's convolutions are less exact
SAME_RUN = {"fp32": 0.005}
SAME_RUN_REDUCED = 0.05


class Network(nn.Module):
    """Images (N, 3, K, K), RGB in [0, 1], to probabilities (N, C)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, tail: Tail, mean_std: tuple[Triple, Triple]) -> None:
        """Copy a network, with an adapted tail put into its place and with its normalisation in front."""
        super().__init__()
        self.model = merge_tail(model, tail)
        for name, values in zip(("mean", "std"), mean_std, strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities."""
        return cast(torch.Tensor, self.model((images - self.mean) / self.std)).softmax(dim=1)


class Exported(NamedTuple):
    """An exported file, and how well it agrees with the run.

    Attributes:
        images: number of test images it was checked on.
        from_network: largest difference of a probability from the run's network.
        from_run: largest difference of the first class's probability from what the run had stored.
    """

    file: Path
    images: int
    from_network: float
    from_run: float


def export(run: FinishedRun, adaptation: str, output: Path) -> Exported:
    """Write the file, and check it on test images of the run; one that answers differently is not left behind.

    Args:
        output: the file, replaced if it is there; ONNX keeps networks above 2 GB in a second file
            beside it.

    Raises:
        InputError: packages are missing, a wrong suffix or folder, or no predictions to check it
            with.
        RuntimeError: the file does not answer as the run did.
    """
    _refuse(output)
    network = Network(run.trained.model, run.tail(adaptation), _mean_std(run))
    stored, images = _examples(run, adaptation)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        network, (images[:1].expand(2, -1, -1, -1),), dynamic_shapes=({0: batch},)
    )
    # where in this machine's files each operation comes from is nobody's concern
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        file = Path(folder) / output.name
        _write(program, file, description(run, adaptation))
        differences = _compare(_reader(file), network, images, stored)
        allowed = (SAME_NETWORK, SAME_RUN.get(run.settings.precision, SAME_RUN_REDUCED))
        if not all(found <= most for found, most in zip(differences, allowed, strict=True)):
            raise RuntimeError(
                "the exported network differs from the run's by {:.2g}, and from what the run stored by {:.2g}; "
                "allowed are {:g} and {:g}; nothing was kept".format(*differences, *allowed)
            )
        for part in sorted(Path(folder).iterdir(), reverse=True):
            os.replace(part, output.with_name(part.name))
    return Exported(output, len(images), *differences)


def _mean_std(run: FinishedRun) -> tuple[Triple, Triple]:
    return run.settings.mean_std or mean_std(run.settings.backbone)


def _refuse(output: Path) -> None:
    check_output(output, ".onnx")
    lacking = [
        name
        for name in ("onnx", "onnxruntime", "onnxscript")
        if importlib.util.find_spec(name) is None
    ]
    if lacking:
        raise InputError(f"export needs {', '.join(lacking)}; install fixres_poc[export]")


def _examples(run: FinishedRun, adaptation: str) -> tuple[pd.DataFrame, torch.Tensor]:
    """Predictions that the run stored, evenly spread over its test images, and these as they enter the file."""
    if not (run.folder / "predictions.parquet").is_file():
        raise InputError(
            f"run = {run.folder.name!r}: a training has no predictions to check with; give a pair"
        )
    table = pd.read_parquet(run.folder / "predictions.parquet")
    rows = table[
        (table["split"] == "test")
        & (table["view"] == "center")
        & (table["adaptation"] == adaptation)
    ]
    rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, CHECKED).round().astype(int))]
    settings, root = run.settings, load_dataset(run.settings).root
    how: dict[str, Any] = {
        "resize": settings.resize,
        "interpolation": interpolation(settings.backbone),
    }
    frame = get_transforms(settings.test_size, settings.test_size, mean_std=PLAIN, **how)[
        "val_test"
    ]
    return rows, torch.stack([frame(read_image(root / name)) for name in rows["image"]])


def _compare(
    answer: Callable[[torch.Tensor], np.ndarray],
    network: Network,
    images: torch.Tensor,
    stored: pd.DataFrame,
) -> tuple[float, float]:
    """Largest differences from the network and from the run, as in `Exported`; for a batch and for a single image."""
    with torch.inference_mode():
        expected = network(images).numpy()
    found = answer(images)
    from_network = max(abs(found - expected).max(), abs(answer(images[:1]) - expected[:1]).max())
    of_first = found[np.arange(len(stored)), stored["top1"].to_numpy()]
    surpassed_by = (found.max(axis=1) - of_first).max()  # 0 where the first class is the run's
    return float(from_network), float(
        max(abs(of_first - stored["probability"].to_numpy()).max(), surpassed_by)
    )


def description(run: FinishedRun, adaptation: str) -> dict[str, str]:
    """What the file says of itself: input, preprocessing, classes, accuracy, licence, leakage, where it comes from.

    Values are text; those of preprocessing, classes, accuracy and provenance are JSON.
    """
    settings, size = run.settings, run.settings.test_size
    side = "short side" if settings.resize == "short_side" else "height"
    preprocessing = {
        "decode": "RGB, 8 bits, upright by EXIF orientation, transparency dropped",
        "resize": {
            side: resized_side(size),
            "interpolation": interpolation(settings.backbone),
            "antialias": True,
        },
        "crop": {"center": [size, size], "outside": "black"},
        "channel_order": "RGB",
        "value_range": [0.0, 1.0],
        "inside_the_network": dict(zip(("mean", "std"), _mean_std(run), strict=True)),
    }
    rows = [each for each in run.metrics.get("accuracies", ()) if each["view"] == "center"]
    provenance = {
        "run": f"{run.folder.parent.name}/{run.folder.name}",
        "adaptation": adaptation,
        "settings": settings.model_dump(mode="json", exclude={"dataset", "weights", "extra_test"}),
        "dataset": Path(settings.dataset).name,
        "images": run.metrics["used"].get("data"),
        "made_with": run.metrics["versions"],
        "exported_with": environment()["versions"] | {"library": library_hash()},
    }
    terms = licence(settings.backbone, settings.weights and Path(settings.weights).name)
    described = {
        "input": f"images: float32 (N, 3, {size}, {size}), RGB, values in [0, 1], resized and cropped",
        "output": f"probabilities: float32 (N, {len(run.classes)})",
        "preprocessing": json.dumps(preprocessing),
        "classes": json.dumps(run.classes),
        "accuracy": json.dumps(
            next((each for each in rows if each["adaptation"] == adaptation), None)
        ),
        "licence": terms
        or "none known that restricts the weights; the terms of the images hold as well",
        "leakage": _leakage(run),
        "provenance": json.dumps(provenance),
    }
    return cast(dict[str, str], impersonal(described, *named_paths(settings.model_dump())))


def _leakage(run: FinishedRun) -> str:
    """The verdict of the sweep's own leakage check, and what the backbone knew beforehand."""
    found: dict[str, Any] = {}
    for name in ("dataset", "baseline"):
        file = run.folder.parent / name / "metrics.json"
        found |= read_record(file, leakage=dict | None)
    said = [found.get("leakage", {}).get("verdict", "not checked"), found.get("zero_shot") or ""]
    return " ".join(said).replace("**", "").strip()


def _write(program: torch.export.ExportedProgram, file: Path, described: dict[str, str]) -> None:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
    made = torch.onnx.export(
        program, dynamo=True, verbose=False, dynamic_shapes=({0: "batch"},), **names
    )
    made.model.metadata_props.update(described)  # type: ignore[union-attr]
    made.save(file)  # type: ignore[union-attr]


def _reader(file: Path) -> Callable[[torch.Tensor], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: cast(np.ndarray, session.run(None, {"images": images.numpy()})[0])
