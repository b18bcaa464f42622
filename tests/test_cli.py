import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import small_run
import throwaway
import typer
from typer.testing import CliRunner, Result

from fixres_poc.cli import app, application
from fixres_poc.cli.sweeps import memory_bytes
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY, home
from fixres_poc.inference.export import Exported
from fixres_poc.sweep import execution
from fixres_poc.sweep.snakemake import LOCAL_PROFILE

SMOKE = "sweeps/smoke.yml"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture
def run(own_home: Path) -> str:
    """Folder of a finished pair."""
    assert small_run.make().is_relative_to(own_home)
    return str(own_home / "runs/tiny/train48_test64_seed0")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def call(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    result = invoke(*arguments)
    return result.exit_code, result.stderr


def said(*arguments: str) -> str:
    """What a command that succeeds prints."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def printed(*arguments: str) -> Any:
    """What a command prints for programs."""
    return json.loads(said(*arguments, "--json"))


def test_help_comes_at_once_and_lists_the_commands() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fixres_poc", "--help"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert all(name in result.stdout for name in COMMANDS)
    assert "..." not in result.stdout.partition("Commands:")[2], "a line is cut off"
    assert not {"torch", "pandas", "snakemake", "papermill"} & {
        line.split()[-1] for line in result.stderr.splitlines()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_is_right(name: str) -> None:
    result = invoke(name, "--help")
    assert "Usage" in result.stdout
    words = result.stdout.split("Example:")[1].split()
    given = words[words.index(name) + 1 :]
    parsed = COMMANDS[name].make_context(name, given)
    assert all(not str(value).startswith("--") for value in parsed.params.values())


NO_RUN = "run = '{}/runs/none': no finished training or pair there"
WRONG = {  # a command, and how its error begins; {} is the working folder
    "sweep sweeps/none.yml": "{}/sweeps/none.yml: cannot be read as a sweep file (No such file",
    f"sweep {SMOKE} --backbone resnet": f"{{}}/{SMOKE}: backbone = 'resnet': unknown backbone",
    f"sweep {SMOKE} --profile profiles/none": "profile = '{}/profiles/none': no folder",
    f"data {SMOKE} --dataset=": f"{{}}/{SMOKE}: dataset = ''",
    f"plan {SMOKE} --memory 16apples": "memory = '16apples': allowed is a number of GiB",
    "audit none": "dataset '",
    "audit sweeps/none.yml": "{}/sweeps/none.yml: cannot be read",
    "evaluate runs/none": NO_RUN,
    "export runs/none --output x.onnx": NO_RUN,
    "predict x.jpg": "no sweep in ",
    "predict x.jpg --run runs/a --sweep b": "run and sweep: give one of the two",
    "run none/settings.json": "{}/none/settings.json: cannot be read as a settings file",
}


@pytest.mark.parametrize(("command", "message"), WRONG.items())
def test_wrong_input_is_one_line_and_exit_code_2(command: str, message: str) -> None:
    code, text = call(*command.split())
    assert code == 2
    assert text.startswith(f"error: {message.format(Path.cwd())}")
    assert text.count("\n") == 1


@pytest.mark.parametrize(("text", "gib"), [("16GiB", 16), ("16 GB", 16), ("0.5g", 0.5), ("80", 80)])
def test_memory_is_read_as_gib(text: str, gib: float) -> None:
    assert memory_bytes(text) == gib * 2**30


@pytest.mark.parametrize("text", ["apples", "16 MiB", "-1GiB"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="allowed is a number of GiB"):
        memory_bytes(text)


def test_missing_argument_is_wrong_use() -> None:
    code, text = call("sweep")
    assert (code, "Missing" in text) == (2, True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            InputError("dataset = 'x': no such folder"),
            (2, "error: dataset = 'x': no such folder\n"),
        ),
        (KeyboardInterrupt(), (130, "stopped; run the same command again to resume\n")),
        (OSError("disk\nfull"), (1, "error: OSError: disk full; traceback in {log}\n")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_one_line_and_a_traceback_is_kept_of_unexpected_ones(
    monkeypatch: pytest.MonkeyPatch, own_home: Path, error: BaseException, expected: tuple[int, str]
) -> None:
    def break_down(_: object) -> str:
        raise error

    monkeypatch.setattr(execution, "prepare_data", break_down)
    log = own_home / "runs/error.log"
    assert call("data", SMOKE) == (expected[0], expected[1].format(log=log))
    assert (log.exists() and "break_down" in log.read_text()) == (expected[0] == 1)


OPTIONS = {
    "DATASET": "a b",
    "BACKBONE": "timm:resnet18",
    "WEIGHTS": "w.pth",
    "CORES": "3",
    "PROFILE": "profiles/slurm",
}


@pytest.mark.parametrize("way", ["options", "environment", "both"])
def test_overrides_reach_the_sweep(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """`make` gives them as environment variables; an option on the command line wins."""
    run_sweep = Mock(return_value=False)
    monkeypatch.setattr(execution, "run_sweep", run_sweep)
    arguments = [SMOKE, "--replace", *(f"--{k.lower()}={v}" for k, v in OPTIONS.items())]
    variables = OPTIONS | {"SWEEP": SMOKE, "REPLACE": "1"}
    other = dict.fromkeys(variables, "7")
    for name, value in {"options": {}, "environment": variables, "both": other}[way].items():
        monkeypatch.setenv(f"FIXRES_{name}", value)
    assert call("sweep", *([] if way == "environment" else arguments))[0] == 1
    sweep, *others = run_sweep.call_args.args
    here = str(REPOSITORY)
    assert others == [3, f"{here}/profiles/slurm", True]
    assert sweep.name == "smoke-a-b-resnet18-w.pth"
    named = (sweep.dataset, sweep.backbone, sweep.weights)
    assert named == (f"{here}/a b", "timm:resnet18", f"{here}/w.pth")


def test_empty_variables_of_make_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "run_sweep", run_sweep := Mock(return_value=True))
    for name in (*OPTIONS, "REPLACE"):
        monkeypatch.setenv(f"FIXRES_{name}", "")
    said("sweep", SMOKE)
    assert run_sweep.call_args.args[0].name == "smoke"
    assert run_sweep.call_args.args[1:] == (None, LOCAL_PROFILE, False)


def test_names_to_compare_and_a_reports_folder_come_from_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, rebuild = Mock(), Mock()
    monkeypatch.setattr("fixres_poc.report.overview.compare", compare)
    monkeypatch.setattr("fixres_poc.sweep.reporting.rebuild", rebuild)
    for name, value in {"SWEEPS": "a b", "FROM": str(tmp_path), "SWEEP": SMOKE}.items():
        monkeypatch.setenv(f"FIXRES_{name}", value)
    said("compare")
    said("report")
    compare.assert_called_once_with(["a", "b"])
    rebuild.assert_called_once_with(tmp_path)


def test_paths_of_the_command_line_are_relative_to_the_working_folder(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(colour_folder.parent)
    shutil.copytree(colour_folder, "synthetic")
    Path("birds.yml").write_text(f"dataset: {colour_folder}\npairs: [[64, 96]]\n")
    for option in ((), ("--dataset", "colours")):
        assert said("data", "birds.yml", *option).startswith("birds:"), (
            "the same folder, however it is written"
        )
    assert str(colour_folder.parent / "synthetic") in said(
        "data", "birds.yml", "--dataset", "./synthetic"
    )
    assert printed("audit", "colours")["across_classes"] == []
    sizes = ["--train-size", "64", "--test-size", "96"]
    for arguments in (
        ["data", "birds.yml", "--dataset", "none"],
        ["adapt", "none", "resnet18", "colours", *sizes],
    ):
        assert f"{colour_folder.parent}/none" in call(*arguments)[1]


def test_a_folder_with_the_name_of_a_dataset_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    monkeypatch.setattr(execution, "prepare_data", lambda sweep: sweep.dataset)
    result = invoke("data", str(REPOSITORY / SMOKE), "--dataset", "synthetic")
    assert "fingerprint synthetic" in result.stdout
    assert str(tmp_path / "synthetic") in result.stderr


@pytest.mark.parametrize(
    ("notebook", "parameters", "named"),
    [
        ("/tmp/other", {}, "/tmp/other"),
        ("03_train", {"train_size": 64, "import os; x": 1}, "import os"),
        ("01_dataset_eda", {"sweep": "../../x"}, "sweep"),
        (3, {}, "settings file"),
    ],
)
def test_settings_that_no_sweep_has_written_are_not_run(
    tmp_path: Path, notebook: object, parameters: dict[str, object], named: str
) -> None:
    (tmp_path / "settings.json").write_text(
        json.dumps({"notebook": notebook, "parameters": parameters})
    )
    code, said = call("run", str(tmp_path / "settings.json"))
    assert (code, named in said) == (2, True)


def test_the_users_own_settings_and_an_unknown_user_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    for name in application.FOREIGN:
        monkeypatch.setenv(name, "error")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("IPYTHONDIR", "theirs")
    monkeypatch.setenv("MATPLOTLIBRC", "theirs")
    application.shield()
    assert Path.home().is_relative_to(home())
    assert getpass.getuser() == str(os.getuid())
    assert not set(application.FOREIGN) & set(os.environ)
    assert "theirs" not in (os.environ["IPYTHONDIR"], os.environ["MATPLOTLIBRC"])


def test_failed_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(tmp_path))
    throwaway.write_notebook(tmp_path / "00_state_of_the_art.ipynb", "x = 1", "print(undefined)")
    file = tmp_path / "a_run" / "settings.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"notebook": "00_state_of_the_art", "parameters": {}}))
    assert call("run", str(file)) == (
        1,
        "failed: a_run: NameError: name 'undefined' is not defined\n",
    )


def test_a_later_try_leaves_what_failed_by_itself_and_repeats_what_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []

    def execute(folder: Path, *_: object) -> None:
        ran.append(folder)

    monkeypatch.setattr("fixres_poc.sweep.notebook_run._execute", execute)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    file = tmp_path / "train64_seed0" / "settings.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"notebook": "03_train", "parameters": {"train_size": 64}}))
    error, progress = file.with_name("error.json"), file.with_name("progress.log")

    def tried(turn: str) -> tuple[int, bool]:
        before = len(ran)
        done = invoke("run", "--turn", turn, str(file))
        return done.exit_code, len(ran) > before

    assert tried("2") == (0, True), "killed before it began"
    error.write_text('{"kind": "error", "message": "wrong", "trace": []}')
    assert tried("1") == (0, True), "a sweep that was started again"
    assert tried("2") == (1, False), "it would fail again"
    progress.touch()
    assert tried("2") == (0, True), "killed at work"
    progress.unlink()
    error.write_text('{"kind": "killed", "message": "died", "trace": []}')
    assert tried("3") == (0, True), "its kernel was killed"


def test_images_are_named_and_a_broken_one_is_told_after_the_others(
    run: str, tmp_path: Path
) -> None:
    folder, broken = small_run.images(), tmp_path / "broken.jpg"
    broken.write_text("no image")
    images = map(str, (broken, folder / "red" / "00.png", folder / "blue"))
    result = invoke("predict", *images, "--top", "2", "--run", run, "--adaptation", "head")
    assert result.exit_code == 2
    assert f"error: {broken}: not a readable image" in result.stderr
    assert ", head, crop_pct 0.875\n" in result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 13
    assert re.fullmatch(r".*/red/00\.png: \w+ [\d.]+%, \w+ [\d.]+%", lines[0])
    blue = sorted((folder / "blue").iterdir())
    assert [line.split(":")[0] for line in lines[1:]] == [str(file) for file in blue]


def test_predictions_for_programs_are_those_of_the_sweeps_choice(run: str) -> None:
    image = str(small_run.images() / "red" / "00.png")
    answer = printed("predict", image, "--sweep", "tiny")
    assert (answer["run"], answer["crop_pct"]) == (run, 0.875)
    (only,) = answer["answers"]
    probabilities = list(only["classes"].values())
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    assert probabilities == sorted(probabilities, reverse=True)
    assert printed("predict", image) == answer, "that of the newest sweep"


def test_a_run_is_measured_again_and_on_other_images(run: str, tmp_path: Path) -> None:
    stored = json.loads(Path(run, "metrics.json").read_text())["accuracies"]
    top1 = {each["adaptation"]: each["top1"] for each in stored}
    again = printed("evaluate", run)["accuracies"]
    assert {each["adaptation"]: each["top1"] for each in again} == pytest.approx(top1)
    other = tmp_path / "other"
    shutil.copytree(small_run.images() / "red", other / "red")
    shutil.copytree(small_run.images() / "red", other / "puce")
    options = ["--dataset", str(other), "--view", "five_crop", "--test-size", "48"]
    found = printed("evaluate", run, *options)
    assert found["left_out"] == ["puce"]
    assert {(row["images"], row["view"]) for row in found["accuracies"]} == {(12, "five_crop")}
    line = r"^head_bn +crop_pct 0\.875 +[\d.]+% \([\d.]+% to [\d.]+%, Wilson 95 %\), top-5 100\.0%"
    assert re.search(line, said("evaluate", run, "--split", "val"), re.MULTILINE)


def test_a_run_is_exported(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Mock(return_value=Exported(tmp_path / "net.onnx", 16, 0.0, 0.0))
    monkeypatch.setattr("fixres_poc.inference.export.export", done)
    monkeypatch.chdir(tmp_path)
    text = said("export", run, "--output", "net.onnx", "--adaptation", "head")
    assert str(tmp_path / "net.onnx") in text
    assert done.call_args.args[1:] == ("head", tmp_path / "net.onnx")


def test_audit_of_a_folder_finds_one_image_in_two_classes(colour_folder: Path) -> None:
    shutil.copyfile(colour_folder / "blue" / "00.png", colour_folder / "green" / "copy.png")
    found = printed("audit", str(colour_folder))["across_classes"]
    assert found == [["blue/00.png", "green/copy.png"]]
    text = said("audit", str(colour_folder))
    assert re.search(r" 1  equal images in two classes\n", text)
    assert "Doubtful labels. The same images occur in two classes: 1 byte for byte equal." in text


def test_names_that_a_terminal_would_obey_are_escaped(run: str, tmp_path: Path) -> None:
    folder = tmp_path / "\x1b[2J\nerror: no"
    folder.mkdir()
    shutil.copy(small_run.images() / "red" / "00.png", folder / "x.png")
    text = said("predict", str(folder), "--run", run)
    assert "\x1b" not in text
    assert text.count("\n") == 1
