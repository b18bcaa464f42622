"""Run folders made by hand, in every state and in several at once."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import throwaway

from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure
from fixres_poc.config.files import run_folder, write_atomically
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.provenance import code_hash
from fixres_poc.config.run_state import Outcome, State, checked, failures, outcomes, state

SWEEP = throwaway.tiny()
RUN = next(run for run in SWEEP.runs() if run.name == "baseline")
WANTED = {"notebook": "n", "library": "l", "data": "a"}
CONTENT = {
    "settings.json": json.dumps({"wanted": WANTED}),
    "metrics.json": json.dumps({"used": WANTED}),
    "predictions.parquet": "table",
}
ALL = tuple(CONTENT)


def put(*names: str, **contents: str) -> None:
    """Write files into the run's folder; a name is one of `CONTENT` or stands for an empty file."""
    for name, content in ({name: CONTENT.get(name, "") for name in names} | contents).items():
        write_atomically(RUN.folder / name, content)


def done(changed: dict[str, str] | None = None, **metrics: object) -> None:
    used = {"used": WANTED | (changed or {})}
    put(*ALL, **{"metrics.json": json.dumps(used | metrics)})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), "missing"),
        (("settings.json",), "waiting"),
        (("settings.json", "metrics.json"), "waiting"),
        (("settings.json", "progress.log"), "active"),
        (("settings.json", "error.json"), "failed"),
        (ALL, "done"),
        ((*ALL, "error.json"), "failed"),
        ((*ALL, "error.json", "progress.log"), "active"),
    ],
)
def test_state_is_told_by_the_names_of_files(files: tuple[str, ...], expected: State) -> None:
    put(*files)
    assert state(RUN) == checked(RUN).status == expected


def test_metrics_that_cannot_be_read_and_predictions_of_another_run_are_damaged() -> None:
    done(used=1)
    assert state(RUN) == "done", "which names alone do not tell"
    assert checked(RUN) == Outcome(RUN, "damaged", "metrics.json cannot be read")
    done(predictions_sha256=hashlib.sha256(b"table").hexdigest(), settings={"seed": 7})
    assert checked(RUN).status == "outdated"
    put(**{"predictions.parquet": "tablE"})
    said = "predictions.parquet is not what the run has written"
    assert checked(RUN) == Outcome(RUN, "damaged", said)


def test_other_settings_make_a_run_outdated_and_are_named_before_anything_else() -> None:
    write_atomically(run_folder("tiny", "images.json"), '{"fingerprint": "b"}')
    done(settings=RUN.parameters)
    assert "images" in checked(RUN).error
    done(settings=RUN.parameters | {"seed": 7, "batch_size": 2})
    changed = ("batch_size", "seed")
    assert checked(RUN) == Outcome(
        RUN, "outdated", f"made with other settings: {', '.join(changed)}", changed=changed
    )
    done({"data": "b"}, settings={"of_an_older_version": 1})
    assert checked(RUN).status == "done"


@pytest.mark.parametrize(
    ("used", "named"),
    [
        ("notebook", "code of 02_"),
        ("library", "library"),
        ("weights", "weights w.pth"),
        ("imagenet_list", "list of ImageNet"),
    ],
)
def test_a_run_that_used_something_else_than_wanted_is_outdated(used: str, named: str) -> None:
    run = replace(RUN, parameters=RUN.parameters | {"weights": "w.pth"})
    done({used: "other"})
    put(**{"settings.json": json.dumps({"wanted": WANTED | {used: "other"}})})
    assert checked(run).status == "done"
    put(**{"settings.json": json.dumps({"wanted": WANTED | {used: "w"}})})
    assert checked(run).status == "outdated"
    assert named in checked(run).error
    (RUN.folder / "settings.json").unlink()
    assert checked(run).status == "done", "by hand nothing is wanted"


def test_the_code_that_was_executed_is_recorded_without_injected_parameters(tmp_path: Path) -> None:
    notebook = throwaway.write_notebook(tmp_path / "a.ipynb", "x = 1", "print(x)")
    executed = json.loads(notebook.read_text())
    cell = {"cell_type": "code", "source": "x = 2", "metadata": {"tags": ["injected-parameters"]}}
    executed["cells"].insert(2, cell)
    done()
    run_state.record_notebook(folder := RUN.folder, executed)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["used"] == WANTED | {"notebook": code_hash(notebook)}


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


def test_what_a_run_measured_is_found_by_keys() -> None:
    done(seconds={"train": 3}, wall_seconds=8.5)
    found = checked(RUN)
    assert (found.get("seconds", "train"), found.get("seconds", "train", "none")) == (3, None)
    assert (found.wall_seconds(), Outcome(RUN, "missing").wall_seconds()) == (8.5, 0)


def test_outcomes_and_failures_are_those_of_every_run() -> None:
    run_state.end(RUN.folder, Failure("error", "ValueError: no", ["Traceback"]))
    write_atomically(run_folder("tiny", "dataset") / "error.json", "damaged")
    found = {each.run.name: (each.status, each.error) for each in outcomes(SWEEP)}
    assert list(found) == list(throwaway.RUNS)
    assert found["baseline"] == ("failed", "ValueError: no")
    assert found["train64_seed0"] == ("missing", "")
    assert failures(SWEEP) == {"dataset": "no message", "baseline": "ValueError: no"}


def test_a_run_that_begins_is_active_until_it_ends_and_failed_until_it_begins_again() -> None:
    put("settings.json")
    folder = RUN.folder
    assert run_state.begin(folder) == folder / "progress.log"
    assert (state(RUN), run_state.failure(folder)) == ("active", None)
    run_state.end(folder, failed := Failure("error", "ValueError: no", ["Traceback"]))
    assert (state(RUN), run_state.failure(folder)) == ("failed", failed)
    run_state.begin(folder)
    run_state.end(folder)
    assert state(RUN) == "waiting"
