import signal
from pathlib import Path

import pytest
import throwaway

from fixres_poc.sweep import snakemake

SHARED = [  # profile, GPUs, cores, seeds, rates, and how a command ends
    ("local", "", 8, 4, [0.1], "threads=1 --cores 8"),
    ("local", "0", 8, 4, [0.1], "threads=8 --cores 8 --resources gpu=1"),
    ("local", "0,1", 8, 4, [0.1], "threads=4 --cores 8 --resources gpu=2"),
    ("local", "", 2, 4, [0.1], "threads=1 --cores 2"),
    ("slurm", "0", None, 4, [0.1], "threads=1"),  # a cluster is not limited to this machine
    ("local", "", 8, 2, [0.1], "threads=2 --cores 8"),
    # later seeds wait for what the first one chooses, and take no cores meanwhile
    ("local", "", 8, 2, [0.1, 0.01], "threads=4 --cores 8"),
    ("local", "", 8, 3, [0.1, 0.01], "threads=2 --cores 8"),
]


@pytest.mark.parametrize(("profile", "gpus", "cores", "seeds", "rates", "limits"), SHARED)
def test_jobs_that_can_be_at_work_at_once_share_cores_and_gpus(
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    gpus: str,
    cores: int | None,
    seeds: int,
    rates: list[float],
    limits: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    sweep = throwaway.tiny(seeds=[*range(seeds)], learning_rate=rates)
    profile = f"profiles/{profile}"
    command = snakemake.command_line(sweep, snakemake.shares(sweep, cores, profile), profile)
    assert command[command.index("--config") + 1 :] == limits.split()


def test_the_first_error_of_snakemake_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "snakemake.log"
    assert snakemake.last_error(log) == "it said nothing"
    log.write_text("Building DAG\nnothing else\n")
    assert snakemake.last_error(log) == "nothing else"
    log.write_text("Building DAG\nMissingInputError in rule job:\n\n  a.json\nan error\n")
    assert snakemake.last_error(log) == "MissingInputError in rule job: a.json"


def test_hang_up_is_only_heard_without_nohup() -> None:
    # these tests may run under nohup themselves
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), snakemake.on_stop_signals(signal.default_int_handler):
        signal.raise_signal(signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with snakemake.on_stop_signals(signal.default_int_handler):
        signal.raise_signal(signal.SIGHUP)
    assert before == signal.SIG_DFL
    signal.signal(signal.SIGHUP, ours)


FOLDER = Path("/home/me/runs/a sweep")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of Slurm's jobs, one a line: its id and its folder."""
    file = tmp_path / "queue"
    programs = {"squeue": f"cat {file}", "scancel": f'for id; do sed -i "/^$id /d" {file}; done'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("time.sleep", lambda _: None)
    file.write_text(f"7 {FOLDER}\n8 {FOLDER}\n9 {FOLDER} 2\n")
    return file


def test_jobs_of_the_folder_end_and_no_others(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = queue.read_text()
    snakemake.cancel_jobs(FOLDER)
    assert queue.read_text() == f"9 {FOLDER} 2\n"
    queue.write_text(jobs)
    queue.with_name("scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(snakemake, "LONGEST_END_S", 0)
    with pytest.raises(RuntimeError, match=f"jobs 7, 8 of {FOLDER} do not end"):
        snakemake.cancel_jobs(FOLDER)
    monkeypatch.setenv("PATH", "/nowhere")
    assert snakemake.slurm_jobs(FOLDER) == []
