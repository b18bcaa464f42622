"""Sweeps on a Slurm of this machine alone, with profiles/slurm but for what the machine lacks."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import one_machine
import pandas as pd
import psutil
import pytest
import throwaway
import yaml
from one_machine import say
from throwaway import until

from fixres_poc.config import run_state
from fixres_poc.config.files import REPOSITORY, report_folder
from fixres_poc.config.validation import load_sweep
from fixres_poc.sweep import execution, snakemake

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(one_machine.missing()), reason=one_machine.missing()),
]
TRAINING = "train64_seed0"
NOTE = """
import json
with open(home() / "jobs.txt", "a") as jobs:
    names = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    note = {"run": folder.name} | {name: os.environ.get(name) for name in names}
    print(json.dumps(note), file=jobs)
"""
TIMES = ["train_seconds", "adapt_seconds", "eval_images_per_second", "peak_memory_bytes"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[one_machine.Cluster]:
    with one_machine.cluster() as started:
        yield started


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """profiles/slurm for nodes of one core and 1.5 GB, with Slurm asked every few seconds."""
    settings = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text())
    settings |= {"latency-wait": 5, "slurm-init-seconds-before-status-checks": 1}
    settings["set-threads"] = dict.fromkeys(settings["set-threads"], 1)
    settings["default-resources"]["mem_mb"] = 1000
    folder = tmp_path_factory.mktemp("profile")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


class Story:
    """One sweep folder in which steps follow each other; the tests look at what each did."""

    def __init__(self, home: Path, profile: Path) -> None:
        self.home, self.profile = home, profile
        self.folder = home / "runs/tiny"
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        self.codes: dict[str, int] = {}
        self.first, self.shown = [dict[str, Any]()], ""
        self.left: dict[str, list[str]] = {}

    def noted(self) -> list[dict[str, Any]]:
        """What every run of this step has noted of its job."""
        file = self.home / "jobs.txt"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def trainings(self) -> list[str]:
        return [job["SLURM_JOB_ID"] for job in self.noted() if job["run"] == TRAINING]

    def start(self) -> "subprocess.Popen[bytes]":
        """A sweep whose training waits, in a process of its own."""
        begun = len(self.trainings())
        (self.home / "slow").touch()
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, throwaway.__file__, str(self.profile)]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        until(lambda: len(self.trainings()) > begun, 120)
        return process

    def end(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        """Let the training go on, and keep what happened in this step."""
        (self.home / "slow").unlink()
        self.codes[name] = process.wait(timeout=120)
        self.jobs[name], self.left[name] = self.noted(), snakemake.slurm_jobs(self.folder)
        (self.home / "jobs.txt").unlink()
        file = self.home / "notebooks/03_train.ipynb"
        file.write_text(
            file.read_text().replace("train_size = test_size = ", "train_size = test_size = 1")
        )

    def cancel_a_job(self) -> None:
        process = self.start()
        until(lambda: len(self.noted()) == 4, 120)
        self.first, self.shown = self.noted(), say("scontrol", "--oneliner", "show", "job")
        say("scancel", self.trainings()[0])
        until(lambda: len(self.trainings()) == 2, 120)
        self.end("job cancelled", process)

    def kill_the_sweep(self) -> None:
        process = self.start()
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.wait()
        self.left["kill"] = snakemake.slurm_jobs(self.folder)
        self.end("sweep killed", self.start())

    def stop_the_sweep(self) -> None:
        process = self.start()
        process.terminate()
        process.wait(timeout=60)
        self.end("sweep stopped", process)


@pytest.fixture(scope="module")
def story(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    with pytest.MonkeyPatch.context() as monkeypatch:
        home = tmp_path_factory.mktemp("home")
        monkeypatch.setattr(throwaway, "START", throwaway.START + NOTE)
        throwaway.use(monkeypatch, home)
        story = Story(home, profile)
        story.cancel_a_job()
        story.kill_the_sweep()
        story.stop_the_sweep()
    return story


def test_a_training_and_its_pairs_are_a_job_and_a_cancelled_one_is_tried_again(
    story: Story,
) -> None:
    assert story.codes["job cancelled"] == 0
    runs = defaultdict(list)
    for job in story.jobs["job cancelled"]:
        runs[job["SLURM_JOB_ID"]].append(job["run"])
    once, pairs = list(throwaway.RUNS[:3]), list(throwaway.RUNS[4:])
    assert sorted(runs.values()) == sorted([once, [TRAINING], [TRAINING, *pairs]])


def test_jobs_ask_for_a_gpu_each_and_see_their_own(story: Story) -> None:
    asked = [
        re.findall(r"JobId=(\d+)", job)[0]
        for job in story.shown.splitlines()
        if "gres:gpu:1" in job
    ]
    assert set(asked) == {job["SLURM_JOB_ID"] for job in story.first}
    assert {job["CUDA_VISIBLE_DEVICES"] for job in story.first} <= {"0", "1"}
    assert {job["OMP_NUM_THREADS"] for job in story.first} == {"1"}


def test_jobs_of_a_killed_sweep_are_ended_by_the_next_one(story: Story) -> None:
    jobs = story.jobs["sweep killed"]
    assert story.left["kill"] == [jobs[0]["SLURM_JOB_ID"]]
    assert [job["run"] for job in jobs].count(TRAINING) == 2
    assert (story.codes["sweep killed"], story.left["sweep killed"]) == (0, [])


def test_a_stopped_sweep_leaves_no_job(story: Story) -> None:
    assert (story.codes["sweep stopped"], story.left["sweep stopped"]) == (130, [])
    assert [job["run"] for job in story.jobs["sweep stopped"]] == [TRAINING]


def lose_a_node(cluster: one_machine.Cluster, training: Path) -> None:
    """Kill the node of a training once that is at work."""
    until((training / run_state.PROGRESS).exists, 300)
    shown = say("squeue", "--noheader", "--states=RUNNING", "--format=%N %k %j")
    node = next(line.split()[0] for line in shown.splitlines() if training.name in line)
    cluster.kill(node)


def test_results_are_those_of_a_sweep_without_slurm_even_if_a_node_dies(
    profile: Path, cluster: one_machine.Cluster, own_home: Path
) -> None:
    sweep, tables = load_sweep("sweeps/smoke.yml"), list[pd.DataFrame]()
    for each in (snakemake.LOCAL_PROFILE, str(profile)):
        with ThreadPoolExecutor(1) as pool:
            lost = (
                pool.submit(lose_a_node, cluster, own_home / "runs/smoke/train64_seed0")
                if tables
                else None
            )
            assert execution.run_sweep(sweep, 2 if each == snakemake.LOCAL_PROFILE else None, each)
        assert lost is None or lost.result() is None
        tables.append(pd.read_csv(report_folder(sweep.name) / "results.csv").drop(columns=TIMES))
        shutil.move(own_home / "runs/smoke", own_home / f"runs/smoke{len(tables)}")
    assert set(tables[0]["status"]) == {"done"}
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
