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
import pytest
from bs4 import BeautifulSoup
from paged import PARAMETERS, code, display, notebook, page, printed, raised, text
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
RUNS = sorted(run.name for run in SWEEP.runs() if run.name != MISSING)
NOISE = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)


def write_notebook(path: Path, heading: str, *cells: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook(text(f"# {heading}\n\nWords."), *cells), path)  # type: ignore[no-untyped-call]
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(tmp_path / "notebooks"))
    cells = code(*PARAMETERS), text("## Answer"), code("print('report', report)")
    write_notebook(tmp_path / "notebooks/05_results.ipynb", "The question?", *cells)
    for name in RUNS:
        file = write_notebook(run_folder("tiny", name) / "notebook.ipynb", f"Notebook of {name}")
        if name != FAILED:
            content = json.dumps({"settings": {}, "wall_seconds": 61})
            file.with_name("metrics.json").write_text(content)
    run_state.end(run_folder("tiny", FAILED), Failure("error", f"ValueError: {EVIL}"))
    return tmp_path


def render_report() -> Path:
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
        return reporting.render(SWEEP)


def drawn(image: Any = NOISE, **metadata: Any) -> dict[str, Any]:
    """An output that shows an image (H, W, 3) as PNG."""
    content = BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return display({"image/png": base64.b64encode(content.getvalue()).decode()}, **metadata)


def parsed(made: Path | str) -> BeautifulSoup:
    html = made if isinstance(made, str) else made.read_text(encoding="utf-8")
    return BeautifulSoup(html, "html.parser")


def assert_harmless(html: BeautifulSoup) -> None:
    assert [script.text for script in html("script")] == [pages.SCRIPT]
    policy = html.find("meta", content=re.compile("default-src"))
    assert f"script-src '{pages.SCRIPT_HASH}'" in str(policy)
    assert not html(["link", "iframe", "object", "base"])
    assert all(str(element["src"]).startswith("data:") for element in html(src=True))
    assert not [name for element in html(True) for name in element.attrs if name.startswith("on")]
    assert {element.name for element in html(href=True)} <= {"a"}
    assert not re.search(r"@import|url\(", str(html.style))


def test_report_has_every_run(home: Path) -> None:
    stale = home / "reports/tiny/notebooks/train32_seed0.html"
    stale.parent.mkdir(parents=True)
    stale.touch()
    index = render_report()
    html = parsed(index)
    assert_harmless(html)
    assert html.title is not None
    assert html.title.text == "The question?"
    assert "report reports/tiny" in html.text
    assert [link.text for link in html.select("nav.rail a")] == ["Answer"]
    rows = [[cell.text for cell in row(["th", "td"])] for row in html.select("table.runs tr")]
    assert rows == [
        ["training", "training", "96 px", "128 px"],
        ["64 px, seed 0", "1 min 1 s", "failed", "missing"],
    ]
    runs = html.select("#every-run")[0]
    assert f"{FAILED}, failed: ValueError: {EVIL}" in runs.text
    assert all(run.name in runs.text for run in SWEEP.runs() if "train_size" not in run.parameters)
    links = {str(link["href"]) for link in html.select("#every-run a")}
    assert links == {f"notebooks/{name}.html" for name in RUNS}
    assert {f"notebooks/{file.name}" for file in stale.parent.iterdir()} == links
    training, failed = (
        parsed(stale.with_name(f"{name}.html")) for name in ("train64_seed0", FAILED)
    )
    assert "efficientnet_lite0, synthetic, took 1 min 1 s" in training.text
    assert "took" not in failed.text
    assert_harmless(failed)
    assert EVIL in failed.select(".failure")[0].text
    assert failed.select('a[href="../index.html"]')


@pytest.mark.usefixtures("home")
def test_a_run_page_is_made_again_only_if_something_of_it_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    plain = pages.render

    def render(file: Path, shown: dict[str, Any]) -> str:
        made.append(file.parent.name)
        return plain(file, shown)

    monkeypatch.setattr(pages, "render", render)

    def again() -> list[str]:
        made.clear()
        render_report()
        return sorted(set(made) - {"results"})

    assert again() == RUNS
    assert again() == []
    run_state.end(run_folder("tiny", FAILED), Failure("error", "ValueError: another"))
    assert again() == [FAILED]
    write_notebook(run_folder("tiny", RUNS[0]) / "notebook.ipynb", "Other words")
    assert again() == RUNS[:1]
    monkeypatch.setattr(reporting, "library_hash", lambda **_: "of another look")
    assert again() == RUNS


def test_whatever_came_from_data_is_shown_as_text(tmp_path: Path) -> None:
    shown = [
        drawn(**{"image/png": {"alt": f"a line {EVIL}"}}),
        drawn(),
        display({"text/html": f"<table><tr><td onclick='x()'>{EVIL}</td></tr></table>"}),
        display({"text/markdown": f"**bold** {EVIL} [link](javascript:alert(1))"}),
        display({"text/plain": EVIL}),
        raised("E", EVIL, EVIL),
        printed(EVIL),
    ]
    cells = [text(f"## Class {EVIL}"), code(f"'{EVIL}'", outputs=shown)]
    file = write_notebook(tmp_path / "a.ipynb", f"Title {EVIL}", *cells)
    html = parsed(pages.render(file, {"name": EVIL, "back": EVIL}))
    assert_harmless(html)
    assert html.text.count("<script>") >= 9
    assert [image["alt"] for image in html("img")] == [f"a line {EVIL}", "figure"]
    assert not [link for link in html(href=True) if str(link["href"]).startswith("javascript")]


