"""With stand-ins for squeue and scancel; tests/cluster has the real ones."""

from pathlib import Path

import pytest

from fixres_poc.sweep import snakemake


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of Slurm's jobs, one a line: its id and its folder."""
    file, programs = tmp_path / "queue", tmp_path / "bin"
    programs.mkdir()
    for name, line in {
        "squeue": f"cat {file}",
        "scancel": f'for id; do sed -i "/^$id /d" {file}; done',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr("time.sleep", lambda _: None)
    file.write_text("7 /home/me/runs/a sweep\n8 /home/me/runs/a sweep\n9 /home/me/runs/a sweep 2\n")
    return file


def test_jobs_of_the_folder_end_and_no_others(queue: Path) -> None:
    assert snakemake.slurm_jobs(Path("/home/me/runs/a sweep")) == ["7", "8"]
    snakemake.cancel_jobs(Path("/home/me/runs/a sweep"))
    assert queue.read_text() == "9 /home/me/runs/a sweep 2\n"


def test_jobs_that_do_not_end_are_named(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (queue.parent / "bin/scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(snakemake, "LONGEST_END_S", 0)
    with pytest.raises(RuntimeError, match="jobs 7, 8 of /home/me/runs/a sweep do not end"):
        snakemake.cancel_jobs(Path("/home/me/runs/a sweep"))


def test_without_slurm_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert snakemake.slurm_jobs(tmp_path) == []
    snakemake.cancel_jobs(tmp_path)
