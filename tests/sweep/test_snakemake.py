import signal
from pathlib import Path

import pytest

from fixres_poc.sweep import snakemake


@pytest.mark.parametrize(
    ("profile", "gpus", "cores", "threads", "resources"),
    [
        ("local", "", 8, 4, []),
        ("local", "0", 8, 4, ["--resources", "gpu=1"]),
        ("local", "0,1,2,3", 8, 2, ["--resources", "gpu=4"]),
        ("local", "", 1, 1, []),
        ("slurm", "0", None, 1, []),  # a cluster is not limited to this machine
    ],
)
def test_runs_share_cores_and_gpus(
    monkeypatch: pytest.MonkeyPatch, profile: str, gpus: str, cores: int | None, threads: int, resources: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    command = snakemake.command_line(Path("runs/tiny"), cores, f"profiles/{profile}")
    limits = command[command.index("--config") + 1 :]
    assert limits == [f"threads={threads}", *(["--cores", str(cores)] if cores else []), *resources]


def test_hang_up_is_only_heard_without_nohup() -> None:
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    with pytest.raises(KeyboardInterrupt), snakemake.on_stop_signals(snakemake.interrupt):
        signal.raise_signal(signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with snakemake.on_stop_signals(snakemake.interrupt):
        signal.raise_signal(signal.SIGHUP)
    assert before == signal.SIG_DFL
    signal.signal(signal.SIGHUP, ours)
