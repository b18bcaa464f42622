"""JupyterLab as `make lab` starts it: who may use it, and how a reader uses notebook 04 in it."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from chromium import NEEDED, opened
from playwright.sync_api import Browser, Page, expect

from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.settings import PairSettings
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method.stage1 import train_or_load

pytest_plugins = ["chromium"]
STEM = "04_fixres"
SMALL = {"image_limit": 60, "epochs": 1, "adapt_epochs": 1, "train_size": 32, "test_size": 48}
START_S, RUN_MS = 60, 240_000
# Bars go once they are full, sooner than one can look.
COUNT_BARS = """() => { window.bars = 0; new MutationObserver(
changes => { window.bars += changes.flatMap(each => [...each.addedNodes])
.filter(node => node.matches?.('.jp-OutputArea .widget-hprogress')).length; }
).observe(document.body, {subtree: true, childList: true}); }"""
ALL_ABOVE = """after => {
const cells = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
const numbers = cells.map(each => parseInt(each.textContent.slice(1)));
return numbers.length > 10 && numbers.every(each => each > after); }"""


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[psutil.Popen, int]]:
    """JupyterLab over a folder, its process and port: no browser, a free port, no user's files."""
    make = ["make", "--dry-run", "lab", f"VENV={sys.prefix}"]
    dry = subprocess.run(make, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    (command,) = [line for line in dry.stdout.splitlines() if "-m jupyterlab" in line]
    command += shlex.join([" --no-browser", "--allow-root", "--ServerApp.port=0", *options])
    environment = os.environ | {"FIXRES_VENV": sys.prefix, "PYTHONPATH": str(REPOSITORY)}
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        environment[name] = str(folder / "jupyter")
    for name in ("FIXRES_PROGRESS", "JUPYTER_TOKEN"):
        environment.pop(name, None)
    with open(folder / "lab.log", "wb") as log:
        server = psutil.Popen(
            ["sh", "-c", f"exec {command}"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + START_S
        while not listening(server):
            assert server.poll() is None, (folder / "lab.log").read_text()
            assert time.monotonic() < end, (folder / "lab.log").read_text()
            time.sleep(0.2)
        yield server, listening(server)[0][1]
    finally:
        server.terminate()
        server.wait(30)


def listening(server: psutil.Popen) -> list[tuple[str, int]]:
    """(address, port) of every socket that the server listens on."""
    every = server.net_connections("inet")
    return [(each.laddr.ip, each.laddr.port) for each in every if each.status == psutil.CONN_LISTEN]


def test_lab_wants_its_token_and_is_for_this_machine_only(tmp_path: Path) -> None:
    session = requests.Session()
    session.trust_env = False
    with serving(tmp_path) as (server, port):
        for path in ("contents", "kernels", "terminals"):
            assert session.get(f"http://127.0.0.1:{port}/api/{path}", timeout=30).status_code == 403
        assert session.post(f"http://127.0.0.1:{port}/api/kernels", timeout=30).status_code == 403
        assert {address for address, _ in listening(server)} == {"127.0.0.1"}


def write_small_copy(file: Path) -> dict[str, Any]:
    """The notebook, small, without outputs, in a sweep of its own; returns its parameters."""
    content = json.loads((REPOSITORY / "notebooks" / file.name).read_text(encoding="utf-8"))
    parameters: dict[str, Any] = {}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        if "parameters" in cell["metadata"].get("tags", []):
            text = "".join(cell["source"]).replace('sweep = "notebooks"', 'sweep = "lab"')
            for key, value in SMALL.items():
                text = re.sub(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
            cell["source"] = text
            exec(text, {}, parameters)
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    return parameters


@pytest.fixture
def lab(browser: Browser, tmp_path: Path) -> Iterator[tuple[Page, Path]]:
    """A copy of the notebook, with what notebook 03 leaves for it, and its page in JupyterLab."""
    file = tmp_path / "notebooks" / f"{STEM}.ipynb"
    settings = validate(PairSettings, write_small_copy(file), STEM).train_settings()
    train_or_load(settings, load_dataset(settings))
    tracker = "lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    chosen = tmp_path / "jupyter" / tracker
    chosen.parent.mkdir(parents=True)
    chosen.write_text('{"windowingMode": "none"}')  # cells out of sight are on the page, too
    with serving(tmp_path, "--IdentityProvider.token=reader") as (_, port):
        url = f"http://127.0.0.1:{port}/lab/tree/notebooks/{STEM}.ipynb?token=reader"
        with opened(browser, url) as (page, _, _):
            yield page, file


def run_all(page: Page, after: int = 0) -> int:
    """Run every cell, and wait until all have a number above `after`; the highest is returned."""
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    for _ in range(5):  # Lab's menu does nothing while Lab is not quite ready
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        prompt = (prompts.first.text_content() or "").strip("[]: ")
        if prompt == "*" or int(prompt or 0) > after:
            break
    page.wait_for_function(ALL_ABOVE, arg=after, timeout=RUN_MS)
    return max(int(each.strip("[]:")) for each in prompts.all_text_contents())


def saved(page: Page, file: Path) -> dict[str, Any]:
    """The notebook as its reader saves it, without errors."""
    before = file.stat().st_mtime_ns
    content: dict[str, Any] = {}
    page.keyboard.press("Control+s")
    for _ in range(100):
        page.wait_for_timeout(100)
        with suppress(json.JSONDecodeError):  # half written
            content = json.loads(file.read_text(encoding="utf-8"))
            if file.stat().st_mtime_ns != before:
                break
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
    assert not [each for each in outputs if each["output_type"] == "error"]
    return content


@pytest.mark.lab
@NEEDED
def test_reader_runs_changes_a_size_and_runs_again(lab: tuple[Page, Path]) -> None:
    page, file = lab
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
    page.locator(".jp-CodeCell .cm-content").first.click()  # menus act on what has the focus
    page.evaluate(COUNT_BARS)
    highest = run_all(page)
    assert page.evaluate("window.bars") >= 2  # an adaptation, an evaluation
    assert "train32_test48_seed0" in json.dumps(saved(page, file))

    cell = page.locator(".jp-CodeCell", has_text="explore(data.root")
    image = cell.locator(".jp-OutputArea-output img").first
    before = image.get_attribute("src") or ""
    cell.scroll_into_view_if_needed()
    cell.locator("select").first.select_option(index=1)
    expect(image).not_to_have_attribute("src", before, timeout=30_000)

    page.locator(".cm-line", has_text="test_size = 48").click()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+End")
    page.keyboard.type("test_size = 64  # side of the test crop in px")
    run_all(page, highest)
    content = saved(page, file)
    assert "train32_test64_seed0" in json.dumps(content)
    assert "widgets" not in content["metadata"]
    (explorer,) = [cell for cell in content["cells"] if "explore(data.root" in str(cell["source"])]
    assert any("image/png" in output.get("data", {}) for output in explorer["outputs"])
