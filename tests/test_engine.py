import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import throwaway

from fixres_poc import engine
from fixres_poc.config import REPOSITORY, InputError, SweepSettings
from fixres_poc.reading import validate
from fixres_poc.runner import OUTPUTS

PAIRS = ["train64_test64_seed0", "train64_test96_seed0"]
TRAINING = "train64_seed0"


@dataclass
class Step:
    """What one call of a sweep did."""

    succeeded: bool
    ran: list[str]
    failed: dict[str, str]
    reports: int
    seconds: float


class Story:
    """One sweep folder in which steps follow each other; the tests look at what each step did."""

    def __init__(self, home: Path) -> None:
        self.home, self.sweep = home, throwaway.settings()
        self.steps: dict[str, Step] = {}
        self.code, self.seconds_to_stop = 0, 0.0

    def ran(self) -> list[str]:
        file = self.home / "ran.txt"
        names = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return sorted(names)

    def step(self, name: str, run: Callable[[], bool] | None = None) -> None:
        page, begun = self.home / "reports/tiny/index.html", time.monotonic()
        reports = len(page.read_text().splitlines()) if page.exists() else 0
        succeeded = run() if run else engine.run_sweep(self.sweep, cores=2)
        seconds = time.monotonic() - begun
        reports = len(page.read_text().splitlines()) - reports
        self.steps[name] = Step(succeeded, self.ran(), engine.failures(self.sweep), reports, seconds)

    def edit(self, stem: str, old: str, new: str) -> None:
        file = self.home / "notebooks" / f"{stem}.ipynb"
        file.write_text(file.read_text().replace(old, new))

    def start(self) -> "subprocess.Popen[bytes]":
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.Popen([sys.executable, throwaway.__file__], env=environment, start_new_session=True)

    def start_training(self) -> "subprocess.Popen[bytes]":
        (self.home / "slow").touch()
        process = self.start()
        until(lambda: (self.home / "ran.txt").exists())
        return process

    def kill_snakemake(self) -> bool:
        process = self.start_training()
        next(each for each in throwaway.processes() if "snakemake" in each.cmdline()).kill()
        code = process.wait(timeout=20)
        return code == 0

    def terminate(self) -> bool:
        process = self.start_training()
        begun = time.monotonic()
        process.terminate()
        self.code = process.wait(timeout=20)
        until(lambda: not throwaway.processes())
        self.seconds_to_stop = time.monotonic() - begun
        return self.code == 0

    def clock_set_back(self) -> bool:
        """What is older looks newer: settings are from tomorrow, the training is newer than its pairs."""
        tomorrow = time.time() + 86_400
        for file in self.home.glob("runs/tiny/*/settings.json"):
            os.utime(file, (tomorrow, tomorrow))
        os.utime(self.home / "runs/tiny" / TRAINING / "metrics.json", (tomorrow, tomorrow))
        (self.home / "runs/tiny" / PAIRS[1] / "metrics.json").unlink()
        return engine.run_sweep(self.sweep, cores=2)

    def twice_at_once(self) -> bool:
        both = [self.start_training(), self.start()]
        time.sleep(1.5)
        (self.home / "slow").unlink()
        return [process.wait(timeout=60) for process in both] == [0, 0]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


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
        (home / "runs/tiny" / PAIRS[0] / ".ipynb_checkpoints").mkdir()  # of someone who opened the executed notebook
        story.edit("04_fixres", "train_size = test_size = 0", "train_size = test_size = 1")
        story.step("pair code edited")
        story.edit("03_train", "train_size = test_size = 0", "train_size = test_size = 1")
        story.step("snakemake killed", story.kill_snakemake)
        story.step("terminated", story.terminate)
        story.step("twice at once", story.twice_at_once)
        story.step("clock set back", story.clock_set_back)
    return story


def test_failed_pair_stops_no_other(story: Story) -> None:
    assert story.steps["first"].ran == sorted(throwaway.RUNS)
    assert story.steps["first"].failed == {PAIRS[1]: "test_size = 96: broken"}


def test_sweep_with_a_failed_run_fails_after_its_report(story: Story) -> None:
    assert not story.steps["first"].succeeded
    assert story.steps["first"].reports == 1


def test_failed_run_is_tried_again_but_the_same_report_is_not_made_again(story: Story) -> None:
    assert story.steps["still broken"].ran == [PAIRS[1]]
    assert story.steps["still broken"].reports == 0


def test_mended_sweep_runs_only_what_had_failed(story: Story) -> None:
    step = story.steps["mended"]
    assert (step.succeeded, step.ran, step.failed, step.reports) == (True, [PAIRS[1]], {}, 1)


