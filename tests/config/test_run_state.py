"""Run folders made by hand, in every state and in several at once."""

import json
from typing import Any

import pytest
import throwaway

from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure
from fixres_poc.config.files import run_folder, write_atomically
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.run_state import State, checked, failures, outcomes, state

SWEEP = throwaway.tiny()
RUN = next(run for run in SWEEP.runs() if run.name == "baseline")
ALL = ("settings.json", "metrics.json", "predictions.parquet")


def put(*names: str, content: str = '{"used": {}}') -> None:
    """Write files into the run's folder."""
    for name in names:
        write_atomically(RUN.folder / name, content)


def done(images: str, settings: dict[str, Any]) -> None:
    """Let the run be done with these images and settings."""
    put(*ALL)
    put("metrics.json", content=json.dumps({"used": {"data": images}, "settings": settings}))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), "missing"),
        (("settings.json",), "waiting"),
        (("settings.json", "metrics.json"), "waiting"),
        (ALL, "done"),
        ((*ALL, "error.json"), "failed"),
        ((*ALL, "error.json", "progress.log"), "active"),
    ],
)
def test_state_is_told_by_the_names_of_files(files: tuple[str, ...], expected: State) -> None:
    put(*files)
    assert state(RUN) == checked(RUN).status == expected


def test_other_images_or_settings_make_a_run_outdated_and_settings_are_named_first() -> None:
    write_atomically(run_folder("tiny", "images.json"), '{"fingerprint": "b"}')
    done("a", RUN.parameters)
    assert checked(RUN).error == "made with other images"
    done("a", RUN.parameters | {"seed": 7, "batch_size": 2})
    assert checked(RUN).error == "made with other settings: batch_size, seed"
    done("b", {"of_an_older_version": 1})
    assert checked(RUN).status == "done"


@pytest.mark.parametrize(
    ("training", "pair", "expected"),
    [("a", "a", "done"), ("b", "a", "outdated"), (None, "a", "outdated"), ("a", None, "done")],
)
def test_a_pair_belongs_to_the_training_that_it_used(
    training: str | None, pair: str | None, expected: State
) -> None:
    for run, checkpoint in zip(SWEEP.runs()[3:5], (training, pair), strict=True):
        for name in NOTEBOOKS[run.notebook].outputs:
            write_atomically(run.folder / name, json.dumps({"used": {"checkpoint": checkpoint}}))
    assert [each.status for each in outcomes(SWEEP)[3:5]] == ["done", expected]


def test_outcomes_and_failures_are_those_of_every_run() -> None:
    run_state.end(RUN.folder, Failure("error", "ValueError: no", ["Traceback"]))
    write_atomically(run_folder("tiny", "dataset") / "error.json", "damaged")
    found = {each.run.name: (each.status, each.error) for each in outcomes(SWEEP)}
    assert list(found) == list(throwaway.RUNS)
    assert found["baseline"] == ("failed", "ValueError: no")
    assert found["train64_seed0"] == ("missing", "")
    assert failures(SWEEP) == {"dataset": "no message", "baseline": "ValueError: no"}
