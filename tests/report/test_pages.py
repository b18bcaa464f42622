"""Pages made from stand-in notebooks: complete, self-contained and harmless."""

import base64
import json
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import numpy.typing as npt
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure
from fixres_poc.config.files import report_folder, run_folder, write_atomically
from fixres_poc.config.run_state import Outcome
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.report import pages
from fixres_poc.sweep import reporting

EVIL = "<script>alert(1)</script><img src=http://example.org/x.png>"
KEYS = {"name": "tiny", "dataset": "synthetic", "pairs": [[64, 96], [64, 128]]}
SWEEP = validate(SweepSettings, KEYS, "test")
FAILED, MISSING = "train64_test96_seed0", "train64_test128_seed0"


def write_notebook(path: Path, heading: str, *cells: nbformat.NotebookNode) -> None:
    first = new_markdown_cell(f"# {heading}\n\nWords.")  # type: ignore[no-untyped-call]
    info = {
        "language_info": {"name": "python"},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = new_notebook(cells=[first, *cells], metadata=info)  # type: ignore[no-untyped-call]
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


def code_cell(**data: str) -> nbformat.NotebookNode:
    data = {kind.replace("_", "/"): text for kind, text in data.items()}
    output = new_output("display_data", data)  # type: ignore[no-untyped-call]
    return new_code_cell("show()", outputs=[output])  # type: ignore[no-untyped-call,no-any-return]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(tmp_path / "notebooks"))
    for run in SWEEP.runs():
        folder = run_folder("tiny", run.name)
        if run.name != MISSING:
            write_notebook(folder / "notebook.ipynb", f"Notebook of {run.notebook}")
        if run.name == FAILED:
            run_state.end(folder, Failure("error", f"ValueError: {EVIL}"))
        elif run.name != MISSING:
            (folder / "metrics.json").write_text(json.dumps({"settings": {}, "wall_seconds": 61}))
    return tmp_path


def render_report(sweep: SweepSettings) -> Path:
    """The pages of the runs as they are, without result tables but for the list of runs."""

    def collect(sweep: SweepSettings, done: Sequence[Outcome]) -> None:
        rows = [
            {"name": each.run.name, "status": each.status, "error": each.error}
            | {key: each.run.parameters.get(key) for key in ("train_size", "test_size", "seed")}
            | {"equal_flops": False, "wall_seconds": each.wall_seconds()}
            for each in done
        ]
        write_atomically(report_folder(sweep.name) / "sweep.json", json.dumps({"runs": rows}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fixres_poc.analysis.collection.collect", collect)
        patch.setattr("fixres_poc.report.sentences.write", lambda _: None)
        return reporting.render(sweep)


NOISE = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)


def png(image: npt.NDArray[np.uint8]) -> str:
    """A PNG of RGB (H, W, 3), in base64."""
    content = BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def pixels(image: str) -> npt.NDArray[np.uint8]:
    """RGBA (H, W, 4) of an image in base64."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(image))).convert("RGBA"))


def page(file: Path) -> BeautifulSoup:
    return BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


def assert_harmless(html: BeautifulSoup) -> None:
    assert [script.text for script in html("script")] == [pages.SCRIPT]
    assert f"script-src '{pages.SCRIPT_HASH}'" in str(
        html.meta and html.find("meta", content=re.compile("default-src"))
    )
    assert not html(["link", "iframe", "object", "base"])
    assert all(str(each["src"]).startswith("data:") for each in html(src=True))
    assert not [name for each in html(True) for name in each.attrs if name.startswith("on")]
    assert {each.name for each in html(href=True)} <= {"a"}
    assert not re.search(r"@import|url\(", str(html.style))


def test_report_has_every_run(home: Path) -> None:
    cells = [new_code_cell("report = ''", metadata={"tags": ["parameters"]})]  # type: ignore[no-untyped-call]
    cells += [new_markdown_cell("## Answer"), new_code_cell("print('report', report)")]  # type: ignore[no-untyped-call]
    write_notebook(home / "notebooks/05_results.ipynb", "The question?", *cells)
    stale = home / "reports/tiny/notebooks/train32_seed0.html"
    stale.parent.mkdir(parents=True)
    stale.touch()
    index = render_report(SWEEP)
    html = page(index)
    assert_harmless(html)
    assert html.title is not None
    assert html.title.text == "The question?"
    assert "report reports/tiny" in html.text
    assert [link.text for link in html.select("nav.rail a")] == ["Answer"]
    matrix = html.select("table.runs")[0]
    assert [head.text for head in matrix.select("thead th")] == [
        "training",
        "training",
        "96 px",
        "128 px",
    ]
    (row,) = matrix.select("tbody tr")
    assert [cell.text for cell in row(["th", "td"])] == [
        "64 px, seed 0",
        "1 min 1 s",
        "failed",
        "missing",
    ]
    runs = html.select("#every-run")[0]
    assert f"{FAILED}, failed: ValueError: {EVIL}" in runs.text
    assert all(run.name in runs.text for run in SWEEP.runs() if "train_size" not in run.parameters)
    links = {str(link["href"]) for link in html.select("#every-run a")}
    assert links == {f"notebooks/{run.name}.html" for run in SWEEP.runs() if run.name != MISSING}
    assert {f"notebooks/{file.name}" for file in stale.parent.iterdir()} == links
    assert (
        "efficientnet_lite0, synthetic, took 1 min 1 s"
        in page(index.parent / "notebooks/train64_seed0.html").text
    )
    failed = page(index.parent / "notebooks" / f"{FAILED}.html")
    assert "took" not in failed.text
    assert_harmless(failed)
    assert EVIL in failed.select(".failure")[0].text
    assert failed.select('a[href="../index.html"]')


def test_a_run_page_is_made_again_only_if_something_of_it_changed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [new_code_cell("report = ''", metadata={"tags": ["parameters"]})]  # type: ignore[no-untyped-call]
    write_notebook(home / "notebooks/05_results.ipynb", "The question?", *cells)
    made: list[str] = []
    plain = pages.render

    def render(notebook: Path, page: dict[str, Any]) -> str:
        made.append(notebook.parent.name)
        return plain(notebook, page)

    monkeypatch.setattr(pages, "render", render)

    def again() -> list[str]:
        made.clear()
        render_report(SWEEP)
        return sorted(set(made) - {"results"})

    runs = [run.name for run in SWEEP.runs() if run.name != MISSING]
    assert again() == sorted(runs)
    assert again() == []
    run_state.end(run_folder("tiny", FAILED), Failure("error", "ValueError: another"))
    assert again() == [FAILED]
    write_notebook(run_folder("tiny", runs[0]) / "notebook.ipynb", "Other words")
    assert again() == [runs[0]]
    monkeypatch.setattr(reporting, "library_hash", lambda **_: "of another look")
    assert again() == sorted(runs)


def test_whatever_came_from_data_is_shown_as_text(tmp_path: Path) -> None:
    error = new_output("error", ename="E", evalue=EVIL, traceback=[EVIL])  # type: ignore[no-untyped-call]
    stream = new_output("stream", name="stdout", text=EVIL)  # type: ignore[no-untyped-call]
    drawn = code_cell(image_png=png(NOISE))
    drawn.outputs[0].metadata["image/png"] = {"alt": f"a line {EVIL}"}
    cells = [
        drawn,
        code_cell(image_png=png(NOISE)),
        code_cell(text_html=f"<table><tr><td onclick='x()'>{EVIL}</td></tr></table>"),
        code_cell(text_markdown=f"**bold** {EVIL} [link](javascript:alert(1))"),
        code_cell(text_plain=EVIL),
        new_markdown_cell(f"## Class {EVIL}"),  # type: ignore[no-untyped-call]
        new_code_cell(f"'{EVIL}'", outputs=[error, stream]),  # type: ignore[no-untyped-call]
    ]
    write_notebook(tmp_path / "a.ipynb", f"Title {EVIL}", *cells)
    html = BeautifulSoup(
        pages.render(tmp_path / "a.ipynb", {"name": EVIL, "back": EVIL}), "html.parser"
    )
    assert_harmless(html)
    assert html.text.count("<script>") >= 9
    assert [image["alt"] for image in html("img")] == [f"a line {EVIL}", "figure"]
    assert not [link for link in html(href=True) if str(link["href"]).startswith("javascript")]


@pytest.mark.parametrize("kept", [False, True], ids=["photograph", "drawing"])
def test_images_are_inline_and_packed_and_code_is_folded(tmp_path: Path, kept: bool) -> None:
    image = np.repeat(NOISE[:2], 40, axis=0) if kept else NOISE
    write_notebook(tmp_path / "a.ipynb", "Title", code_cell(image_png=png(image)))
    html = BeautifulSoup(pages.render(tmp_path / "a.ipynb", {}), "html.parser")
    (packed,) = [str(shown["src"]).removeprefix("data:image/webp;base64,") for shown in html("img")]
    assert (pixels(packed)[..., :3] == image).all() == kept
    assert len(packed) < len(png(image))
    assert html.select("div.code .highlight")[0].text.strip() == "show()"


def test_a_page_that_fails_costs_itself_only_and_is_told_without_what_a_terminal_obeys(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = pages.write_run_page

    def write(sweep: str, each: Outcome, made_by: str) -> bool:
        if each.run.name == FAILED:
            raise ValueError("\x1b[2J\n")
        return plain(sweep, each, made_by)

    monkeypatch.setattr(pages, "write_run_page", write)
    with pytest.raises(RuntimeError, match="05_results failed"):
        render_report(SWEEP)
    written = {file.stem for file in (home / "reports/tiny/notebooks").iterdir()}
    assert written == {run.name for run in SWEEP.runs()} - {FAILED, MISSING}
    assert caplog.messages[0] == rf"no page for {FAILED}: ValueError: \x1b[2J\n"


def test_no_path_of_the_machine_and_no_traceback_is_passed_on(home: Path) -> None:
    folder = home / "a_run"
    told = new_output("stream", text=f"{home}/x {Path.home()}/y /mnt/birds/z /mnt/w.pth")  # type: ignore[no-untyped-call]
    error = new_output(  # type: ignore[no-untyped-call]
        "error", ename="ValueError", evalue="no", traceback=["the frames", "ValueError: no"]
    )
    cell = new_code_cell("show()", outputs=[told, error])  # type: ignore[no-untyped-call]
    write_notebook(folder / "notebook.ipynb", "x", cell)
    parameters = {"dataset": "/mnt/birds", "weights": "/mnt/w.pth"}
    (folder / "settings.json").write_text(json.dumps({"parameters": parameters}))
    html = pages.render(folder / "notebook.ipynb", {})
    assert f"{home.name}/x {Path.home().name}/y birds/z w.pth" in html
    assert "ValueError: no" in html
    assert "the frames" not in html


@pytest.mark.parametrize("folder", ["/code", "/main", "/p", "/d", "/scroll", "/style", "/"])
def test_a_folder_named_like_a_tag_changes_nothing_of_the_page(tmp_path: Path, folder: str) -> None:
    shown = code_cell(image_png=png(NOISE), text_html="<p><code>x</code></p>")
    write_notebook(tmp_path / "notebook.ipynb", "`x`", shown)
    made = []
    for dataset in ("synthetic", folder):
        (tmp_path / "settings.json").write_text(json.dumps({"parameters": {"dataset": dataset}}))
        made.append(pages.render(tmp_path / "notebook.ipynb", {"error": f"{folder}x"}))
    assert made[0] == made[1]
