"""Timing, peak memory and growth, for the benchmarks."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

from fixres_poc.config.files import REPOSITORY


def alternating(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of every way; they take turns, and the first round, to warm up, does not count."""
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


def run(arguments: Sequence[str], home: Path) -> float:
    """Seconds of a Python process of its own, such as ["-m", "fixres_poc", "sweep", …], with its files in `home`.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    environment = os.environ | {
        "FIXRES_HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "FIXRES_PROGRESS": os.devnull,
    }
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - start


def core_seconds(arguments: Sequence[str], home: Path) -> float:
    """Processor seconds of a Python process as in `run`, and of all that it has started and waited for."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    run(arguments, home)
    return spent() - before


def peak_bytes(arguments: Sequence[str], home: Path) -> int:
    """Highest resident memory of a Python process and its children, looked at 20 times a second."""
    environment = os.environ | {
        "FIXRES_HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "FIXRES_PROGRESS": os.devnull,
    }
    process = subprocess.Popen([sys.executable, *arguments], env=environment, cwd=REPOSITORY)
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(each.memory_info().rss for each in family))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed with {process.returncode}")
    return peak
