"""What a sweep says while it is at work: which runs begin and end, and when the last one ends."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from fixres_poc.config.files import read_record
from fixres_poc.config.notebooks import METRICS
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
        self.took: dict[str, float] = {}  # finished trainings and pairs
        for run in self.runs:
            self._look(run)

    def _look(self, run: Run) -> None:
        """Note a run's state, and when it began or how long it took."""
        self.states[run.name] = now = state(run)
        if now == "active":
            self.began.setdefault(run.name, time.monotonic())
        elif now == "done" and run.job != ONCE:
            metrics = read_record(run.folder / METRICS, wall_seconds=float)
            self.took |= {run.name: metrics["wall_seconds"]} if metrics else {}

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
                    yield f"started: {self._place(run)}{self._end()}"
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
        here = " on this machine" if self.measured else ""
        return f"{self._left()} to do, about {duration(left)}{here}{self._end()}"

    def at_work(self) -> str:
        """When the sweep ends, and which runs are at work."""
        active = [self._place(run) for run in self.runs if self.states[run.name] == "active"]
        return f"{self._end()[2:] or 'at work'}: {', '.join(active) or 'starting'}"

    def _place(self, run: Run) -> str:
        """A run's name, and of trainings and pairs which one it is."""
        if not (kind := KINDS.get(run.notebook)):
            return run.name
        alike = [each.name for each in self.runs if each.notebook == run.notebook]
        return f"{run.name} ({kind} {alike.index(run.name) + 1} of {len(alike)})"

    def _left(self) -> str:
        return amount(self._undone())

    def _end(self) -> str:
        left = self.left_s()
        return "" if left is None else f"; the sweep ends at about {clock(left)}"


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


def clock(seconds: float) -> str:
    """The time of the day in so many seconds, with the day where it is not today."""
    then, now = time.localtime(time.time() + seconds), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%a %d %b %H:%M", then)


def watch(forecast: Forecast, process: "subprocess.Popen[bytes]") -> int:
    """Tell which runs begin and end, on a terminal with a bar, until the process ends.

    Returns:
        Its exit code.
    """
    code, begun = None, time.monotonic()
    said = begun
    # disable=None: no bar in a log
    with tqdm(total=1.0, bar_format=BAR, disable=None, leave=False) as bar:
        while code is None:
            code = process.poll()
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
    return code
