"""Notebook 04 in JupyterLab, as a reader uses it: started as by `make lab`, run, changed, run again, in a browser."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.settings import PairSettings
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method.stage1 import train_or_load

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on PATH"),
]
STEM = "04_fixres"
SMALL = {"image_limit": 60, "epochs": 1, "adapt_epochs": 1, "train_size": 32, "test_size": 48}
RUN_MS = 240_000
# Bars go once they are full, sooner than one can look.
COUNT_BARS = """() => { window.bars = 0; new MutationObserver(
changes => { window.bars += changes.flatMap(each => [...each.addedNodes])
.filter(node => node.matches?.('.jp-OutputArea .widget-hprogress')).length; }
).observe(document.body, {subtree: true, childList: true}); }"""


def write_small_copy(folder: Path) -> Path:
    """The notebook, small and without outputs, in a sweep of its own, since its bands do not hold."""
    content = json.loads((REPOSITORY / "notebooks" / f"{STEM}.ipynb").read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        if "parameters" in cell["metadata"].get("tags", []):
            text = "".join(cell["source"]).replace('sweep = "notebooks"', 'sweep = "lab"')
            for key, value in SMALL.items():
                text = re.sub(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
            cell["source"] = text
    file = folder / "notebooks" / f"{STEM}.ipynb"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    return file


def train(file: Path) -> None:
    """What notebook 03 leaves for this one."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parameters: dict[str, Any] = {}
    exec(
        next(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])),
        {},
        parameters,
    )
    settings = validate(PairSettings, parameters, STEM).train_settings()
    train_or_load(settings, load_dataset(settings))


@pytest.fixture
def lab(tmp_path: Path, own_home: Path) -> Iterator[tuple[str, Path]]:
    """Address of a JupyterLab over a copy of the notebook, and the copy."""
    file = write_small_copy(tmp_path / "copy")
    train(file)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = ["make", "-n", "lab", f"VENV={sys.prefix}"]
    lines = subprocess.run(
        said, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    (command,) = [line for line in lines if "-m jupyterlab" in line]
    mine = [
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=reader",
    ]
    mine += ["--no-browser", "--allow-root"]
    environment = {key: value for key, value in os.environ.items() if key != "FIXRES_PROGRESS"}
    environment |= {
        "FIXRES_VENV": sys.prefix,
        "PYTHONPATH": str(REPOSITORY),
        "FIXRES_HOME": str(own_home),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    environment |= {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "NO_PROXY": "127.0.0.1"}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path),
    }
    settings = tmp_path / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # cells out of sight are on the page, too
    with open(tmp_path / "lab.log", "wb") as log:
        given = ["sh", "-c", f"exec {command} {shlex.join(mine)}"]
        server = subprocess.Popen(
            given, env=environment, cwd=tmp_path / "copy", stdout=log, stderr=log
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token=reader", server)
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks/{STEM}.ipynb?token=reader", file
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(120):
        assert server.poll() is None, "JupyterLab has ended; see lab.log"
        try:
            direct.open(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail("JupyterLab does not answer")


def run_all(page: Any, after: int = 0) -> int:
    """Run every cell, and wait until all have a number above `after`; the highest is returned."""
    cell = page.locator(".jp-CodeCell").first
    for _ in range(5):  # Lab's menu does nothing while Lab is not quite ready
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        prompt = cell.locator(".jp-InputPrompt").text_content().strip("[]:")
        if prompt == "*" or int(prompt.strip() or 0) > after:
            break
    page.wait_for_function(
        """after => { const cells = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
        const numbers = cells.map(each => parseInt(each.textContent.slice(1)));
        return numbers.length > 10 && numbers.every(each => each > after); }""",
        arg=after,
        timeout=RUN_MS,
    )
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
    return max(int(each.strip("[]:")) for each in prompts)


def saved(page: Any, file: Path) -> dict[str, Any]:
    """The notebook as its reader saves it."""
    before = file.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    content: dict[str, Any] = {}
    for _ in range(100):
        page.wait_for_timeout(100)
        with contextlib.suppress(json.JSONDecodeError):  # half written
            content = json.loads(file.read_text(encoding="utf-8"))
            if file.stat().st_mtime_ns != before:
                break
    return content


def output_text(content: dict[str, Any]) -> str:
    outputs = [each for cell in content["cells"] for each in cell.get("outputs", [])]
    assert not [each for each in outputs if each["output_type"] == "error"]
    return "".join("".join(each.get("text", "")) for each in outputs)


def test_reader_runs_changes_a_size_and_runs_again(lab: tuple[str, Path], tmp_path: Path) -> None:
    url, file = lab
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
        # menus act on the notebook that has the focus
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.screenshot(path=tmp_path / "opened.png")
        page.evaluate(COUNT_BARS)
        highest = run_all(page)
        assert page.evaluate("window.bars") >= 2  # an adaptation, an evaluation
        assert "train32_test48_seed0" in output_text(saved(page, file))

        cell = page.locator(".jp-CodeCell", has_text="explore(data.root")
        image = cell.locator(".jp-OutputArea-output img").first
        before = image.get_attribute("src")
        cell.scroll_into_view_if_needed()
        cell.locator("select").first.select_option(index=1)
        sync_api.expect(image).not_to_have_attribute("src", before, timeout=30_000)
        page.screenshot(path=tmp_path / "explorer.png")

        page.locator(".cm-line", has_text="test_size = 48").click()
        page.keyboard.press("Home")
        page.keyboard.press("Shift+End")
        page.keyboard.type("test_size = 64  # side of the test crop in px")
        run_all(page, highest)
        content = saved(page, file)
        assert "train32_test64_seed0" in output_text(content)
        assert "widgets" not in content["metadata"]
        (explorer,) = [
            cell for cell in content["cells"] if "explore(data.root" in "".join(cell["source"])
        ]
        assert any("image/png" in each.get("data", {}) for each in explorer["outputs"])

        page.get_by_role("link", name="controls", exact=True).first.scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "contents.png")
        browser.close()
