"""`python -m benchmarks.bench`: this project against the usual loop, alternating, into docs/bench.md.

Every row leaves its raw seconds in runs/bench/<row>.json, so that rows can be measured again one by
one (`--only`); the page is written from all that are there.
"""

import argparse
import functools
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, processes, usual
from benchmarks.page import write
from fixres_poc.config.files import REPOSITORY, home, write_atomically
from fixres_poc.config.settings import BASELINE_SIZE, PairSettings
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method import epochs
from fixres_poc.method.evaluation import predict, transforms_for
from fixres_poc.model.backbones import create
from fixres_poc.model.device import Portions, accelerator_for, place
from fixres_poc.model.memory_plan import StepPlan
from fixres_poc.model.trunk import Tail, fold_batch_norms
from fixres_poc.sweep.kernel_state import GARBAGE, keep_freed_memory

SIZES = (128, 160, 192, 224)
BATCHES = (8, 16, 32, 64, 128)
TRAINED_IMAGES, TRAIN_SIZE = 640, 128
Result = dict[str, Any]
Ways = dict[str, Callable[[], object]]


@dataclass
class Bench:
    """What all rows need.

    Attributes:
        settings: batch size and dataset; sizes are the rows'.
        data: its images, all of them in the split "test".
        repeats: of short rows; the first, to warm up, comes on top.
        grid_repeats: of whole grids.
    """

    settings: PairSettings
    data: ImageDataset
    repeats: int
    grid_repeats: int

    def __post_init__(self) -> None:
        """The same network for both: as it was built, and as the project places it."""
        self.accelerator = accelerator_for("fp32")
        classes = len(self.data.classes)
        torch.manual_seed(0)
        self.plain = create(self.settings.backbone, classes).eval()
        self.placed = place(
            create(self.settings.backbone, classes).eval(), self.settings, self.accelerator
        )
        self.placed.load_state_dict(self.plain.state_dict())

    def usual_passes(self, sizes: tuple[int, ...], batch: int | None = None) -> None:
        """The usual evaluation, once a size."""
        settings = self.settings.model_copy(update={"batch_size": batch or self.best_batch})
        for size in sizes:
            usual.evaluate(self.plain, usual.loader(self.data, "test", settings, size, "val_test"))

    def own_passes(self, sizes: tuple[int, ...], data: ImageDataset | None = None) -> None:
        """The project's evaluation, once a size."""
        tails, some = {"none": Tail(self.placed)}, data or self.data
        for size in sizes:
            predict(self.placed, tails, some, "test", self.settings, size, self.accelerator)

    @functools.cached_property
    def best_batch(self) -> int:
        """The batch size out of `BATCHES` at which the usual loop is fastest on 256 images at 224 px."""
        part = self.data.some("test", 256, 0)
        ways: Ways = {}
        for batch in BATCHES:
            each = self.settings.model_copy(update={"batch_size": batch})
            loaded = usual.loader(part, "test", each, BASELINE_SIZE, "val_test")
            ways[str(batch)] = functools.partial(usual.evaluate, self.plain, loaded)
        seconds = measure.alternating(ways, 2)
        return int(min(seconds, key=lambda batch: min(seconds[batch])))


def predictions(bench: Bench) -> Result:
    """JPEG files to predictions at 224 px."""
    batch = bench.best_batch
    ways = {
        "usual": lambda: bench.usual_passes((BASELINE_SIZE,)),
        "own": lambda: bench.own_passes((BASELINE_SIZE,)),
    }
    return measure.alternating(ways, bench.repeats) | {
        "images": len(bench.data.table),
        "batch": batch,
    }


def network_alone(bench: Bench) -> Result:
    """The same number of images as ready tensors through the project's network, and the files read and not classified.

    Their sum is what files to predictions can reach where the network uses all cores, so that
    nothing overlaps.
    """
    transform = transforms_for(bench.settings, BASELINE_SIZE, BASELINE_SIZE)["val_test"]
    samples = SplitImages(bench.data, "test", transform)
    rows = batches(samples, bench.settings.batch_size)
    tail = Tail(bench.placed).eval()
    ready = torch.rand(bench.settings.batch_size, 3, BASELINE_SIZE, BASELINE_SIZE)
    network = fold_batch_norms(bench.placed, BASELINE_SIZE)
    trunk = Portions(network, bench.settings.batch_size, bench.accelerator.device)
    count = len(bench.data.table)

    @torch.inference_mode()
    def alone() -> None:
        for start in range(0, count, len(ready)):
            tail(*trunk(ready[: count - start])).softmax(dim=1)

    ways: Ways = {
        "alone": alone,
        "reading": lambda: sum(len(images) for images, _, _ in loader(samples, rows, 0)),
        "own": lambda: bench.own_passes((BASELINE_SIZE,)),
    }
    found = measure.alternating(ways, bench.repeats)
    bound = [a + b for a, b in zip(found["alone"], found["reading"], strict=True)]
    return found | {"bound": bound, "images": count, "batch": len(ready)}


