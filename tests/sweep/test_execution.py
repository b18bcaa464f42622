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

    succeeded: bool
    ran: list[str]
    failed: dict[str, str]
    reports: int


class Story:
    """One sweep folder in which steps follow each other; the tests look at what each step did."""

    def __init__(self, home: Path) -> None:
        self.home, self.sweep = home, throwaway.tiny()
        self.steps: dict[str, Step] = {}
        self.code = 0

    def step(self, name: str, run: Callable[[], bool] | None = None) -> None:
        rendered = self.home / "rendered.txt"
        rendered.write_text("")
        succeeded = run() if run else execution.run_sweep(self.sweep, cores=2)
        reports = len(rendered.read_text().splitlines())
        self.steps[name] = Step(succeeded, throwaway.ran(self.home), failures(self.sweep), reports)

    def edit(self, stem: str, old: str, new: str) -> None:
        file = self.home / "notebooks" / f"{stem}.ipynb"
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

    def kill_snakemake(self) -> bool:
        process = self.start_training()
        next(
            each for each in throwaway.processes() if each.cmdline()[1:3] == ["-m", "snakemake"]
        ).kill()
        code = process.wait(timeout=20)
        return code == 0

    def terminate(self) -> bool:
        process = self.start_training()
        process.terminate()
        self.code = process.wait(timeout=20)
        throwaway.until(lambda: not throwaway.processes())
        return self.code == 0

    def clock_set_back(self) -> bool:
        """What is older looks newer: settings from tomorrow, a training newer than its pairs."""
        tomorrow = time.time() + 86_400
        for file in self.home.glob("runs/tiny/*/settings.json"):
            os.utime(file, (tomorrow, tomorrow))
        os.utime(self.home / "runs/tiny" / TRAINING / "metrics.json", (tomorrow, tomorrow))
        (self.home / "runs/tiny" / PAIRS[1] / "metrics.json").unlink()
        return execution.run_sweep(self.sweep, cores=2)

    def twice_at_once(self) -> bool:
        both = [self.start_training(), self.start()]
        time.sleep(1.5)
        (self.home / "slow").unlink()
        return [process.wait(timeout=60) for process in both] == [0, 0]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    with pytest.MonkeyPatch.context() as monkeypatch:
        home = tmp_path_factory.mktemp("home")
        throwaway.use(monkeypatch, home)
        story = Story(home)
        (home / "broken").touch()
        story.step("first")
        story.step("still broken")
        (home / "broken").unlink()
        story.step("mended")
        story.step("unchanged")
        for file in (home / "notebooks").iterdir():
            file.write_text(file.read_text().replace("Text.", "Other text."))
        story.step("text edited")
        # of someone who opened the executed notebook
        (home / "runs/tiny" / PAIRS[0] / ".ipynb_checkpoints").mkdir()
        story.edit("04_fixres", "train_size = test_size = 0", "train_size = test_size = 1")
        story.step("pair code edited")
        story.edit("03_train", "train_size = test_size = 0", "train_size = test_size = 1")
        story.step("snakemake killed", story.kill_snakemake)
        story.step("terminated", story.terminate)
        story.step("twice at once", story.twice_at_once)
        story.step("clock set back", story.clock_set_back)
    return story


EXPECTED = {
    "first": Step(False, sorted(throwaway.RUNS), BROKEN, 1),
    "still broken": Step(False, [PAIRS[1]], BROKEN, 0),
    "mended": Step(True, [PAIRS[1]], {}, 1),
    "unchanged": Step(True, [], {}, 0),
    "text edited": Step(True, [], {}, 0),
    "pair code edited": Step(True, PAIRS, {}, 1),
    "snakemake killed": Step(False, [TRAINING], KILLED, 1),
    "terminated": Step(False, [TRAINING], {}, 0),
    "twice at once": Step(True, sorted([TRAINING, *PAIRS]), {}, 1),
    "clock set back": Step(True, [PAIRS[1]], {}, 1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sweep_does_what_it_lacks_and_no_more(story: Story, name: str) -> None:
    assert story.steps[name] == EXPECTED[name]


def test_sigterm_stops_everything(story: Story) -> None:
    assert story.code == 130


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    throwaway.use(monkeypatch, tmp_path)
    return tmp_path


def test_snakemake_that_cannot_start_is_quoted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "profile").mkdir()
    (home / "profile/config.yaml").write_text("executor: abacus\n")
    assert not execution.run_sweep(throwaway.tiny(), profile=str(home / "profile"))
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("failed: baseline: ")
    ]
    assert "not done; snakemake: " in line
    assert "abacus" in line


