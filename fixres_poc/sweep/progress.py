"""What a sweep says while it is at work: which runs begin and end, and when the last one ends."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from fixres_poc.config.run_state import State, failure, state
from fixres_poc.config.sweep_settings import ONCE, Run, SweepSettings

KINDS = {"03_train": "training", "04_fixres": "pair"}
BAR = "{percentage:3.0f}%|{bar:20}| {desc}"
STILL_S = 300
"""A log gets a line at least so often."""
OVERDUE = 0.1
"""What is left of a run that takes longer than was thought, of the time that it has taken."""


class Forecast:
    """When a sweep ends: predicted seconds of its runs, corrected by what finished ones took."""

    def __init__(
        self,
        sweep: SweepSettings,
        seconds: Mapping[str, float],
        at_once: int,
        measured: bool = True,
    ) -> None:
        """Begin with the runs that are done already.

        Args:
            seconds: predicted, by the run's name.
            at_once: how many jobs are at work at once.
            measured: whether the seconds are those of this machine; else only their proportions
                count, from the first training or pair that ends.
        """
        self.seconds, self.at_once, self.measured = seconds, at_once, measured
        self.jobs, self.runs = sweep.jobs(), sweep.runs()
        self.states: dict[str, State] = {}
        self.began: dict[str, float] = {}
        self.took: dict[str, float] = {}  # trainings and pairs that began and ended meanwhile
        for run in self.runs:
            self._look(run)

    def _look(self, run: Run) -> None:
        """Note a run's state, and when it began or how long it took."""
        self.states[run.name] = now = state(run)
        if now == "active":
            self.began.setdefault(run.name, time.monotonic())
        elif now == "done" and run.job != ONCE and run.name in self.began:
            self.took[run.name] = self._spent_s(run.name)

    def left_s(self) -> float | None:
        """Seconds until the last run ends, None where that is not known yet."""
        predicted = sum(self.seconds[name] for name in self.took)
        if not predicted and not self.measured:
            return None
        factor = sum(self.took.values()) / predicted if predicted else 1.0
        left = dict.fromkeys(self.states, 0.0)
        for run in self._undone():
            spent = self._spent_s(run.name)
            left[run.name] = max(factor * self.seconds[run.name] - spent, OVERDUE * spent)
        return last_end_s(self.jobs, left, self.at_once)

    def _undone(self) -> list[Run]:
        """The runs that are at work or will be: not those that need one that failed."""
        stopped: set[str] = set()
        for run in self.runs:  # each stands after those that it needs
            if self.states[run.name] == "failed" or stopped & set(run.needs):
                stopped.add(run.name)
        done = {name for name, each in self.states.items() if each == "done"}
        return [run for run in self.runs if run.name not in stopped | done]

    def _spent_s(self, name: str) -> float:
        now = time.monotonic()
        return now - self.began.get(name, now)

    def changes(self) -> Iterator[str]:
        """A line for each run that has begun or ended since the last call."""
        for run in self.runs:
            if state(run) == self.states[run.name]:
                continue
            self._look(run)
            match self.states[run.name]:
                case "active":
                    yield f"started: {run.name}{self._end()}"
                case "done":
                    took = duration(self._spent_s(run.name))
                    yield f"done: {run.name} in {took}; left: {self._left()}{self._end()}"
                case "failed":
                    failed = failure(run.folder)
                    yield f"failed: {run.name}: {failed.message if failed else ''}"

    def whole(self) -> str:
        """What is to be done, and how long that takes, for the start of a sweep."""
        if (left := self.left_s()) is None:
            return f"{self._left()} to do; the first one that ends tells how long the rest takes"
        return f"{self._left()} to do, about {duration(left)}{self._end()}"

    def at_work(self) -> str:
        """When the sweep ends, and which runs are at work."""
        active = [name for name, each in self.states.items() if each == "active"]
        return f"{self._end()[2:] or 'at work'}: {', '.join(active) or 'starting'}"

    def _left(self) -> str:
        return amount(self._undone())

    def _end(self) -> str:
        if (left := self.left_s()) is None:
            return ""
        then = time.localtime(time.time() + left)
        return f"; the sweep ends at about {time.strftime('%a %H:%M', then)}"


def amount(runs: Iterable[Run]) -> str:
    """How many trainings and pairs these are, such as "6 trainings, 15 pairs"."""
    notebooks = [run.notebook for run in runs]
    counts = {kind: notebooks.count(notebook) for notebook, kind in KINDS.items()}
    named = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items() if count]
    return ", ".join(named) or "no training and no pair"


def last_end_s(
    jobs: Mapping[str, Sequence[Run]], seconds: Mapping[str, float], at_once: int
) -> float:
    """When the last of a sweep's jobs ends, if each begins as soon as it may.

    Args:
        jobs: as `SweepSettings.jobs` returns them.
        seconds: what each run takes, by its name.
        at_once: how many jobs are at work at once.
    """
    work, ends = 0.0, dict[str, float]()
    for job, runs in jobs.items():
        own = sum(seconds[run.name] for run in runs)
        awaited = {name for run in runs for name in run.needs} & ends.keys()
        ends[job] = own + max((ends[name] for name in awaited), default=0)
        work += own
    return max(work / at_once, *ends.values())


def duration(seconds: float) -> str:
    """A time for people: "40 s", "25 min", "4.2 h" or "3.5 days"."""
    units = {"s": 1, "min": 60, "h": 3600, "days": 86_400}
    unit = [name for name, size in units.items() if seconds >= 1.6 * size or size == 1][-1]
    number = seconds / units[unit]
    return f"{number:.{int(number < 10 and unit != 's')}f} {unit}"


def watch(forecast: Forecast, process: "subprocess.Popen[bytes]") -> None:
    """Tell which runs begin and end, on a terminal with a bar, until the process ends."""
    at_work = True
    said = begun = time.monotonic()
    # disable=None: no bar in a log
    with tqdm(total=1.0, bar_format=BAR, disable=None, leave=False) as bar:
        while at_work:
            at_work = process.poll() is None
            lines = [*forecast.changes()]
            now, status = time.monotonic(), forecast.at_work()
            if bar.disable and now - said > STILL_S:
                lines.append(status)
            for line in lines:
                tqdm.write(line, file=sys.stderr)
                said = now
            if (left := forecast.left_s()) is not None:
                bar.n = (now - begun) / (now - begun + left + OVERDUE)
            bar.set_description_str(status)
            time.sleep(0.3)
