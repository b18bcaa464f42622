"""Rows of the benchmark that run whole processes: drawing, sweeps against independent runs, memory."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks import measure, usual
from fixres_poc.config.files import home, write_atomically
from fixres_poc.config.settings import Adaptation, PairSettings

GRID = {"train_sizes": [64, 96], "test_sizes": [80, 96, 120, 160]}
ONE_MORE = [96, 112]
NAMES: tuple[Adaptation, ...] = ("none", "bn_stats", "head", "head_bn_stats", "head_bn")
# what the usual loop does
SAME = {"adaptations": list(NAMES), "head_start": "random", "batch_norm": "train"}
DRAW = "from fixres_poc.data.synthetic import generator; generator.prepare"
Result = dict[str, Any]
Measured = Callable[[Sequence[str], Path], float]


def drawing(repeats: int) -> Result:
    """Drawing 1,000 images with one process, and with one a core."""
    script = f"import sys; {DRAW}(0, 1000, int(sys.argv[1]))"
    seconds: dict[str, list[float]] = {"one": [], "own": []}
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "drawing.py"
        file.write_text(f'if __name__ == "__main__":\n    {script}\n', encoding="utf-8")
        for _ in range(repeats):
            for name, processes in (("one", 1), ("own", usual.CORES)):
                seconds[name].append(
                    measure.run([str(file), str(processes)], Path(scratch) / "home")
                )
                shutil.rmtree(Path(scratch) / "home")
    return seconds | {"images": 1000}


def sweep(
    folder: Path, name: str, content: dict[str, Any], measured: Measured = measure.run
) -> float:
    """Seconds of a sweep, its images drawn before, with its runs and report from the start."""
    file = folder / f"{name}.yml"
    file.write_text(yaml.safe_dump({"dataset": "synthetic", **content}), encoding="utf-8")
    return measured(["-m", "fixres_poc", "sweep", str(file)], folder)


def start_up(repeats: int) -> Result:
    """What a pair costs beyond its images and its network, a prediction, and a finished sweep's second call.

    A pair: processor seconds of a sweep of ten pairs less those of one of two, by eight, of 30
    images at small sizes.
    """
    found: Result = {"pair": [], "predict": [], "second_call": []}
    predict = ["-m", "fixres_poc", "predict", "--sweep", "few"]
    with TemporaryDirectory() as scratch:
        for _ in range(repeats):
            seconds = {}
            for name, count in (("few", 2), ("many", 10)):
                shutil.rmtree(Path(scratch) / "runs" / name, ignore_errors=True)
                pairs = [[32, 32 + 4 * step] for step in range(count)]
                content = {"image_limit": 30, "pairs": pairs, "epochs": 1, "adapt_epochs": 1}
                seconds[name] = sweep(Path(scratch), name, content, measure.core_seconds)
            found["pair"].append((seconds["many"] - seconds["few"]) / 8)
            image = next((Path(scratch) / "data").rglob("*.jpg"))
            found["predict"].append(measure.core_seconds([*predict, str(image)], Path(scratch)))
            found["second_call"].append(sweep(Path(scratch), "many", content))
    return found


def grid(repeats: int) -> Result:
    """The demo's images on a grid of 2 x 4 pairs, all results; then one more test resolution."""
    found: Result = {
        "usual": [],
        "own": [],
        "one_more": [],
        "one_pair": [],
        "usual_pair": [],
        "images": 1600,
    }
    for _ in range(repeats):
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            measure.run(["-c", f"{DRAW}(0, None, 1)"], folder)
            found["own"].append(sweep(folder, "grid", GRID | SAME))
            pairs = [[train, test] for train in GRID["train_sizes"] for test in GRID["test_sizes"]]
            found["one_more"].append(sweep(folder, "grid", {"pairs": [*pairs, ONE_MORE]} | SAME))
            found["one_pair"].append(sweep(folder, "pair", {"pairs": [ONE_MORE]} | SAME))
            each = []
            for train_size in GRID["train_sizes"]:
                for test_size in GRID["test_sizes"]:
                    sizes: dict[str, Any] = {"train_size": train_size, "test_size": test_size}
                    settings = PairSettings(
                        image_limit=1600, adaptations=NAMES, head_start="random", **sizes
                    )
                    write_atomically(folder / "pair.json", settings.model_dump_json())
                    each.append(
                        measure.run(["-m", "benchmarks.usual", str(folder / "pair.json")], folder)
                    )
            found["usual"].append(sum(each))
            found["usual_pair"].append(sum(each) / len(each))
            print(f"  grid: own {found['own'][-1]:.0f} s, usual {sum(each):.0f} s", file=sys.stderr)
    return found


MEMORY = """
import sys
from benchmarks import bench
made = bench.build(None, int(sys.argv[1]), 1, 1)
made.own_passes((224,))
"""


def memory(repeats: int) -> Result:
    """Peak memory of an evaluation at 224 px of few and of ten times as many images."""
    found: Result = {"few": [], "many": []}
    for _ in range(repeats):
        found["few"].append(measure.peak_bytes(["-c", MEMORY, "200"], home()))
        found["many"].append(measure.peak_bytes(["-c", MEMORY, "2000"], home()))
    return found


def pairs(repeats: int) -> dict[str, list[float]]:
    """Seconds of small sweeps of one training and 1, 2, 4 and 8 pairs, by the number of pairs."""
    found: dict[str, list[float]] = {str(count): [] for count in (1, 2, 4, 8)}
    with TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            for count in (1, 2, 4, 8):
                sizes = [[64, 64 + 8 * step] for step in range(count)]
                content = {"image_limit": 240, "pairs": sizes, "epochs": 1, "adapt_epochs": 1}
                found[str(count)].append(sweep(Path(scratch), f"pairs{count}-{repeat}", content))
    return found
