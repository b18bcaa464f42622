"""Timing, peak memory and growth, for the benchmarks."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from fixres_poc.config.files import REPOSITORY


def alternating(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of every way.

    The ways take turns. The first round, to warm up, does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
            print(f"  {name}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    return {name: each[1:] for name, each in seconds.items()}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of the ratios of seconds, repeat by repeat."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(each), min(each), max(each)


def exponent(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log amount: 1 where time grows in proportion."""
    return float(np.polyfit(np.log(amounts), np.log(seconds), 1)[0])


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    core_seconds: float  # with all processes that it has started and waited for
    said: str


def run(arguments: Sequence[str], home: Path) -> Cost:
    """The cost of a Python process.

    Args:
        arguments: such as ["-m", "fixres_poc", "sweep", …].
        home: folder for its files.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    own = {"FIXRES_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "FIXRES_PROGRESS": os.devnull}
    inherited = {key: each for key, each in os.environ.items() if not key.startswith("FIXRES_")}
    start = time.perf_counter()
    with TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=inherited | own,
            stdout=said,
            stderr=said,
            cwd=REPOSITORY,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {text[-2000:]}")
    return Cost(seconds, used.ru_utime + used.ru_stime, text)
