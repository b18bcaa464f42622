"""Processes that are killed or interrupted: the next sweep ends as if nothing had happened."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import small
import throwaway

pytest_plugins = ["small"]
pytestmark = pytest.mark.faults

PAIR = "train32_test48_seed0"
DRAWING = "fixres_poc.data.synthetic:bar:drawing:1"
IN_KERNEL = {
    "first epoch": "fixres_poc.method.epochs:run_epoch::1",
    "state after it": "os:replace:training_0.03_frozen.pt:1",
    "second epoch": "fixres_poc.method.epochs:run_epoch::2",
    "checkpoint": "os:replace:train32_seed0/checkpoint.safetensors:1",
    "metrics of the training": "os:replace:train32_seed0/metrics.json:1",
    "adaptation": "fixres_poc.method.stage2:adapt_tails:PairSettings:1",
    "evaluation": "fixres_poc.method.evaluation:predict:'test':1",
    "predictions": f"os:replace:{PAIR}/predictions.parquet:1",
    "metrics of the pair": f"os:replace:{PAIR}/metrics.json:1",
}
REPORT = "fixres_poc.report.sentences:read::1"


def kill(pid: int, target: str) -> None:
    """Kill a job's kernel, the job, or the Snakemake that has started it."""
    kernel = psutil.Process(pid)
    job, snakemake, *_ = kernel.parents()
    {"kernel": kernel, "job": job, "snakemake": snakemake}[target].kill()


@pytest.mark.parametrize("target", ["kernel", "job", "snakemake"])
def test_kill_9_at_every_stage(home: Path, undisturbed: Path, target: str) -> None:
    for stage, call in IN_KERNEL.items():
        process = small.start(home, at=call)
        kill(small.held(home), target)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 1, f"{stage}: {said}"
        assert "killed?" in said or "died" in said, f"{stage}: {said}"
        throwaway.until(lambda: not throwaway.processes(), 5)
    small.finish(home)
    small.assert_same_results(home, undisturbed)


def test_kill_9_of_what_reports(home: Path, undisturbed: Path) -> None:
    small.finish(home)
    (home / "reports/small/index.html").unlink()
    throwaway.ran(home)
    process = small.start(home, at=REPORT)
    kill(small.held(home), "kernel")
    assert "05_results failed: the notebook's process died" in process.communicate(timeout=60)[0]
    assert process.returncode == 1
    process = small.start(home, at="os:replace:index.html:1")
    psutil.Process(small.held(home)).kill()
    process.wait(timeout=10)
    small.finish(home)
    small.assert_same_results(home, undisturbed)
    assert throwaway.ran(home) == ["results"] * 3


def test_kill_9_of_the_sweep_itself(home: Path, undisturbed: Path) -> None:
    process = small.start(home, at=DRAWING)
    small.held(home)
    process.kill()
    process.wait(timeout=5)
    throwaway.until(lambda: not throwaway.processes(), 10)
    process = small.start(home, at=IN_KERNEL["second epoch"])
    small.held(home)
    process.kill()
    process.wait(timeout=5)
    (home / "ran.txt").unlink()
    follower = small.start(home)
    time.sleep(3)  # it waits for what goes on without its sweep
    assert follower.poll() is None
    (home / "go").touch()
    assert follower.wait(timeout=120) == 0
    assert "train32_seed0" not in throwaway.ran(home)
    small.assert_same_results(home, undisturbed)


@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
def test_ctrl_c_stops_within_five_seconds_and_leaves_nothing(
    home: Path, undisturbed: Path, whole_group: bool
) -> None:
    for call in (DRAWING, *list(IN_KERNEL.values())[2::3], REPORT):
        process = small.start(home, at=call)
        small.held(home)
        begun = time.monotonic()
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
        time.sleep(0.3)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # an impatient user
        said = process.communicate(timeout=20)[0]
        throwaway.until(lambda: not throwaway.processes(), 5)
        assert time.monotonic() - begun < 5, call
        # the latter if already at its exit
        assert process.returncode in (130, -signal.SIGINT), f"{call}: {said}"
        assert "Traceback" not in said
    small.finish(home)
    small.assert_same_results(home, undisturbed)