@pytest.mark.parametrize("name", ["unchanged", "text edited"])
def test_nothing_runs_where_no_code_changed(story: Story, name: str) -> None:
    step = story.steps[name]
    assert (step.succeeded, step.ran, step.reports) == (True, [], 0)
    assert step.seconds < 8


def test_edited_code_runs_again(story: Story) -> None:
    step = story.steps["pair code edited"]
    assert (step.succeeded, step.ran, step.reports) == (True, PAIRS, 1)


def test_killed_snakemake_leaves_errors_and_no_outdated_result(story: Story) -> None:
    step = story.steps["snakemake killed"]
    assert not step.succeeded
    assert step.failed[TRAINING] == "ended without a word: killed?"
    assert {step.failed[pair] for pair in PAIRS} == {f"not run, because {TRAINING} failed"}


def test_sigterm_stops_everything_within_five_seconds(story: Story) -> None:
    assert story.code == 130
    assert story.seconds_to_stop < 5
    assert story.steps["terminated"].ran == [TRAINING]


def test_two_at_once_take_turns_and_go_on_where_the_killed_ones_were(story: Story) -> None:
    step = story.steps["twice at once"]
    assert (step.succeeded, step.ran, step.failed, step.reports) == (True, sorted([TRAINING, *PAIRS]), {}, 1)


