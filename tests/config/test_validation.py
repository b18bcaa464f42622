"""Sweep files and notebooks' parameters cells as they come in; tests/inputs has the odd ones."""

from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from fixres_poc.config.errors import InputError
from fixres_poc.config.validation import load_sweep

PAIR = "dataset: synthetic\npairs: [[64, 96]]\n"


def sweep_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "small.yml"
    file.write_text(text, encoding="latin-1")
    return file


def test_a_table_holds_lists_and_its_key_reaches_every_run_that_reads_the_file(
    tmp_path: Path,
) -> None:
    trained = "{path: n.pt, train_size: 64, classes: [c, a, b], weights_key: ema}"
    sweep = load_sweep(
        sweep_file(tmp_path, f"dataset: synthetic\ntest_sizes: [64]\ntrained: {trained}\n")
    )
    assert sweep.class_order == ("c", "a", "b")
    assert [
        run.parameters["weights_key"] for run in sweep.runs() if "weights" in run.parameters
    ] == ["ema", "ema"]
    with pytest.raises(InputError, match="weights_key"):
        load_sweep(sweep_file(tmp_path, f"{PAIR}weights_key: ema\n"))


LINES = "a sweep file holds 'key: value' lines, dataset and sizes at least"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f": {LINES}"),
        ("1: 2\n", f": {LINES}"),
        ("name: y\n", ": unknown key 'name'; a sweep's name is its file's stem, here 'small'"),
        ("dataset: x\npairs: 64: 96\n", ", line 2: not valid YAML (mapping values are not"),
        ("\xff", ": not valid YAML ("),
    ],
)
def test_wrong_content_of_a_sweep_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = sweep_file(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_sweep(file)
    assert str(caught.value).startswith(f"{file}{message}")


PARAMETERS_CELL = "train_size = 64  # px\ntest_size = 96\n"
READ = "given = read_parameters(PairSettings, globals())"


def run_cells(*cells: str) -> Any:
    """The namespace after these cells have run as in a notebook; raises what a cell raises."""
    shell: Any = InteractiveShell()  # type: ignore[no-untyped-call]
    for cell in (
        "from fixres_poc.config.settings import PairSettings\n"
        "from fixres_poc.config.validation import read_parameters",
        *cells,
    ):
        shell.run_cell(cell, store_history=True).raise_error()
    return shell.user_ns


def test_parameter_that_is_misspelt_is_refused_in_the_cell_and_from_papermill() -> None:
    wrong = "test_siz = 128\n"
    message = r"parameters: unknown key 'test_siz'; did you mean 'test_size'\?"
    for cells in ([PARAMETERS_CELL + wrong], [PARAMETERS_CELL, f"# Parameters\n{wrong}"]):
        with pytest.raises(InputError, match=message):
            run_cells(*cells, READ)


def test_names_of_other_cells_are_no_parameters() -> None:
    others = "unrelated = 1\nprint(unrelated)"
    assert run_cells(others, PARAMETERS_CELL, READ)["given"].train_size == 64
