"""The contract of the committed notebooks; that they still run is nbval's part."""

import ast
import json
import re
from typing import Any

import nbformat
import pytest

from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.settings import NOTEBOOKS, Settings
from fixres_poc.config.validation import validate

FILES = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)


def cells(stem: str, kind: str) -> list[Any]:
    notebook = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def is_parameters(cell: Any) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


def test_the_numbered_notebooks_are_all_there() -> None:
    assert [file.stem for file in FILES] == list(NOTEBOOKS)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook_is_short_and_explains_itself(stem: str) -> None:
    code, text = cells(stem, "code"), cells(stem, "markdown")
    assert len(code) + len(text) <= (50 if stem == "05_results" else 40)  # the report has more to show
    assert len(text) >= len(code)
    assert text[0].source.startswith("# ")
    assert "Reading time" in text[0].source
    for cell in code:
        assert len(cell.source.splitlines()) <= (30 if is_parameters(cell) else 15), cell.source
        tree = ast.parse(MAGIC.sub("", cell.source))
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert all((node.end_lineno or 0) - node.lineno < 5 for node in functions)


@pytest.mark.parametrize(("stem", "model"), NOTEBOOKS.items())
def test_parameters_are_commented_literals_and_all_that_a_sweep_sets(stem: str, model: type[Settings]) -> None:
    (cell,) = [cell for cell in cells(stem, "code") if is_parameters(cell)]
    values = {}
    for line, node in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        assert isinstance(node, ast.Assign)
        assert isinstance(node.targets[0], ast.Name)
        assert "  # " in line, line
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert values.keys() == model.model_fields.keys()
    validate(model, values, stem)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_outputs_are_stored_and_hold_nothing_of_this_machine(stem: str) -> None:
    path = REPOSITORY / "notebooks" / f"{stem}.ipynb"
    assert path.stat().st_size < 1_000_000
    for cell in cells(stem, "code"):
        assert cell.execution_count is not None, cell.source
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            text = json.dumps({key: value for key, value in output.get("data", {}).items() if key != "image/png"})
            assert not re.search(
                r"/home/|/root/|/work/|/tmp/|site-packages|it/s\]|widget-view", text + output.get("text", "")
            )


@pytest.mark.parametrize(
    "stem", [stem for stem in NOTEBOOKS if stem != "05_results"]
)  # the report has a list of its own
def test_contents_and_neighbours_lead_somewhere(stem: str) -> None:
    (contents,) = [cell for cell in cells(stem, "markdown") if "navigation" in cell.metadata.get("tags", [])]
    targets = re.findall(r"\]\(([^)]+)\)", contents.source)
    headings = re.findall(r"^##+ (.+)$", "\n".join(cell.source for cell in cells(stem, "markdown")), re.MULTILINE)
    anchors = {f"#{heading.replace(' ', '-')}" for heading in headings}
    assert "#Summary" in targets
    assert set(targets) <= anchors | {file.name for file in FILES}
    order = list(NOTEBOOKS).index(stem)
    neighbours = [FILES[each].name for each in (order - 1, order + 1) if each >= 0]
    assert [target for target in targets if target.endswith(".ipynb")] == neighbours


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_nbval_has_something_to_compare(stem: str) -> None:
    compared = [cell for cell in cells(stem, "code") if "nbval-ignore-output" not in cell.metadata.get("tags", [])]
    shown = [output for cell in compared for output in cell.outputs]
    texts = [each for each in shown if each.output_type == "stream" or {"text/plain", "text/html"} & set(each.data)]
    assert len(texts) >= 3


@pytest.mark.parametrize("stem", ["02_baseline", "03_train", "04_fixres"])
def test_what_training_decides_is_held_by_a_band(stem: str) -> None:
    checked = [cell for cell in cells(stem, "code") if "assert " in cell.source]
    assert checked
    assert all("nbval-ignore-output" not in cell.metadata.get("tags", []) for cell in checked)
