"""What a sweep says while it is at work."""

import re
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import throwaway

from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.sweep import progress

RUNS = {run.name: run for run in throwaway.tiny().runs()}
SECONDS = dict(zip(RUNS, (1, 2, 3, 40, 10, 20), strict=True))
TRAINING = "train64_seed0"
END = r"; the sweep ends at about \w{3} \d\d:\d\d"
NO = Failure("error", "ValueError: no")


def forecast(jobs: int = 1, measured: bool = True) -> progress.Forecast:
    return progress.Forecast(throwaway.tiny(), SECONDS, jobs, measured)


def begin(name: str) -> Path:
    RUNS[name].folder.mkdir(parents=True, exist_ok=True)
    return run_state.begin(RUNS[name].folder).parent


def finish(name: str) -> None:
    """Let a run be done."""
    folder = begin(name)
    for file in NOTEBOOKS[RUNS[name].notebook].outputs:
        (folder / file).touch()
    run_state.end(folder)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Mock:
    monkeypatch.setattr(time, "monotonic", clock := Mock(return_value=0.0))
    return clock


def follow(following: progress.Forecast, clock: Mock, name: str, seconds: float) -> list[str]:
    """Let a run take so long; what is said of its beginning and end."""
    begin(name)
    said = [*following.changes()]
    clock.return_value += seconds
    finish(name)
    return [*said, *following.changes()]


# the job of the training alone takes 70 s
@pytest.mark.parametrize(("at_once", "last_s"), [(1, 76), (2, 70)])
def test_a_sweep_takes_what_its_jobs_share_and_no_less_than_its_longest(
    at_once: int, last_s: float
) -> None:
    assert forecast(at_once).left_s() == last_s


def test_jobs_that_wait_for_another_begin_after_it() -> None:
    lists: dict[str, Any] = {"seeds": [0, 1], "learning_rate": [0.1, 0.01]}
    jobs = throwaway.tiny(**lists).jobs()
    seconds = {run.name: 10.0 for runs in jobs.values() for run in runs}
    assert progress.last_end_s(jobs, seconds, 9) == 60


def test_pairs_of_a_training_that_failed_are_no_longer_waited_for() -> None:
    following = forecast()
    run_state.end(begin(TRAINING), NO)
    assert list(following.changes()) == [f"failed: {TRAINING}: ValueError: no"]
    assert following.left_s() == 1 + 2 + 3
    assert following.whole().startswith("no training and no pair to do, about 6 s; the sweep ends")


def test_time_at_work_counts(clock: Mock) -> None:
    following = forecast()
    begin(TRAINING)
    list(following.changes())
    clock.return_value = 30.0
    assert following.left_s() == 76 - 30
    clock.return_value = 100.0
    assert following.left_s() == pytest.approx(36 + 0.1 * 100), "longer than was thought"


def test_where_nothing_was_measured_the_first_training_that_ends_tells_the_time(
    clock: Mock,
) -> None:
    following = forecast(measured=False)
    assert following.whole() == (
        "1 training, 2 pairs to do; the first one that ends tells how long the rest takes"
    )
    follow(following, clock, "baseline", 300)  # its time says nothing about trainings
    assert following.left_s() is None
    begun, ended = follow(following, clock, TRAINING, 20)
    assert begun == f"started: {TRAINING}"
    assert re.fullmatch(f"done: {TRAINING} in 20 s; left: 2 pairs{END}", ended)
    assert following.left_s() == (1 + 2 + 10 + 20) / 2


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        (False, rf"(?m)^the sweep ends at about \w+ [\d:]+: {TRAINING}$"),
        (True, rf"0%\|\s+\| the sweep ends at about \w+ [\d:]+: {TRAINING}"),
    ],
)
def test_a_log_says_that_a_long_training_is_at_work_and_a_terminal_has_a_bar(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(progress, "STILL_S", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    following = forecast()
    begin(TRAINING)
    progress.watch(following, Mock(poll=Mock(side_effect=[None, None, 3])))
    said = capsys.readouterr().err
    assert said.count(f"started: {TRAINING}; the sweep ends at about ") == 1
    assert re.search(expected, said)
    assert ("%|" in said) == terminal
    assert bool(re.search(r"(?m)^the sweep ends", said)) != terminal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3 s"), (95, "95 s"), (100, "1.7 min"), (9000, "2.5 h"), (86_400 * 3.5, "3.5 days")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
