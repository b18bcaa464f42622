"""Progress of a sweep: lines for runs that start or end, a bar, and when the sweep ends."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from fixres_poc.config.run_state import State, failure, state
from fixres_poc.config.sweep_settings import ONCE, Run, SweepSettings

KINDS = {"03_train": "training", "04_fixres": "pair"}
BAR = "{percentage:3.0f}%|{bar:20}| {desc}"
STILL_S = 300
"""Longest time between two lines of a log."""
OVERDUE = 0.1
"""Expected rest of a run that takes longer than predicted, as a fraction of the time so far."""


class Forecast:
    """When a sweep ends: predicted seconds of its runs, corrected by the time finished runs took.

    Args:
        seconds: predicted, by the run's name.
        at_once: number of jobs at the same time.
        measured: whether the seconds are those of this machine; otherwise only their proportions
            count, from the first training or pair that ends.
    """

    def __init__(
        self,
        sweep: SweepSettings,
        seconds: Mapping[str, float],
        at_once: int,
        measured: bool = True,
    ) -> None:
        """Note the state of all runs."""
        self.seconds, self.at_once, self.measured = seconds, at_once, measured
        self.jobs, self.runs = sweep.jobs(), sweep.runs()
        self.states: dict[str, State] = {}
        self.started: dict[str, float] = {}
        self.took: dict[str, float] = {}  # trainings and pairs that started and ended since then
        for run in self.runs:
            self._update(run)

    def _update(self, run: Run) -> None:
        """Note a run's state, and when it started or how long it took."""
        self.states[run.name] = status = state(run)
        if status == "active":
            self.started.setdefault(run.name, time.monotonic())
        elif status == "done" and run.job != ONCE and run.name in self.started:
            self.took[run.name] = self._spent_s(run.name)

    def left_s(self) -> float | None:
        """Seconds until the last run ends; None while that is unknown."""
        predicted = sum(self.seconds[name] for name in self.took)
        if not predicted and not self.measured:
            return None
        factor = sum(self.took.values()) / predicted if predicted else 1.0
        left = dict.fromkeys(self.states, 0.0)
        for run in self._unfinished():
            spent = self._spent_s(run.name)
            left[run.name] = max(factor * self.seconds[run.name] - spent, OVERDUE * spent)
        return last_end_s(self.jobs, left, self.at_once)

    def _unfinished(self) -> list[Run]:
        """Runs that are neither done nor failed, and need no run that failed."""
        unfinished: list[Run] = []
        stopped: set[str] = set()
        for run in self.runs:  # each stands after those that it needs
            if self.states[run.name] == "failed" or stopped & set(run.needs):
                stopped.add(run.name)
            elif self.states[run.name] != "done":
                unfinished.append(run)
        return unfinished

    def _spent_s(self, name: str) -> float:
        now = time.monotonic()
        return now - self.started.get(name, now)

    def changes(self) -> Iterator[str]:
        """A line for each run that has started or ended since the last call."""
        for run in self.runs:
            if state(run) == self.states[run.name]:
                continue
            self._update(run)
            match self.states[run.name]:
                case "active":
                    yield f"started: {run.name}{self._end()}"
                case "done":
                    took = duration(self._spent_s(run.name))
                    left = amount(self._unfinished())
                    yield f"done: {run.name} in {took}; left: {left}{self._end()}"
                case "failed":
                    record = failure(run.folder)
                    yield f"failed: {run.name}: {record.message if record else ''}"

    def whole(self) -> str:
        """The work of a sweep and its duration, for the first line of a sweep."""
        work = f"{amount(self._unfinished())} to do"
        left = self.left_s()
        if left is None:
            return f"{work}; the first one that ends tells how long the rest takes"
        return f"{work}, about {duration(left)}{self._end()}"

    def at_work(self) -> str:
        """When the sweep ends, and which runs are active."""
        active = [name for name, status in self.states.items() if status == "active"]
        end = self._end().removeprefix("; ") or "at work"
        return f"{end}: {', '.join(active) or 'starting'}"

    def _end(self) -> str:
        left = self.left_s()
        if left is None:
            return ""
        end = time.localtime(time.time() + left)
        return f"; the sweep ends at about {time.strftime('%a %H:%M', end)}"


def amount(runs: Iterable[Run]) -> str:
    """The number of trainings and pairs, such as "6 trainings, 15 pairs"."""
    counts = Counter(run.notebook for run in runs)
    parts = []
    for notebook, kind in KINDS.items():
        count = counts[notebook]
        if count:
            parts.append(f"{count} {kind}" if count == 1 else f"{count} {kind}s")
    return ", ".join(parts) or "no training and no pair"


def last_end_s(
    jobs: Mapping[str, Sequence[Run]], seconds: Mapping[str, float], at_once: int
) -> float:
    """When the last job of a sweep ends, if each starts as early as possible.

    Args:
        jobs: as `SweepSettings.jobs` returns them.
        seconds: duration of each run, by its name.
        at_once: number of jobs at the same time.
    """
    ends = dict[str, float]()
    for job, runs in jobs.items():
        needed = {name for run in runs for name in run.needs} & ends.keys()
        start = max((ends[name] for name in needed), default=0)
        ends[job] = start + sum(seconds[run.name] for run in runs)
    return max(sum(seconds.values()) / at_once, *ends.values())


def duration(seconds: float) -> str:
    """A duration for people: "40 s", "25 min", "4.2 h" or "3.5 days"."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.6 * size:
            number = seconds / size
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds:.0f} s"


def watch(forecast: Forecast, process: "subprocess.Popen[bytes]") -> None:
    """Print the runs that start and end, on a terminal with a bar, until the process ends."""
    running = True
    started = last_line = time.monotonic()
    # disable=None: no bar in a log
    with tqdm(total=1.0, bar_format=BAR, disable=None, leave=False) as bar:
        while running:
            running = process.poll() is None
            lines = list(forecast.changes())
            now = time.monotonic()
            status = forecast.at_work()
            if bar.disable and now - last_line > STILL_S:
                lines.append(status)
            for line in lines:
                tqdm.write(line, file=sys.stderr)
                last_line = now
            left = forecast.left_s()
            if left is not None:
                bar.n = (now - started) / (now - started + left + OVERDUE)
            bar.set_description_str(status)
            time.sleep(0.3)
