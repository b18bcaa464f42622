"""`python -m benchmarks.bench`: the project against the usual loop, in turns, into docs/bench.md.

Every row leaves its raw seconds in runs/bench/<row>.json, so that rows can be measured again one by
one (`--only`); the page is written from all that are there.
"""

import copy
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer import Option

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
from fixres_poc.sweep.kernel_state import keep_freed_memory

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
        repeats: of all but the grids; the first, to warm up, comes on top.
    """

    settings: PairSettings
    data: ImageDataset
    repeats: int

    def __post_init__(self) -> None:
        """The same network for both: as it was built, and as the project places it."""
        self.accelerator = accelerator_for("fp32")
        torch.manual_seed(0)
        self.plain = create(self.settings.backbone, len(self.data.classes)).eval()
        self.placed = place(copy.deepcopy(self.plain), self.settings, self.accelerator)

    def usual_pass(self, *sizes: int, data: ImageDataset | None = None, batch: int = 0) -> None:
        """The usual evaluation, once a size."""
        batch = batch or self.best_batch
        settings = self.settings.model_copy(update={"batch_size": batch})
        for size in sizes:
            loaded = usual.loader(data or self.data, "test", settings, size, "val_test")
            usual.evaluate(self.plain, loaded)

    def own_pass(self, *sizes: int, data: ImageDataset | None = None) -> None:
        """The project's evaluation, once a size."""
        tails = {"none": Tail(self.placed)}
        for size in sizes:
            common = (self.settings, size, self.accelerator)
            predict(self.placed, tails, data or self.data, "test", *common)

    def passes(self, *sizes: int, data: ImageDataset | None = None) -> Ways:
        """Both evaluations."""
        return {
            "usual": lambda: self.usual_pass(*sizes, data=data),
            "own": lambda: self.own_pass(*sizes, data=data),
        }

    def measure(self, ways: Ways, data: ImageDataset | None = None) -> Result:
        """Seconds of ways that take turns, and the number of images."""
        seconds = measure.alternating(ways, self.repeats)
        return {**seconds, "images": len((data or self.data).table)}

    @functools.cached_property
    def best_batch(self) -> int:
        """The batch size at which the usual loop is fastest on 256 images at 224 px."""
        part = self.data.some("test", 256, 0)
        once = functools.partial(self.usual_pass, BASELINE_SIZE, data=part)
        ways: Ways = {str(batch): functools.partial(once, batch=batch) for batch in BATCHES}
        seconds = measure.alternating(ways, 1)
        return int(min(seconds, key=lambda batch: min(seconds[batch])))


def predictions(bench: Bench) -> Result:
    """JPEG files to predictions at 224 px."""
    return bench.measure(bench.passes(BASELINE_SIZE)) | {"batch": bench.best_batch}


def network_alone(bench: Bench) -> Result:
    """The network on ready tensors, as many as there are images, and the files read alone.

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

    found = bench.measure(
        {
            "alone": alone,
            "reading": lambda: sum(len(images) for images, _, _ in loader(samples, rows, 0)),
            "own": lambda: bench.own_pass(BASELINE_SIZE),
        }
    )
    bound = [a + b for a, b in zip(found["alone"], found["reading"], strict=True)]
    return found | {"bound": bound}


def training(bench: Bench) -> tuple[ImageDataset, Ways]:
    """Images, and an epoch of stage 1 with them at 128 px, JPEG files to updated weights."""
    settings = bench.settings
    part = bench.data.some("test", TRAINED_IMAGES, 0)
    part = ImageDataset(part.root, part.classes, part.table.assign(split="train"))
    transform = transforms_for(settings, TRAIN_SIZE, TRAIN_SIZE)["train"]
    recipe = epochs.Recipe(TRAIN_SIZE, "train", 1, 1e-4)
    plan = StepPlan(settings.batch_size, False, 0)
    state = epochs.begin(recipe, settings, part, bench.accelerator, plan)
    samples = SplitImages(part, "train", transform, seed=0)
    loaded = usual.loader(part, "train", settings, TRAIN_SIZE, "train")
    model = create(settings.backbone, len(part.classes))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, weight_decay=1e-4, nesterov=True)
    steady = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    state.schedule.step = lambda: None  # its cycle is as long as one epoch
    return part, {
        "usual": lambda: usual.epoch(
            model.train(), loaded, optimizer, steady, settings.label_smoothing
        ),
        "own": lambda: epochs.run_epoch(state, samples, settings, bench.accelerator),
    }


def train_step(bench: Bench) -> Result:
    """An epoch of stage 1."""
    part, ways = training(bench)
    return bench.measure(ways, part)


def several_sizes(bench: Bench) -> Result:
    """Evaluation at four test resolutions."""
    some = bench.data.some("test", len(bench.data.table) // 4, 0)
    return bench.measure(bench.passes(*SIZES, data=some), some)


def growth(bench: Bench) -> Result:
    """Seconds against images, pixels and pairs."""

    def seconds(size: int, count: int) -> Callable[[], object]:
        part = bench.data.some("test", count, 0)
        return lambda: bench.own_pass(size, data=part)

    images = {str(count): seconds(128, count) for count in (125, 250, 500, 1000)}
    pixels = {str(size**2): seconds(size, 250) for size in (96, 128, 160, 192, 224, 256)}
    return {
        "images": measure.alternating(images, bench.repeats),
        "pixels": measure.alternating(pixels, bench.repeats),
        "pairs": processes.pairs(),
    }


ROWS: dict[str, Callable[[Bench], Result]] = {
    "predictions": predictions,
    "network_alone": network_alone,
    "train_step": train_step,
    "several_sizes": several_sizes,
    "grid": lambda _: processes.grid(),
    "memory": lambda bench: processes.memory(bench.repeats),
    "start_up": lambda bench: processes.start_up(bench.repeats),
    "drawing": lambda bench: processes.drawing(bench.repeats),
    "growth": growth,
}


def build(dataset: str | None, count: int, repeats: int) -> Bench:
    """The images, drawn ones by default, all as one split, and the networks."""
    settings = PairSettings(
        train_size=64, test_size=64, dataset=dataset or "synthetic", image_limit=count
    )
    data = load_dataset(settings)
    data = ImageDataset(data.root, data.classes, data.table.assign(split="test"))
    return Bench(settings, data, repeats)


def main(rows: Mapping[str, Callable[[Bench], Result]] = ROWS) -> None:
    """Measure the rows that are asked for, and write the page with all that were ever measured."""

    def command(
        dataset: Annotated[
            str | None, Option(envvar="FIXRES_DATASET", help="class folders; default: synthetic")
        ] = None,
        images: int = 2000,
        repeats: Annotated[int, Option(help="of all but the grids, which run once")] = 3,
        only: Annotated[list[str] | None, Option(help="a row; may be given several times")] = None,
        output: Path = REPOSITORY / "docs" / "bench.md",
    ) -> None:
        os.environ["FIXRES_PROGRESS"] = os.devnull
        torch.set_num_threads(usual.CORES)
        keep_freed_memory()  # as in the kernels that a sweep starts; for both loops
        bench = build(dataset, images, repeats)
        folder, shown = home() / "runs" / "bench", "photographs" if dataset else "synthetic images"
        for name in only or rows:
            print(name, file=sys.stderr)
            result = rows[name](bench) | {"data": shown}
            write_atomically(folder / f"{name}.json", json.dumps(result, indent=1))
        files = sorted(folder.glob("*.json"))
        write(output, {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files})

    typer.run(command)


if __name__ == "__main__":
    main()
