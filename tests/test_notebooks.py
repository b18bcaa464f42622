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
FINDINGS, RECORD = "## What this shows", "record"
OWN = [stem for stem in NOTEBOOKS if stem != "05_results"]  # the report has an order of its own
LOCAL = re.compile(r"/home/|/root/|/work/|/tmp/|site-packages|it/s\]|widget-view")


def cells(stem: str, *kinds: str, tag: str = "") -> list[Any]:
    """A notebook's cells of these kinds, with this tag."""
    every = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4).cells  # type: ignore[no-untyped-call]
    every = [cell for cell in every if cell.cell_type in (kinds or ("code", "markdown"))]
    return [cell for cell in every if not tag or tag in cell.metadata.get("tags", [])]


def test_the_numbered_notebooks_are_all_there() -> None:
    assert [file.stem for file in FILES] == list(NOTEBOOKS)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook_is_short_and_explains_itself(stem: str) -> None:
    code, text = cells(stem, "code"), cells(stem, "markdown")
    assert len(code) + len(text) <= 40
    assert len(text) >= len(code)
    assert text[0].source.startswith("# ")
    assert "Reading time" in text[0].source
    long = [code[0], *cells(stem, tag="parameters")]  # imports, parameters
    for cell in code:
        assert len(cell.source.splitlines()) <= (42 if cell in long else 15), cell.source
        for node in ast.walk(ast.parse(MAGIC.sub("", cell.source))):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 5


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_parameters_are_commented_literals_and_all_that_a_sweep_sets(stem: str) -> None:
    model = NOTEBOOKS[stem].settings
    (cell,) = cells(stem, tag="parameters")
    lines = [line for line in cell.source.splitlines() if not line.startswith("# ")]  # groups
    values = {}
    for line in lines:
        name, value, _ = re.split(" = |  # ", line, maxsplit=2)
        values[name] = ast.literal_eval(value)
    assert values.keys() == model.model_fields.keys()
    validate(model, values, stem)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_outputs_are_stored_and_hold_nothing_of_this_machine(stem: str) -> None:
    assert (FOLDER / f"{stem}.ipynb").stat().st_size < 1_000_000
    for cell in cells(stem, "code"):
        assert cell.execution_count is not None, cell.source
        kinds = [out.get("name", out.output_type) for out in cell.outputs]
        assert not {"error", "stderr"} & {*kinds}, cell.source
        data = [item for out in cell.outputs for item in out.get("data", {}).items()]
        texts = [text for kind, text in data if not kind.startswith("image/")]
        texts += [out.get("text", "") for out in cell.outputs]
        assert not LOCAL.search(json.dumps(texts))
        shown = [kind for kind, _ in data if kind in ("image/png", "image/svg+xml", "text/html")]
        assert len(shown) <= 1, cell.source


@pytest.mark.parametrize("stem", OWN)
def test_findings_come_first_and_files_are_written_last_out_of_a_page_s_sight(stem: str) -> None:
    every, code = cells(stem), cells(stem, "code")
    (start,) = [place for place, cell in enumerate(every) if cell.source == FINDINGS]
    (shown,) = every[start + 1].outputs
    assert shown.data["text/markdown"].count("- ") >= 3
    outputs = [out for cell in every[:start] for out in cell.get("outputs", ())]
    assert not [out for out in outputs if "data" in out]
    assert [cell for cell in code if "record_run(" in cell.source] == code[-1:]
    assert cells(stem, tag=RECORD) == [cells(stem, "markdown")[-1], code[-1]]
    assert RECORD in pages.LEFT_OUT
    assert not code[-1].outputs


@pytest.mark.parametrize("stem", OWN)
def test_contents_and_neighbours_lead_somewhere(stem: str) -> None:
    contents, *_ = cells(stem, tag="navigation")
    assert contents.source.startswith("**Contents.**")
    targets = re.findall(r"\]\(([^)]+)\)", contents.source)
    written = "\n".join(cell.source for cell in cells(stem, "markdown"))
    headings = re.findall(r"^##+ (.+)$", written, re.MULTILINE)
    anchors = {f"#{heading.replace(' ', '-')}" for heading in headings}
    order, files = list(NOTEBOOKS).index(stem), [file.name for file in FILES]
    neighbours = files[max(order - 1, 0) : order] + files[order + 1 : order + 2]
    assert "#What-this-shows" in targets
    assert set(targets) <= anchors | {*files}
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
