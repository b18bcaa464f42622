import getpass
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import small_run
import typer
from typer.testing import CliRunner, Result

from fixres_poc import __version__
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


def test_a_relative_home_is_that_of_the_first_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIXRES_HOME", "out")
    monkeypatch.chdir(tmp_path)
    application.shield()
    monkeypatch.chdir("/")
    assert home() == tmp_path / "out"


def test_version_and_help_need_no_command_and_help_lists_them_on_whole_lines() -> None:
    assert said("--version") == f"fixres-poc {__version__}\n"
    listed = said("--help").partition("Commands:")[2]
    assert all(name in listed for name in COMMANDS)
    assert "..." not in listed, "a line is cut off"


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
    f"sweep {SMOKE} --backbone resnet": f"{{}}/{SMOKE}: backbone = 'resnet': unknown backbone",
    f"sweep {SMOKE} --profile profiles/none": "profile = '{}/profiles/none': no folder",
    f"data {SMOKE} --dataset=": f"{{}}/{SMOKE}: dataset = ''",
    f"plan {SMOKE} --memory 16apples": "memory = '16apples': allowed is a number of GiB",
    "audit none": "dataset '",
    "audit sweeps/none.yml": "{}/sweeps/none.yml: no such file",
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


def test_memory_is_read_as_gib_or_refused() -> None:
    read = {text: memory_bytes(text) for text in ("16GiB", "16 GB", "0.5g", "80")}
    assert [size and size / 2**30 for size in read.values()] == [16, 16, 0.5, 80]
    for text in ("apples", "16 MiB", "-1GiB"):
        with pytest.raises(InputError, match="allowed is a number of GiB"):
            memory_bytes(text)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (InputError("dataset = 'x': no such folder"), 2, "error: dataset = 'x': no such folder\n"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to resume\n"),
        (OSError("disk\nfull"), 1, "error: OSError: disk full; traceback in {log}\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_one_line_and_a_traceback_is_kept_of_unexpected_ones(
    monkeypatch: pytest.MonkeyPatch, own_home: Path, error: BaseException, code: int, expected: str
) -> None:
    monkeypatch.setattr(execution, "prepare_data", break_down := Mock(side_effect=error))
    log = own_home / "runs/error.log"
    assert call("data", SMOKE) == (code, expected.format(log=log))
    assert log.exists() == (code == 1)
    assert not log.exists() or "Traceback" in log.read_text()
    break_down.assert_called_once()


OPTIONS = {
    "DATASET": "a b",
    "BACKBONE": "timm:resnet18",
    "WEIGHTS": "w.pth",
    "CORES": "3",
    "PROFILE": "profiles/slurm",
}


def started(monkeypatch: pytest.MonkeyPatch, *arguments: str, **variables: str) -> Any:
    """What the sweep command hands on."""
    monkeypatch.setattr(execution, "run_sweep", run_sweep := Mock(side_effect=[False, True]))
    for name, value in variables.items():
        monkeypatch.setenv(f"FIXRES_{name}", value)
    assert [call("sweep", *arguments)[0] for _ in range(2)] == [1, 0]
    return run_sweep.call_args.args


@pytest.mark.parametrize("way", ["options", "environment", "both"])
def test_overrides_reach_the_sweep(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """`make` gives them as environment variables; an option on the command line wins."""
    arguments = [SMOKE, "--replace", *(f"--{k.lower()}={v}" for k, v in OPTIONS.items())]
    variables = OPTIONS | {"SWEEP": SMOKE, "REPLACE": "1"}
    given = {"options": {}, "environment": variables, "both": dict.fromkeys(variables, "7")}[way]
    said = [] if way == "environment" else arguments
    sweep, *others = started(monkeypatch, *said, **given)
    assert others == [3, f"{REPOSITORY}/profiles/slurm", True]
    named = (sweep.name, sweep.dataset, sweep.backbone, sweep.weights)
    paths = f"{REPOSITORY}/a b", "timm:resnet18", f"{REPOSITORY}/w.pth"
    assert named == ("smoke-a-b-resnet18-w.pth", *paths)


def test_empty_variables_of_make_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = dict.fromkeys((*OPTIONS, "REPLACE"), "")
    sweep, *others = started(monkeypatch, SMOKE, **empty)
    assert (sweep.name, others) == ("smoke", [None, LOCAL_PROFILE, False])


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


def test_the_audit_of_a_sweep_leaves_out_what_the_sweep_does(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(colour_folder.parent)
    (colour_folder / "blue/01.png").write_bytes(b"no image")
    lines = f"dataset: {colour_folder}\npairs: [[64, 96]]\nskip_unreadable: true\n"
    Path("some.yml").write_text(lines)
    said("data", "some.yml")
    assert printed("audit", "some.yml")["across_classes"] == []


def test_paths_of_the_command_line_are_relative_to_the_working_folder(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(colour_folder.parent)
    shutil.copytree(colour_folder, "synthetic")
    Path("birds.yml").write_text(f"dataset: {colour_folder}\npairs: [[64, 96]]\n")
    same = said("data", "birds.yml", "--dataset", "colours")
    assert same.startswith("birds:"), "the same folder, however it is written"
    other = said("data", "birds.yml", "--dataset", "./synthetic")
    assert str(colour_folder.parent / "synthetic") in other
    named = said("data", "birds.yml", "--backbone", "efficientnet_lite1")
    assert named.startswith("birds-efficientnet_lite1:")
    shutil.copy("colours/blue/00.png", "colours/green/copy.png")
    assert printed("audit", "colours")["across_classes"] == [["blue/00.png", "green/copy.png"]]
    text = said("audit", "colours")
    assert " 1  equal images in two classes\n" in text
    assert "Doubtful labels. The same images occur in two classes: 1 byte for byte equal." in text
    sizes = ["--train-size", "64", "--test-size", "96"]
    for arguments in (
        ["data", "birds.yml", "--dataset", "none"],
        ["adapt", "none", "resnet18", "colours", *sizes],
    ):
        assert f"{colour_folder.parent}/none" in call(*arguments)[1]
    monkeypatch.setattr(execution, "prepare_data", lambda sweep: sweep.dataset)
    result = invoke("data", "birds.yml", "--dataset", "synthetic")
    assert "fingerprint synthetic" in result.stdout, "not the folder of that name, which is told"
    assert str(colour_folder.parent / "synthetic") in result.stderr


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
    code, said = call("run", settings_file(tmp_path, notebook, **parameters))
    assert (code, named in said) == (2, True)


def settings_file(folder: Path, notebook: object, **parameters: object) -> str:
    content = {"notebook": notebook, "parameters": parameters}
    (folder / "settings.json").write_text(json.dumps(content))
    return str(folder / "settings.json")


def test_the_users_own_settings_and_an_unknown_user_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    for name in (*application.FOREIGN, "IPYTHONDIR", "MATPLOTLIBRC"):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))
    application.shield()
    assert Path.home().is_relative_to(home())
    assert getpass.getuser() == str(os.getuid())
    assert not set(application.FOREIGN) & set(os.environ)
    assert "theirs" not in (os.environ["IPYTHONDIR"], os.environ["MATPLOTLIBRC"])


ERROR = '{{"kind": "{}", "message": "no", "trace": []}}'


@pytest.mark.parametrize(
    ("turn", "kind", "at_work", "repeated"),
    [
        ("2", None, False, True),  # killed before it began
        ("1", "error", False, True),  # a sweep started again
        ("2", "error", False, False),  # it would fail again
        ("2", "error", True, True),
        ("3", "killed", False, True),
    ],
)
def test_a_later_try_leaves_what_failed_by_itself_and_repeats_what_was_killed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    turn: str,
    kind: str | None,
    at_work: bool,
    repeated: bool,
) -> None:
    monkeypatch.setattr("fixres_poc.sweep.notebook_run._execute", ran := Mock(return_value=None))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if kind:
        (tmp_path / "error.json").write_text(ERROR.format(kind))
    if at_work:
        (tmp_path / "progress.log").touch()
    settings = settings_file(tmp_path, "03_train", train_size=64)
    expected = (0, "") if repeated else (1, f"failed: {tmp_path.name}: no\n")
    assert call("run", "--turn", turn, settings) == expected
    assert ran.called == repeated


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
    first, *others = result.stdout.splitlines()
    assert re.fullmatch(r".*/red/00\.png: \w+ [\d.]+%, \w+ [\d.]+%", first)
    blue = sorted((folder / "blue").iterdir())
    assert [line.split(":")[0] for line in others] == [str(file) for file in blue]


def test_predictions_for_programs_are_those_of_the_sweeps_choice(run: str) -> None:
    image = str(small_run.images() / "red" / "00.png")
    answer = printed("predict", image, "--sweep", "tiny")
    assert (answer["run"], answer["crop_pct"]) == (run, 0.875)
    assert sum(answer["answers"][0]["classes"].values()) == pytest.approx(1, abs=1e-4)
    assert printed("predict", image) == answer, "that of the newest sweep"


def test_a_run_is_measured_again_and_on_other_images(run: str, tmp_path: Path) -> None:
    for name in ("red", "puce"):
        shutil.copytree(small_run.images() / "red", tmp_path / "other" / name)
    options = ["--dataset", str(tmp_path / "other"), "--view", "five_crop", "--test-size", "48"]
    other = printed("evaluate", run, *options)
    assert other["left_out"] == ["puce"]
    assert {(row["images"], row["view"]) for row in other["accuracies"]} == {(12, "five_crop")}
    line = r"^head_bn +crop_pct 0\.875 +[\d.]+% \([\d.]+% to [\d.]+%, Wilson 95 %\), top-5 100\.0%"
    assert re.search(line, said("evaluate", run, "--split", "val"), re.MULTILINE)


def test_a_run_is_exported(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Mock(return_value=Exported(tmp_path / "net.onnx", 16, 0.0, 0.0))
    monkeypatch.setattr("fixres_poc.inference.export.export", done)
    monkeypatch.chdir(tmp_path)
    text = said("export", run, "--output", "net.onnx", "--adaptation", "head")
    assert str(tmp_path / "net.onnx") in text
    assert done.call_args.args[1:] == ("head", tmp_path / "net.onnx")


@pytest.mark.parametrize("name", application.NEED_CLONE)
def test_outside_a_clone_a_command_says_that_it_needs_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "REPOSITORY", tmp_path)
    code, said = call(name, SMOKE)
    assert (code, said) == (2, f"error: {name}: needs a clone of the project's repository\n")