def test_age_of_files_does_not_count(story: Story) -> None:
    step = story.steps["clock set back"]
    assert (step.succeeded, step.ran, step.reports) == (True, [PAIRS[1]], 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    throwaway.use(monkeypatch, tmp_path)
    return tmp_path


def lay_out(home: Path, fingerprint: str = "a", **values: object) -> dict[str, float]:
    """Lay a sweep out, do what its runs would, and tell when each of its settings files was written."""
    sweep = validate(SweepSettings, throwaway.SWEEP | values, "tiny.yml")
    engine._lay_out(sweep, fingerprint)
    for run in sweep.runs():
        for file in OUTPUTS[run.notebook]:
            made = home / "runs/tiny" / run.name / file
            made.write_text(made.read_text() if made.exists() else "{}")
    return {file.parent.name: file.stat().st_mtime_ns for file in home.glob("runs/tiny/*/settings.json")}


def test_settings_file_says_what_decides_a_run(home: Path) -> None:
    lay_out(home)
    content = json.loads((home / "runs/tiny/train64_test96_seed0/settings.json").read_text())
    assert sorted(content) == ["code", "data", "library", "notebook", "parameters", "version"]
    assert (content["notebook"], content["parameters"]["test_size"]) == ("04_fixres", 96)


def test_edited_library_code_makes_every_run_outdated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(home)
    made = home / "runs/tiny/baseline/metrics.json"
    made.write_text('{"made": "by the old code"}')
    lay_out(home)
    assert made.read_text() != "{}"
    monkeypatch.setattr(engine, "library_hash", lambda: "0" * 16)
    lay_out(home)
    assert made.read_text() == "{}"


def test_settings_files_are_only_written_when_they_change(home: Path) -> None:
    assert lay_out(home) == lay_out(home)
    changed = lay_out(home, adapt_epochs=3)
    assert {name for name, written in lay_out(home).items() if written == changed[name]} == {
        "state_of_the_art",
        "dataset",
        "baseline",
    }


def test_other_pictures_change_every_run(home: Path) -> None:
    before, after = lay_out(home, "a"), lay_out(home, "b")
    assert all(after[name] > before[name] for name in throwaway.RUNS)


def test_another_weights_file_at_the_same_path_changes_the_runs_that_use_it(home: Path) -> None:
    file = home / "weights.pth"
    file.write_text("a")
    before = lay_out(home, weights=str(file))
    assert lay_out(home, weights=str(file)) == before
    file.write_text("b")
    after = lay_out(home, weights=str(file))
    assert {name for name in after if after[name] == before[name]} == {"state_of_the_art", "dataset"}


def test_outdated_training_takes_its_pairs_with_it(home: Path) -> None:
    lay_out(home)
    notebook = home / "notebooks/03_train.ipynb"
    notebook.write_text(notebook.read_text().replace("slow", "quick"))
    engine._lay_out(throwaway.settings(), "a")
    left = {file.parent.name for file in home.glob("runs/tiny/*/metrics.json")}
    assert left == {"state_of_the_art", "dataset", "baseline"}


def test_half_done_run_is_not_taken_for_done(home: Path) -> None:
    lay_out(home)
    (home / "runs/tiny/baseline/progress.log").touch()
    engine._lay_out(throwaway.settings(), "a")
    assert not (home / "runs/tiny/baseline/metrics.json").exists()


def test_damaged_results_and_what_killed_writers_left_are_taken_away(home: Path) -> None:
    lay_out(home)
    folder = home / "runs/tiny/baseline"
    written = {"predictions_sha256": hashlib.sha256(b"whole").hexdigest()}
    (folder / "metrics.json").write_text(json.dumps(written))
    (folder / "predictions.parquet").write_bytes(b"whole")
    engine._lay_out(throwaway.settings(), "a")
    assert (folder / "metrics.json").exists()
    (folder / "predictions.parquet").write_bytes(b"whold")
    (folder / ".checkpoint.safetensors.x").touch()
    (home / "runs/tiny/dataset/metrics.json").write_text('{"half": ')
    engine._lay_out(throwaway.settings(), "a")
    assert [file.name for file in folder.iterdir()] == ["settings.json"]
    assert not (home / "runs/tiny/dataset/metrics.json").exists()


def test_snakemake_that_cannot_start_is_quoted(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "profile").mkdir()
    (home / "profile/config.yaml").write_text("executor: abacus\n")
    assert not engine.run_sweep(throwaway.settings(), profile=str(home / "profile"))
    lines = capsys.readouterr().err.splitlines()
    failed = [line for line in lines if line.startswith("failed: baseline: ")]
    assert failed
    assert "not done; snakemake: " in failed[0]
    assert "abacus" in failed[0]


def test_pictures_changed_meanwhile_make_no_report(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = iter("ab")
    monkeypatch.setattr(engine, "prepare_data", lambda sweep: next(fingerprints))
    monkeypatch.setattr(engine, "_run_snakemake", lambda *_: 0)
    with pytest.raises(InputError, match="dataset = 'synthetic': changed while the sweep was at work"):
        engine.run_sweep(throwaway.settings())
    assert not (home / "reports").exists()


def test_failed_report_is_made_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(home)
    page = engine._report(throwaway.settings())
    assert engine._report(throwaway.settings()) == page
    page.unlink()

    def fail(sweep: SweepSettings) -> Path:
        page.write_text("half")
        raise RuntimeError

    monkeypatch.setattr(engine, "render", fail)
    with pytest.raises(RuntimeError):
        engine._report(throwaway.settings())
    monkeypatch.setattr(engine, "render", throwaway.render)
    engine._report(throwaway.settings())
    assert page.read_text() != "half"


def test_hang_up_is_only_heard_without_nohup() -> None:
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    with pytest.raises(KeyboardInterrupt), engine._on_stop_signals(engine._interrupt):
        signal.raise_signal(signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with engine._on_stop_signals(engine._interrupt):
        signal.raise_signal(signal.SIGHUP)
    assert before == signal.SIG_DFL
    signal.signal(signal.SIGHUP, ours)


def test_missing_weights_are_refused_before_pictures_are_drawn(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "prepare_data", lambda sweep: pytest.fail("drawn"))
    with pytest.raises(InputError, match=r"weights = 'none\.pth': no such file"):
        engine.run_sweep(throwaway.settings().model_copy(update={"weights": "none.pth"}))


def test_unfit_networks_are_refused_before_pictures_are_drawn(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "prepare_data", lambda sweep: pytest.fail("drawn"))
    with pytest.raises(InputError, match=r"regnety_002.* set adaptations: \[none, head\]"):
        engine.run_sweep(throwaway.settings().model_copy(update={"backbone": "timm:regnety_002"}))


def test_terms_are_said_where_the_weights_are_chosen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for backbone in ("efficientnet_lite0", "resnext101_32x48d_wsl"):
        engine._check_model(throwaway.settings().model_copy(update={"backbone": backbone}))
    expected = "weights of resnext101_32x48d_wsl: CC BY-NC 4.0: non-commercial use only\n"
    assert capsys.readouterr().err == expected


def test_missing_notebook_is_named(home: Path) -> None:
    (home / "notebooks/02_baseline.ipynb").unlink()
    with pytest.raises(InputError, match=r"02_baseline\.ipynb: cannot be read as a notebook"):
        engine.run_sweep(throwaway.settings())


@pytest.mark.parametrize(
    ("cards", "cores", "threads", "limit"),
    [("", 8, 4, None), ("0", 8, 4, "gpu=1"), ("0,1,2,3", 8, 2, "gpu=4"), ("", 1, 1, None)],
)
def test_runs_share_cores_and_gpus(
    monkeypatch: pytest.MonkeyPatch, cards: str, cores: int, threads: int, limit: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    command = engine._command(Path("runs/tiny"), cores, "profiles/local")
    assert f"threads={threads}" in command
    assert (limit in command) if limit else ("--resources" not in command)


def test_a_cluster_is_not_limited_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    command = engine._command(Path("runs/tiny"), None, "profiles/slurm")
    assert "--resources" not in command
    assert "--cores" not in command
