import signal

import pytest
import throwaway

from fixres_poc.sweep import snakemake


@pytest.mark.parametrize(
    ("profile", "gpus", "cores", "threads", "resources"),
    [
        ("local", "", 8, 2, []),
        ("local", "0", 8, 8, ["--resources", "gpu=1"]),
        ("local", "0,1", 8, 4, ["--resources", "gpu=2"]),
        ("local", "", 2, 1, []),
        ("slurm", "0", None, 1, []),  # a cluster is not limited to this machine
    ],
)
def test_trainings_that_can_be_at_work_at_once_share_cores_and_gpus(
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    gpus: str,
    cores: int | None,
    threads: int,
    resources: list[str],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    sweep = throwaway.tiny(seeds=[0, 1, 2, 3])
    command = snakemake.command_line(sweep, cores, f"profiles/{profile}")
    limits = command[command.index("--config") + 1 :]
    assert limits == [f"threads={threads}", *(["--cores", str(cores)] if cores else []), *resources]


@pytest.mark.parametrize(
    ("values", "threads"),
    [
        ({}, 8),  # one training has all cores, its pairs after it
        ({"seeds": [0, 1]}, 4),
        # the second one waits for what the first chooses
        ({"seeds": [0, 1], "learning_rate": [0.1, 0.01]}, 8),
        ({"seeds": [0, 1, 2], "learning_rate": [0.1, 0.01]}, 4),
    ],
)
def test_who_waits_takes_no_cores(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, object], threads: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = snakemake.command_line(throwaway.tiny(**values), 8, "profiles/local")
    assert f"threads={threads}" in command


def test_hang_up_is_only_heard_without_nohup() -> None:
    # these tests may run under nohup themselves
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), snakemake.on_stop_signals(snakemake.interrupt):
        signal.raise_signal(signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with snakemake.on_stop_signals(snakemake.interrupt):
        signal.raise_signal(signal.SIGHUP)
    assert before == signal.SIG_DFL
    signal.signal(signal.SIGHUP, ours)
