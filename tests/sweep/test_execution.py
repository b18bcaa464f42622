import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
import throwaway
import torch

from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure, InputError
from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.run_state import failures
from fixres_poc.model import backbones
from fixres_poc.sweep import execution

PAIRS = ["train64_test64_seed0", "train64_test96_seed0"]
TRAINING = "train64_seed0"
BROKEN = {PAIRS[1]: "test_size = 96: broken"}
KILLED = {
    TRAINING: "ended without a word: killed?",
    **dict.fromkeys(PAIRS, f"not run, because {TRAINING} failed"),
}


@dataclass
class Step:
    """What one call of a sweep did."""

    code: int
    ran: list[str]
    failed: dict[str, str]
    reports: int


class Story:
    """One sweep folder in which steps follow each other; the tests look at what each step did."""

    def __init__(self, home: Path) -> None:
        self.home, self.runs, self.sweep = home, home / "runs/tiny", throwaway.tiny()
        self.steps: dict[str, Step] = {}

    def step(self, name: str, run: Callable[[], int] | None = None) -> None:
        rendered = self.home / "rendered.txt"
        rendered.write_text("")
        code = run() if run else not execution.run_sweep(self.sweep, cores=2)
        reports = len(rendered.read_text().splitlines())
        self.steps[name] = Step(code, throwaway.ran(self.home), failures(self.sweep), reports)

    def edit(self, stem: str, old: str, new: str) -> None:
        for file in (self.home / "notebooks").glob(f"{stem}.ipynb"):
            file.write_text(file.read_text().replace(old, new))

    def start(self) -> "subprocess.Popen[bytes]":
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.Popen(
            [sys.executable, throwaway.__file__], env=environment, start_new_session=True
        )

    def start_training(self) -> "subprocess.Popen[bytes]":
        (self.home / "slow").touch()
        process = self.start()
        throwaway.until(lambda: (self.home / "ran.txt").exists())
        return process

    def kill_snakemake(self) -> int:
        process = self.start_training()
        commands = {tuple(each.cmdline()[1:3]): each for each in throwaway.processes()}
        commands["-m", "snakemake"].kill()
        return process.wait(timeout=240)

    def terminate(self) -> int:
        process = self.start_training()
        process.terminate()
        code = process.wait(timeout=240)
        throwaway.until(lambda: not throwaway.processes())
        return code

    def clock_set_back(self) -> int:
        """What is older looks newer: settings from tomorrow, a training newer than its pairs."""
        tomorrow = time.time() + 86_400
        for file in (*self.runs.glob("*/settings.json"), self.runs / TRAINING / "metrics.json"):
            os.utime(file, (tomorrow, tomorrow))
        (self.runs / PAIRS[1] / "metrics.json").unlink()
        return not execution.run_sweep(self.sweep, cores=2)

    def twice_at_once(self) -> int:
        both = [self.start_training(), self.start()]
        time.sleep(1.5)
        (self.home / "slow").unlink()
        return max(process.wait(timeout=240) for process in both)


EXPECTED = {
    "first": Step(1, sorted(throwaway.RUNS), BROKEN, 1),
    "mended": Step(0, [PAIRS[1]], {}, 1),
    "text edited": Step(0, [], {}, 0),
    "pair code edited": Step(0, PAIRS, {}, 1),
    "snakemake killed": Step(1, [TRAINING], KILLED, 1),
    "terminated": Step(130, [TRAINING], {}, 0),
    "twice at once": Step(0, sorted([TRAINING, *PAIRS]), {}, 1),
    "clock set back": Step(0, [PAIRS[1]], {}, 1),
}


def test_jobs_start_by_seed_and_the_largest_train_resolution_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwaway.use(monkeypatch, tmp_path)
    sweep = throwaway.tiny(pairs=[[32, 48], [64, 80]], seeds=[1, 0])
    assert execution.run_sweep(sweep, cores=1)
    began = (tmp_path / "ran.txt").read_text().split()
    jobs = ["train64_seed1", "train32_seed1", "state_of_the_art", "train64_seed0", "train32_seed0"]
    assert [name for name in began if name in jobs] == jobs


