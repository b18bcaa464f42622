import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import throwaway
from typer.testing import CliRunner

from fixres_poc import engine
from fixres_poc.cli import app
from fixres_poc.config import REPOSITORY, InputError, SweepSettings

SMOKE = "sweeps/smoke.yml"


def call(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stderr


def test_help_comes_at_once_and_lists_the_commands() -> None:
    begun = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "fixres_poc", "--help"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert all(name in result.stdout for name in ("sweep", "plan", "data", "run", "report"))
    assert not {"torch", "pandas", "snakemake", "papermill"} & {line.split()[-1] for line in result.stderr.splitlines()}
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", ["sweep", "plan", "data", "run", "report"])
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "sweeps/none.yml"], "sweeps/none.yml: cannot be read as a sweep file (No such file or directory)"),
        (["sweep", SMOKE, "--backbone", "resnet"], f"{SMOKE}: backbone = 'resnet': unknown backbone"),
        (["sweep", SMOKE, "--profile", "profiles/none"], "profile = 'profiles/none': no folder"),
        (["data", SMOKE, "--dataset", ""], f"{SMOKE}: dataset = ''"),
        (["plan", SMOKE, "--memory", "16 apples"], "memory = '16 apples': allowed is a number of GiB"),
        (["run", "none/settings.json"], "none/settings.json: cannot be read as a settings file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    code, text = call(*arguments)
    assert code == 2
    assert text.startswith(f"error: {message}")
    assert text.count("\n") == 1


def test_missing_argument_is_wrong_use() -> None:
    code, text = call("sweep")
    assert code == 2
    assert "Missing" in text


def test_wrong_folder_stops_a_sweep_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(sweep: SweepSettings) -> str:
        raise InputError(f"dataset = {sweep.dataset!r}: no such folder")

    monkeypatch.setattr(engine, "prepare_data", refuse)
    assert call("sweep", SMOKE, "--dataset", "none") == (2, "error: dataset = 'none': no such folder\n")


def test_unexpected_error_is_one_line_and_its_traceback_is_kept(
    monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    def break_down(sweep: SweepSettings) -> str:
        raise OSError("disk\nfull")

    monkeypatch.setattr(engine, "prepare_data", break_down)
    log = own_home / "runs/error.log"
    assert call("data", SMOKE) == (1, f"error: OSError: disk full; traceback in {log}\n")
    assert "break_down" in log.read_text()


def test_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(sweep: SweepSettings) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "prepare_data", interrupt)
    assert call("data", SMOKE) == (130, "stopped; the same command goes on from here\n")


def test_overrides_reach_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run_sweep(sweep: SweepSettings, cores: int | None, profile: str) -> bool:
        seen.extend([sweep.name, sweep.dataset, sweep.backbone, sweep.weights, cores, profile])
        return False

    monkeypatch.setattr(engine, "run_sweep", run_sweep)
    arguments = ["--dataset", "a b", "--backbone", "timm:resnet18", "--weights", "w.pth"]
    arguments += ["--cores", "3", "--profile", "profiles/slurm"]
    assert call("sweep", SMOKE, *arguments)[0] == 1
    assert seen == ["smoke-a-b", "a b", "timm:resnet18", "w.pth", 3, "profiles/slurm"]


def test_failed_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(tmp_path))
    throwaway.write_notebook(tmp_path / "00_state_of_the_art.ipynb", "x = 1", "print(undefined)")
    file = tmp_path / "a_run" / "settings.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"notebook": "00_state_of_the_art", "parameters": {}}))
    assert call("run", str(file)) == (1, "failed: a_run: NameError: name 'undefined' is not defined\n")


@pytest.mark.parametrize("file", sorted((REPOSITORY / "sweeps").glob("*.yml")), ids=lambda file: file.stem)
def test_sweep_files_are_valid_and_their_headers_name_their_command(file: Path) -> None:
    from fixres_poc.reading import load_sweep

    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    commands = [line for line in header if line.startswith("#   make sweep")]
    assert load_sweep(file).runs()
    assert len(commands) == 1
    assert file.name in commands[0] or file.stem in ("demo", "pictures")
