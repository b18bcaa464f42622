"""The contract of the committed notebooks; that they still run is nbval's part."""

import ast
import copy
import json
import re
from typing import Any

import nbformat
import pytest
import small_run
import torch

from fixres_poc.config.files import REPOSITORY, run_folder
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.settings import PairSettings
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method.adaptations import changed_tensors
from fixres_poc.method.stage1 import train_or_load
from fixres_poc.model.device import accelerator_for
from fixres_poc.report import pages

FOLDER = REPOSITORY / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)
GROUPS = ["Choose", "Training", "Adaptation", "Set by sweeps: leave"]
FINDINGS, RECORD = "## What this shows", "record"
OWN = [stem for stem in NOTEBOOKS if stem != "05_results"]  # the report has an order of its own
LOCAL = re.compile(r"/home/|/root/|/work/|/tmp/|site-packages|it/s\]|widget-view")


def cells(stem: str, kind: str) -> list[Any]:
    notebook = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tagged(cell: Any, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def is_parameters(cell: Any) -> bool:
    return tagged(cell, "parameters")


def test_the_numbered_notebooks_are_all_there() -> None:
    assert [file.stem for file in FILES] == list(NOTEBOOKS)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook_is_short_and_explains_itself(stem: str) -> None:
    code, text = cells(stem, "code"), cells(stem, "markdown")
    assert len(code) + len(text) <= 40
    assert len(text) >= len(code)
    assert text[0].source.startswith("# ")
    assert "Reading time" in text[0].source
    for cell in code:
        most = 42 if is_parameters(cell) or cell is code[0] else 15  # parameters, and imports
        assert len(cell.source.splitlines()) <= most, cell.source
        tree = ast.parse(MAGIC.sub("", cell.source))
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert all((node.end_lineno or 0) - node.lineno < 5 for node in functions)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_parameters_are_commented_literals_and_all_that_a_sweep_sets(stem: str) -> None:
    model = NOTEBOOKS[stem].settings
    (cell,) = [cell for cell in cells(stem, "code") if is_parameters(cell)]
    values = {}
    lines = [line for line in cell.source.splitlines() if not line.startswith("# ")]  # groups
    for line, node in zip(lines, ast.parse(cell.source).body, strict=True):
        assert isinstance(node, ast.Assign)
        assert isinstance(node.targets[0], ast.Name)
        assert "  # " in line, line
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert values.keys() == model.model_fields.keys()
    validate(model, values, stem)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_outputs_are_stored_and_hold_nothing_of_this_machine(stem: str) -> None:
    assert (FOLDER / f"{stem}.ipynb").stat().st_size < 1_000_000
    for cell in cells(stem, "code"):
        assert cell.execution_count is not None, cell.source
        kinds: list[str] = []
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            data = output.get("data", {})
            kinds += data
            texts = [text for kind, text in data.items() if not kind.startswith("image/")]
            assert not LOCAL.search(json.dumps(texts) + output.get("text", ""))
        shown = [kind for kind in kinds if kind in ("image/png", "image/svg+xml", "text/html")]
        assert len(shown) <= 1, cell.source


@pytest.mark.parametrize("stem", OWN)
def test_findings_come_first_and_files_are_written_last_out_of_a_page_s_sight(stem: str) -> None:
    texts, code = cells(stem, "markdown"), cells(stem, "code")
    everything = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4).cells  # type: ignore[no-untyped-call]
    (start,) = [place for place, cell in enumerate(everything) if cell.source == FINDINGS]
    (shown,) = everything[start + 1].outputs
    assert shown.data["text/markdown"].count("- ") >= 3
    results = [cell for cell in everything[:start] if cell.get("outputs")]
    assert not [out for cell in results for out in cell.outputs if "data" in out]
    assert [cell for cell in code if "record_run(" in cell.source] == code[-1:]
    assert [cell for cell in [*texts, *code] if tagged(cell, RECORD)] == [texts[-1], code[-1]]
    assert RECORD in pages.LEFT_OUT
    assert not code[-1].outputs


@pytest.mark.parametrize("stem", OWN)
def test_parameters_stand_in_groups_and_the_first_are_a_reader_s(stem: str) -> None:
    (cell,) = [cell for cell in cells(stem, "code") if is_parameters(cell)]
    groups = re.findall(r"^# (.+)$", cell.source, re.MULTILINE)
    known = [name for name in GROUPS for group in groups if group.startswith(name)]
    assert cell.source.startswith("# Choose\n")
    assert len(known) == len(groups)
    assert known[-1] == GROUPS[-1]
    assert 'sweep = "notebooks"' in cell.source.partition(GROUPS[-1])[2]


@pytest.mark.parametrize("stem", OWN)
def test_tables_have_plain_headings(stem: str) -> None:
    shown = [
        output.data["text/html"]
        for cell in cells(stem, "code")
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    heads = [head for html in shown for head in re.findall(r"<th[^>]*>([^<]*)</th>", html)]
    assert heads
    assert not [head for head in heads if "_" in head]


@pytest.mark.parametrize("stem", OWN)
def test_contents_and_neighbours_lead_somewhere(stem: str) -> None:
    texts = cells(stem, "markdown")
    (contents,) = [cell for cell in texts if cell.source.startswith("**Contents.**")]
    assert tagged(contents, "navigation")
    targets = re.findall(r"\]\(([^)]+)\)", contents.source)
    written = "\n".join(cell.source for cell in texts)
    headings = re.findall(r"^##+ (.+)$", written, re.MULTILINE)
    anchors = {f"#{heading.replace(' ', '-')}" for heading in headings}
    assert "#What-this-shows" in targets
    assert set(targets) <= anchors | {file.name for file in FILES}
    order = list(NOTEBOOKS).index(stem)
    neighbours = [FILES[each].name for each in (order - 1, order + 1) if each >= 0]
    assert [target for target in targets if target.endswith(".ipynb")] == neighbours


def run_cells(stem: str, first: str, last: str, world: dict[str, Any]) -> None:
    """Run a notebook's imports, and its code cells that begin with `first` to `last`."""
    sources = [cell.source for cell in cells(stem, "code")]
    starts = [source.partition(" =")[0] for source in sources]
    for source in (sources[0], *sources[starts.index(first) : starts.index(last) + 1]):
        exec(source, world)


def test_steps_in_the_open_leave_weights_and_random_state_as_they_were() -> None:
    small_run.make()
    metrics = json.loads((run_folder("tiny", "train48_test64_seed0") / "metrics.json").read_text())
    settings = validate(PairSettings, metrics["settings"], "metrics.json")
    data = load_dataset(settings)
    accelerator = accelerator_for("fp32")
    trained = train_or_load(settings.train_settings(), data, accelerator)
    before = copy.deepcopy(trained.model.state_dict())
    state = torch.get_rng_state()
    world = {"settings": settings, "data": data, "accelerator": accelerator, "trained": trained}
    world |= {"size": 48, "classes": 3, "pair": (48, 64)}
    run_cells("03_train", "samples", "accelerator", world)
    assert world["after"] < 10
    run_cells("04_fixres", "adaptation", "transform", world)
    assert changed_tensors(trained.model, world["tail"])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, trained.model.state_dict()[key]) for key, value in before.items())