@pytest.mark.parametrize("kept", [False, True], ids=["photograph", "drawing"])
def test_images_are_inline_and_packed_and_code_is_folded(tmp_path: Path, kept: bool) -> None:
    image = np.repeat(NOISE[:2], 40, axis=0) if kept else NOISE
    shown = drawn(image)
    file = write_notebook(tmp_path / "a.ipynb", "Title", code("show()", outputs=[shown]))
    html = parsed(pages.render(file, {}))
    (packed,) = [str(shown["src"]).removeprefix("data:image/webp;base64,") for shown in html("img")]
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(packed))).convert("RGB"))
    assert (pixels == image).all() == kept
    assert len(packed) < len(shown["data"]["image/png"])
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
    write_notebook(home / "notebooks/05_results.ipynb", "Broken", code("1 / 0"))
    with pytest.raises(RuntimeError, match="05_results failed"):
        render_report()
    written = {file.stem for file in (home / "reports/tiny/notebooks").iterdir()}
    assert written == {*RUNS} - {FAILED}
    assert caplog.messages[0] == rf"no page for {FAILED}: ValueError: \x1b[2J\n"


def test_no_path_of_the_machine_and_no_traceback_is_passed_on(home: Path) -> None:
    shown = [
        printed(f"{home}/x {Path.home()}/y /mnt/birds/z /mnt/w.pth"),
        raised("ValueError", "no", "the frames", "ValueError: no"),
    ]
    file = write_notebook(home / "a_run/notebook.ipynb", "x", code("show()", outputs=shown))
    parameters = {"dataset": "/mnt/birds", "weights": "/mnt/w.pth"}
    file.with_name("settings.json").write_text(json.dumps({"parameters": parameters}))
    html = pages.render(file, {})
    assert f"{home.name}/x {Path.home().name}/y birds/z w.pth" in html
    assert "ValueError: no" in html
    assert "the frames" not in html


@pytest.mark.parametrize("folder", ["/code", "/p", "/scroll", "/style", "/"])
def test_a_folder_named_like_a_tag_changes_nothing_of_the_page(tmp_path: Path, folder: str) -> None:
    shown = [drawn(), display({"text/html": "<p><code>x</code></p>"})]
    file = write_notebook(tmp_path / "notebook.ipynb", "`x`", code("show()", outputs=shown))
    made = []
    for dataset in ("synthetic", folder):
        content = json.dumps({"parameters": {"dataset": dataset}})
        file.with_name("settings.json").write_text(content)
        made.append(pages.render(file, {"error": f"{folder}x"}))
    assert made[0] == made[1]


def test_checks_and_sections_that_do_not_apply_are_left_out() -> None:
    html = page(
        text("# Title"),
        text("## Boxes", "optional"),
        code("code", "optional"),
        text("## Pairs", "optional"),
        code("code", "optional", outputs=[printed("two pairs")]),
        text("the first", "optional"),
        code("code", "optional"),
        text("## Check", "check"),
        code("code", "check", outputs=[printed("the band holds")]),
        code("code"),
    )
    assert [heading.text.removesuffix("#") for heading in html("h2")] == ["Pairs"]
    assert [link.text for link in html.select("nav.rail a")] == ["Pairs"]
    assert "two pairs" in html.text
    assert not [words for words in ("Boxes", "the first", "band") if words in html.text]
    assert len(html.select("div.code")) == 2


def test_tables_scroll_and_keep_no_style_text() -> None:
    cleaned = pages.clean("<style scoped>td {color: red}</style><table><tr><th>a</th></tr></table>")
    assert cleaned.startswith('<div class="scroll"><table>')
    assert '<th scope="row">a</th>' in cleaned
    assert "color" not in cleaned


def test_the_first_screen_is_one_block_with_the_title_of_its_own() -> None:
    plain, title, one, two = (
        [display({"text/html": html})]
        for html in ("<p>0</p>", "<h1>Does it? Yes</h1>", "<p>1</p>", "<p>2</p>")
    )
    html = page(
        text("# Plain", "navigation"),
        code("x", outputs=plain),
        code("x", "first", outputs=title),
        code("x", "first", outputs=one),
        text("## Why"),
        code("x", outputs=two),
    )
    assert html.title is not None
    assert html.title.text == "Does it? Yes"
    (first,) = html.select("main > div.first")
    assert [shown.text for shown in first.select("div.output")] == ["Does it? Yes", "1"]
    assert first.find_next_sibling() == html.select("div.first + .contents")[0]
    assert len(html.select("#show-code")) == 1


def test_of_the_parameters_a_page_shows_the_first_group_and_what_the_run_was_given() -> None:
    first = "# Choose\na = 1  # a count\nb = 2"
    given = "# Parameters\nepochs = 70\nc = 4"
    defaults = code(
        f"{first}\n# Training\nepochs = 30\n# Set by sweeps: leave\nc = 3", "parameters"
    )
    html = page(defaults, code(given, "injected-parameters"))
    shown = [block.get_text().strip() for block in html.select("div.code")]
    assert shown == [first, given]