def training(bench: Bench) -> tuple[ImageDataset, Ways]:
    """Images, and an epoch of stage 1 with them at 128 px, JPEG files to updated weights, in both ways."""
    settings = bench.settings
    part = bench.data.some("test", TRAINED_IMAGES, 0)
    part = ImageDataset(part.root, part.classes, part.table.assign(split="train"))
    transform = transforms_for(settings, TRAIN_SIZE, TRAIN_SIZE)["train"]
    recipe, plan = (
        epochs.Recipe(TRAIN_SIZE, "train", 1, 1e-4),
        StepPlan(settings.batch_size, False, 0),
    )
    state = epochs.begin(recipe, settings, part, bench.accelerator, plan)
    samples = SplitImages(part, "train", transform, seed=0)
    loaded = usual.loader(part, "train", settings, TRAIN_SIZE, "train")
    model = create(settings.backbone, len(part.classes))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, weight_decay=1e-4, nesterov=True)
    steady = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    state.schedule.step = lambda: None  # its cycle is as long as one epoch
    return part, {
        "usual": lambda: usual.epoch(
            model, model.train(), loaded, optimizer, steady, settings.label_smoothing
        ),
        "own": lambda: epochs.run_epoch(state, samples, settings, bench.accelerator, "stage 1"),
    }


def train_step(bench: Bench) -> Result:
    """An epoch of stage 1."""
    part, ways = training(bench)
    return measure.alternating(ways, bench.repeats) | {
        "images": len(part.table),
        "batch": bench.settings.batch_size,
    }


def several_sizes(bench: Bench) -> Result:
    """Evaluation at four test resolutions."""
    bench.data, everything = bench.data.some("test", len(bench.data.table) // 2, 0), bench.data
    ways = {"usual": lambda: bench.usual_passes(SIZES), "own": lambda: bench.own_passes(SIZES)}
    seconds = measure.alternating(ways, bench.repeats)
    count, bench.data = len(bench.data.table), everything
    return seconds | {"images": count, "batch": bench.best_batch}


def growth(bench: Bench) -> Result:
    """Seconds against images, pixels and pairs."""
    found: Result = {}
    parts = {count: bench.data.some("test", count, 0) for count in (125, 250, 500, 1000)}
    ways = {
        str(count): lambda part=part: bench.own_passes((128,), part)
        for count, part in parts.items()
    }
    found["images"] = measure.alternating(ways, bench.repeats)
    small = bench.data.some("test", 250, 0)
    sizes = {
        str(size**2): lambda size=size: bench.own_passes((size,), small)
        for size in (96, 128, 160, 192, 224, 256)
    }
    found["pixels"] = measure.alternating(sizes, bench.repeats)
    found["pairs"] = processes.pairs(bench.grid_repeats)
    return found


ROWS: dict[str, Callable[[Bench], Result]] = {
    "predictions": predictions,
    "network_alone": network_alone,
    "train_step": train_step,
    "several_sizes": several_sizes,
    "grid": lambda bench: processes.grid(bench.grid_repeats),
    "memory": lambda bench: processes.memory(bench.repeats),
    "start_up": lambda bench: processes.start_up(bench.repeats),
    "drawing": lambda bench: processes.drawing(bench.repeats),
    "growth": growth,
}


def build(dataset: str | None, count: int, repeats: int, grid_repeats: int) -> Bench:
    """The images, drawn ones by default, all as one split, and the networks."""
    settings = PairSettings(
        train_size=64, test_size=64, dataset=dataset or "synthetic", image_limit=count
    )
    data = load_dataset(settings)
    data = ImageDataset(data.root, data.classes, data.table.assign(split="test"))
    return Bench(settings, data, repeats, grid_repeats)


def main(rows: Mapping[str, Callable[[Bench], Result]] = ROWS) -> None:
    """Measure those of the rows that are asked for, and write the page with all that were ever measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", help="folder of class folders; default: synthetic images")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--grid-repeats", type=int, default=5, help="of the rows that run whole sweeps"
    )
    parser.add_argument("--only", nargs="*", choices=list(rows), default=list(rows))
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "bench.md")
    chosen = parser.parse_args()
    os.environ["FIXRES_PROGRESS"] = os.devnull
    torch.set_num_threads(usual.CORES)
    # as in the kernels that a sweep starts; for both loops
    gc.set_threshold(*GARBAGE)
    keep_freed_memory()
    bench = build(chosen.dataset, chosen.images, chosen.repeats, chosen.grid_repeats)
    folder = home() / "runs" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen.only:
        print(name, file=sys.stderr)
        result = rows[name](bench) | {
            "data": "photographs" if chosen.dataset else "synthetic images"
        }
        write_atomically(folder / f"{name}.json", json.dumps(result, indent=1))
    found = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")
    }
    write(chosen.output, found)


if __name__ == "__main__":
    main()