def test_a_pair_that_fails_stops_no_later_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwaway.use(monkeypatch, tmp_path)
    (tmp_path / "broken").touch()
    sweep = throwaway.tiny(seeds=[0, 1], learning_rate=[0.01, 0.1])  # seed 1 takes seed 0's choice
    assert not execution.run_sweep(sweep, cores=2)
    assert throwaway.ran(tmp_path) == sorted(run.name for run in sweep.runs())
    assert set(failures(sweep)) == {PAIRS[1], PAIRS[1].replace("seed0", "seed1")}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    with pytest.MonkeyPatch.context() as monkeypatch:
        home = tmp_path_factory.mktemp("home")
        throwaway.use(monkeypatch, home)
        story = Story(home)
        (home / "broken").touch()
        story.step("first")
        (home / "broken").unlink()
        story.step("mended")
        story.edit("*", "Text.", "Other text.")
        story.step("text edited")
        # of someone who opened the executed notebook
        (story.runs / PAIRS[0] / ".ipynb_checkpoints").mkdir()
        story.edit("04_fixres", "test_size = 0", "test_size = 1")
        story.step("pair code edited")
        story.edit("03_train", "test_size = 0", "test_size = 1")
        story.step("snakemake killed", story.kill_snakemake)
        story.step("terminated", story.terminate)
        story.step("twice at once", story.twice_at_once)
        story.step("clock set back", story.clock_set_back)
    return story


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sweep_does_what_it_lacks_and_no_more(story: Story, name: str) -> None:
    assert story.steps[name] == EXPECTED[name]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    throwaway.use(monkeypatch, tmp_path)
    return tmp_path


def test_snakemake_that_cannot_start_is_quoted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "config.yaml").write_text("executor: abacus\n")
    assert not execution.run_sweep(throwaway.tiny(), profile=str(home))
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if line.startswith("failed: baseline: ")]
    assert "not done; snakemake: " in line
    assert "abacus" in line


def test_images_changed_meanwhile_make_no_report(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "prepare_data", Mock(side_effect=["a", "b"]))
    monkeypatch.setattr(execution, "run_snakemake", Mock())
    with pytest.raises(InputError, match="dataset = 'synthetic': changed while the sweep was at"):
        execution.run_sweep(throwaway.tiny())
    assert not (home / "reports").exists()


@pytest.fixture
def drawing(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where a sweep ends with an error once it draws images."""
    monkeypatch.setattr(execution, "prepare_data", Mock(side_effect=InterruptedError))
    return home


def draws(**values: object) -> None:
    with pytest.raises(InterruptedError):
        execution.run_sweep(throwaway.tiny(**values))


def refused(message: str, **values: object) -> None:
    with pytest.raises(InputError, match=message):
        execution.run_sweep(throwaway.tiny(**values))


@pytest.mark.usefixtures("drawing")
def test_what_cannot_be_used_is_refused_before_images_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused(r"weights = 'none\.pth': no such file", weights="none.pth")
    refused(r"regnety_002.* set adaptations: \[none, head\]", backbone="timm:regnety_002")
    monkeypatch.setattr("resource.getrlimit", lambda _: (48, 48))
    refused("ulimit -n = 48")


def test_a_list_that_cannot_be_read_is_refused_before_any_run(home: Path) -> None:
    (home / "list.txt").write_text("no name of ImageNet's\n")
    refused("no name like n02088364_1234", imagenet_list=str(home / "list.txt"))
    assert not throwaway.ran(home)


def test_missing_notebook_is_named(home: Path) -> None:
    (home / "notebooks/02_baseline.ipynb").unlink()
    refused(r"02_baseline\.ipynb: cannot be read as a notebook")


@pytest.mark.usefixtures("drawing")
def test_terms_are_said_where_the_weights_are_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.pt"
    torch.save(backbones.create("efficientnet_lite0").state_dict(), own)
    draws()
    draws(backbone="resnext101_32x48d_wsl")
    draws(weights=str(own))
    terms = "CC BY-NC 4.0: non-commercial use only"
    assert capsys.readouterr().err.splitlines() == [
        f"weights of resnext101_32x48d_wsl: {terms}",
        f"weights {own}: the terms of that file hold (if it is one of FixRes or WSL, {terms})",
    ]


def test_weights_that_cannot_be_fetched_are_refused_before_images_are_drawn(
    drawing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, file = "timm:resnet18", drawing / "resnet18.pt"
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(name, backbone=name)
    torch.save(backbones.create(name, pretrained=False).state_dict(), file)
    draws(backbone=name, weights=str(file))
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_: str(file))
    draws(backbone=name)


def test_without_any_pair_the_first_failure_is_the_last_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {name: "no" for name in throwaway.RUNS[3:]}
    for name, message in failed.items():
        run_state.end(home / "runs/tiny" / name, Failure("error", message))
    monkeypatch.setattr(execution, "render_if_changed", Mock(side_effect=RuntimeError("no pair")))
    execution.tell(sweep := throwaway.tiny(), failed)
    assert capsys.readouterr().err.splitlines()[-1] == "failed: train64_seed0: no"
    (home / "runs/tiny" / PAIRS[0] / "error.json").unlink()
    with pytest.raises(RuntimeError, match="no pair"):
        execution.tell(sweep, failures(sweep))