def test_images_changed_meanwhile_make_no_report(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = iter("ab")
    monkeypatch.setattr(execution, "prepare_data", lambda _: next(fingerprints))
    monkeypatch.setattr(execution, "run_snakemake", lambda *_: 0)
    with pytest.raises(
        InputError, match="dataset = 'synthetic': changed while the sweep was at work"
    ):
        execution.run_sweep(throwaway.tiny())
    assert not (home / "reports").exists()


@pytest.fixture
def drawing(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where a sweep ends with an error once it draws images."""
    monkeypatch.setattr(execution, "prepare_data", Mock(side_effect=InterruptedError))
    return home


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weights", "none.pth", r"weights = 'none\.pth': no such file"),
        ("backbone", "timm:regnety_002", r"regnety_002.* set adaptations: \[none, head\]"),
    ],
)
@pytest.mark.usefixtures("drawing")
def test_networks_that_cannot_be_used_are_refused_before_images_are_drawn(
    key: str, value: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        execution.run_sweep(throwaway.tiny(**{key: value}))


@pytest.mark.usefixtures("drawing")
def test_terms_are_said_where_the_weights_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    for backbone in ("efficientnet_lite0", "resnext101_32x48d_wsl"):
        with pytest.raises(InterruptedError):
            execution.run_sweep(throwaway.tiny(backbone=backbone))
    terms = "weights of resnext101_32x48d_wsl: CC BY-NC 4.0: non-commercial use only"
    whole = "tiny: 1 training, 2 pairs in all"
    assert capsys.readouterr().err.splitlines() == [whole, terms, whole]


def test_weights_that_cannot_be_fetched_are_refused_before_images_are_drawn(
    drawing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="timm:resnet18"):
        execution.run_sweep(throwaway.tiny(backbone="timm:resnet18"))
    file = drawing / "resnet18.pt"
    torch.save(backbones.create("timm:resnet18", pretrained=False).state_dict(), file)
    with pytest.raises(InterruptedError):
        execution.run_sweep(throwaway.tiny(backbone="timm:resnet18", weights=str(file)))
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_: str(file))
    with pytest.raises(InterruptedError):
        execution.run_sweep(throwaway.tiny(backbone="timm:resnet18"))


@pytest.mark.usefixtures("home")
def test_too_few_open_files_are_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (48, 48))
    with pytest.raises(InputError, match="ulimit -n = 48"):
        execution.run_sweep(throwaway.tiny())


def test_without_any_pair_the_first_failure_is_the_last_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in throwaway.RUNS[3:]:
        run_state.end(home / "runs/tiny" / name, Failure("error", f"{name}: no"))
    monkeypatch.setattr(execution, "render_if_changed", Mock(side_effect=RuntimeError("no pair")))
    execution.tell(throwaway.tiny(), failures(throwaway.tiny()))
    assert capsys.readouterr().err.splitlines()[-1] == "failed: train64_seed0: train64_seed0: no"
    (home / "runs/tiny" / PAIRS[0] / "error.json").unlink()
    with pytest.raises(RuntimeError, match="no pair"):
        execution.tell(throwaway.tiny(), failures(throwaway.tiny()))


def test_missing_notebook_is_named(home: Path) -> None:
    (home / "notebooks/02_baseline.ipynb").unlink()
    with pytest.raises(InputError, match=r"02_baseline\.ipynb: cannot be read as a notebook"):
        execution.run_sweep(throwaway.tiny())
