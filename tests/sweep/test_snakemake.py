import signal
from pathlib import Path

import pytest
import throwaway

from fixres_poc.sweep import snakemake


@pytest.mark.parametrize(
    ("profile", "gpus", "cores", "limits"),
    [
        ("local", "", 8, "threads=1 --cores 8"),
        ("local", "0", 8, "threads=8 --cores 8 --resources gpu=1"),
        ("local", "0,1", 8, "threads=4 --cores 8 --resources gpu=2"),
        ("local", "", 2, "threads=1 --cores 2"),
        ("slurm", "0", None, "threads=1"),  # a cluster is not limited to this machine
    ],
)
def test_jobs_that_can_be_at_work_at_once_share_cores_and_gpus(
    monkeypatch: pytest.MonkeyPatch, profile: str, gpus: str, cores: int | None, limits: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    sweep = throwaway.tiny(seeds=[0, 1, 2, 3])
    profile = f"profiles/{profile}"
    command = snakemake.command_line(sweep, snakemake.shares(sweep, cores, profile), profile)
    assert command[command.index("--config") + 1 :] == limits.split()


@pytest.mark.parametrize(
    ("values", "threads"),
    [
        ({"seeds": [0, 1]}, 2),
        # the second one waits for what the first chooses
        ({"seeds": [0, 1], "learning_rate": [0.1, 0.01]}, 4),
        ({"seeds": [0, 1, 2], "learning_rate": [0.1, 0.01]}, 2),
    ],
)
def test_who_waits_takes_no_cores(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, object], threads: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert snakemake.shares(throwaway.tiny(**values), 8, "profiles/local").threads == threads


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


def test_jobs_of_the_folder_end_and_no_others(queue: Path) -> None:
    assert snakemake.slurm_jobs(FOLDER) == ["7", "8"]
    snakemake.cancel_jobs(FOLDER)
    assert queue.read_text() == f"9 {FOLDER} 2\n"


def test_jobs_that_do_not_end_are_named(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.with_name("scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(snakemake, "LONGEST_END_S", 0)
    with pytest.raises(RuntimeError, match=f"jobs 7, 8 of {FOLDER} do not end"):
        snakemake.cancel_jobs(FOLDER)


def test_without_slurm_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert snakemake.slurm_jobs(tmp_path) == []
