"""Rows that run whole processes: drawing, sweeps against independent runs, memory."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks import measure, usual
from fixres_poc.config.files import home, write_atomically
from fixres_poc.config.settings import Adaptation, PairSettings

GRID = {"train_sizes": [64, 96], "test_sizes": [80, 96, 120, 160]}
SIZES = list(itertools.product(*GRID.values()))
ONE_MORE = (96, 112)
IMAGES = 1200
NAMES: tuple[Adaptation, ...] = ("none", "bn_stats", "head", "head_bn_stats", "head_bn")
# what the usual loop does
RECIPE: dict[str, Any] = {
    "epochs": 8,
    "head_start": "random",
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "trunk_factor": 1.0,
    "batch_norm": "train",
    "affine_factor": 1.0,
    "adapt_batch_norm": "train",
    "image_limit": IMAGES,
}
SAME = RECIPE | {"adaptations": list(NAMES)}
DRAW = "from fixres_poc.data import synthetic; synthetic.prepare"
Result = dict[str, Any]


def drawing(repeats: int) -> Result:
    """Drawing 1,000 images with one thread, and with one a core."""
    seconds: dict[str, list[float]] = {"one": [], "own": []}
    for _ in range(repeats):
        for name, threads in (("one", 1), ("own", usual.CORES)):
            with TemporaryDirectory() as scratch:
                call = ["-c", f"{DRAW}(0, 1000, {threads})"]
                seconds[name].append(measure.run(call, Path(scratch)).seconds)
    return seconds | {"images": 1000}


def sweep(folder: Path, name: str, **content: Any) -> measure.Cost:
    """What a sweep costs, its images drawn before, with its runs and report from the start."""
    file = folder / f"{name}.yml"
    content = {"dataset": "synthetic", **content}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return measure.run(["-m", "fixres_poc", "sweep", str(file)], folder)


def start_up(repeats: int) -> Result:
    """What a pair costs beyond its images and network, a prediction, and a sweep's second call.

    A pair: processor seconds of a sweep of ten pairs less those of one of two, by eight, of 30
    images at small sizes.
    """
    found: Result = {"pair": [], "predict": [], "second_call": []}
    predict = ["-m", "fixres_poc", "predict", "--sweep", "few"]
    small = {"image_limit": 30, "epochs": 1, "adapt_epochs": 1}
    pairs = [[32, 32 + 4 * step] for step in range(10)]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for _ in range(repeats):
            shutil.rmtree(folder / "runs", ignore_errors=True)
            few = sweep(folder, "few", pairs=pairs[:2], **small).core_seconds
            many = sweep(folder, "many", pairs=pairs, **small).core_seconds
            found["pair"].append((many - few) / 8)
            image = next((folder / "data").rglob("*.jpg"))
            found["predict"].append(measure.run([*predict, str(image)], folder).core_seconds)
            found["second_call"].append(sweep(folder, "many", pairs=pairs, **small).seconds)
    return found


def pair_files(folder: Path, adaptations: Sequence[Adaptation]) -> list[str]:
    """Files with the settings of every pair of the grid, for whoever does it without a sweep."""
    files = []
    for train_size, test_size in SIZES:
        sizes: dict[str, Any] = {"train_size": train_size, "test_size": test_size}
        settings = PairSettings(**sizes, adaptations=tuple(adaptations), **RECIPE)
        files.append(str(folder / f"{train_size}_{test_size}.json"))
        write_atomically(Path(files[-1]), settings.model_dump_json())
    return files


def grid() -> Result:
    """A grid of 2 x 4 pairs, all results; then one more test resolution."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        measure.run(["-c", f"{DRAW}(0, {IMAGES}, 1)"], folder)
        pairs = [list(each) for each in (*SIZES, ONE_MORE)]
        own = sweep(folder, "grid", **GRID, **SAME)
        one_more = sweep(folder, "grid", pairs=pairs, **SAME)
        one_pair = sweep(folder, "pair", pairs=pairs[-1:], **SAME)
        runs = [
            measure.run(["-m", "benchmarks.usual", file], folder)
            for file in pair_files(folder, NAMES)
        ]
    costs = {"own": [own], "one_more": [one_more], "one_pair": [one_pair], "usual": runs}
    return {name: [sum(each.seconds for each in every)] for name, every in costs.items()}


# getrusage would count the memory of the process that started this one; the cache of decoded images
# grows with them up to its limit, a setting
MEMORY = """
import os
os.environ["FIXRES_IMAGE_CACHE_MIB"] = "0"
from pathlib import Path
from benchmarks import bench
bench.build(None, {}, 1).own_pass(224)
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""


def memory(repeats: int) -> Result:
    """Peak memory of an evaluation at 224 px of few and of ten times as many images."""
    found: Result = {"few": [], "many": []}
    for _ in range(repeats):
        for name, images in (("few", 200), ("many", 2000)):
            said = measure.run(["-c", MEMORY.format(images)], home()).said
            found[name].append(1024 * int(said.split()[-1]))
    return found


def pairs() -> dict[str, list[float]]:
    """Seconds of small sweeps of one training and 1, 2 and 4 pairs, by the number of pairs."""
    small = {"image_limit": 240, "epochs": 1, "adapt_epochs": 1}
    found = {}
    with TemporaryDirectory() as scratch:
        for count in (1, 2, 4):
            sizes = [[64, 64 + 8 * step] for step in range(count)]
            done = sweep(Path(scratch), f"pairs{count}", pairs=sizes, **small)
            found[str(count)] = [done.seconds]
    return found
