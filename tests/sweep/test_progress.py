"""What a sweep says while it is at work."""

import json
import re
import sys
import time
from collections.abc import Iterable
from typing import Any
from unittest.mock import Mock

import pytest
import throwaway

from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure
from fixres_poc.config.notebooks import METRICS
from fixres_poc.sweep import progress

SECONDS = dict(zip(throwaway.RUNS, (1, 2, 3, 40, 10, 20), strict=True))
TRAINING, *PAIRS = throwaway.RUNS[3:]


def forecast(jobs: int = 1, measured: bool = True, **values: object) -> progress.Forecast:
    return progress.Forecast(throwaway.tiny(**values), SECONDS, jobs, measured)


def begin(name: str) -> None:
    (folder := folder_of(name)).mkdir(parents=True, exist_ok=True)
    run_state.begin(folder)


def folder_of(name: str) -> Any:
    return next(run.folder for run in throwaway.tiny().runs() if run.name == name)


def finish(name: str, seconds: float) -> None:
    """Let a run be done, after so many seconds of its notebook."""
    begin(name)
    for file in (METRICS, "predictions.parquet"):
        (folder_of(name) / file).write_text(json.dumps({"wall_seconds": float(seconds)}))
    run_state.end(folder_of(name))


@pytest.mark.parametrize(
    ("at_once", "last_s"),
    [(1, 76), (2, 70)],  # the job of the training alone takes 70 s
)
def test_a_sweep_takes_what_its_jobs_share_and_no_less_than_its_longest(
    at_once: int, last_s: float
) -> None:
    assert forecast(at_once).left_s() == last_s


def test_jobs_that_wait_for_another_begin_after_it() -> None:
    lists: dict[str, Any] = {"seeds": [0, 1], "learning_rate": [0.1, 0.01]}
    jobs = throwaway.tiny(**lists).jobs()
    seconds = {run.name: 10.0 for runs in jobs.values() for run in runs}
    assert progress.last_end_s(jobs, seconds, 9) == 60


def test_what_finished_trainings_took_corrects_what_is_left() -> None:
    finish("baseline", 300)  # its time says nothing about trainings
    assert forecast().left_s() == 73
    finish(TRAINING, 80)
    assert forecast().left_s() == 2 * (1 + 2 + 10 + 20)


def test_pairs_of_a_training_that_failed_are_no_longer_waited_for() -> None:
    following = forecast()
    begin(TRAINING)
    run_state.end(folder_of(TRAINING), Failure("error", "no"))
    assert list(following.changes()) == [f"failed: {TRAINING}: no"]
    assert following.left_s() == 1 + 2 + 3
    assert following.whole().startswith("no training and no pair to do, about 6 s")


def test_time_at_work_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Mock(return_value=0.0)
    monkeypatch.setattr(time, "monotonic", clock)
    following = forecast()
    begin(TRAINING)
    list(following.changes())
    clock.return_value = 30.0
    assert following.left_s() == 76 - 30
    clock.return_value = 100.0
    assert following.left_s() == pytest.approx(36 + 0.1 * 100), "longer than was thought"


def test_where_nothing_was_measured_the_first_training_that_ends_tells_the_time() -> None:
    following = forecast(measured=False)
    assert following.whole() == (
        "1 training, 2 pairs to do; the first one that ends tells how long the rest takes"
    )
    finish(TRAINING, 20)
    (line,) = following.changes()
    assert re.fullmatch(
        rf"done: {TRAINING} in 0 s; left: 2 pairs; the sweep ends at about \d\d:\d\d", line
    )
    assert following.left_s() == (1 + 2 + 3 + 10 + 20) / 2


def steps(*actions: Any) -> Mock:
    """A process that does one thing each time it is asked, and then ends with 3."""
    left = iter(actions)

    def poll() -> int | None:
        if (action := next(left, None)) is None:
            return 3
        action()
        return None

    return Mock(poll=poll)


def told(lines: Iterable[str]) -> list[str]:
    """The lines without the time of day."""
    return [re.sub(r"(in|about) \d\S*( s)?", r"\1 …", line) for line in lines]


def test_each_run_that_begins_or_ends_is_a_line_and_a_failure_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = Failure("error", "ValueError: no")
    process = steps(
        lambda: begin(TRAINING),
        lambda: finish(TRAINING, 5),
        lambda: begin(PAIRS[1]),
        lambda: run_state.end(folder_of(PAIRS[1]), failed),
    )
    assert progress.watch(forecast(), process) == 3
    end = "; the sweep ends at about …"
    assert told(capsys.readouterr().err.splitlines()) == [
        f"started: {TRAINING} (training 1 of 1){end}",
        f"done: {TRAINING} in …; left: 2 pairs{end}",
        f"started: {PAIRS[1]} (pair 2 of 2){end}",
        f"failed: {PAIRS[1]}: ValueError: no",
    ]


def test_a_log_of_a_long_training_says_that_it_is_at_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STILL_S", 0)
    progress.watch(forecast(), steps(lambda: begin(TRAINING), lambda: None))
    said = capsys.readouterr().err
    assert re.search(rf"the sweep ends at about \S+: {TRAINING} \(training 1 of 1\)\n", said)


def test_a_terminal_has_a_bar_with_the_training_and_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STILL_S", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress.watch(forecast(), steps(lambda: begin(TRAINING), lambda: None))
    said = capsys.readouterr().err
    bar = rf"0%\|\s+\| the sweep ends at about \S+: {TRAINING} \(training 1 of 1\)"
    assert re.search(bar, said)
    assert not re.search(r"(?m)^the sweep ends", said), "the lines of a log"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3 s"), (95, "95 s"), (100, "1.7 min"), (5400, "90 min"), (9000, "2.5 h")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
    assert progress.duration(86_400 * 3.5) == "3.5 days"


def test_the_day_is_named_where_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    noon = time.mktime((2026, 3, 2, 12, 0, 0, 0, 0, 0))
    monkeypatch.setattr(time, "time", lambda: noon)
    day = time.localtime(noon)
    monkeypatch.setattr(
        time, "localtime", lambda s=None, real=time.localtime: real(s) if s else day
    )
    assert progress.clock(600) == "12:10"
    assert progress.clock(13 * 3600) == "Tue 03 Mar 01:00"
