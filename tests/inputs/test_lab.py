"""`make lab`: JupyterLab asks for its token and listens on this machine's own address only."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from fixres_poc.config.files import REPOSITORY

LIMIT_S = 60


def command() -> list[str]:
    """What `make lab` runs, on this interpreter's environment."""
    made = ["make", "--dry-run", "lab", f"VENV={sys.prefix}"]
    lines = subprocess.run(
        made, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    (line,) = [line for line in lines if "jupyterlab" in line]
    return shlex.split(line.replace("$FIXRES_VENV", sys.prefix).replace("$PWD", str(REPOSITORY)))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[psutil.Process, int]]:
    """The server's process and port; only where it starts from is changed: no browser, a free port, no user's files."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    with open(tmp_path / "log", "w") as log:
        arguments = [*command(), "--no-browser", "--ServerApp.port=0", "--allow-root"]
        server = subprocess.Popen(
            arguments, stdout=log, stderr=log, cwd=REPOSITORY, start_new_session=True
        )
    process, end = psutil.Process(server.pid), time.monotonic() + LIMIT_S
    try:
        while not listening(process):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield process, listening(process)[0][1]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """(address, port) of every socket that the server listens on."""
    every = process.net_connections("inet")
    return [(each.laddr.ip, each.laddr.port) for each in every if each.status == psutil.CONN_LISTEN]


def test_lab_wants_its_token_and_is_for_this_machine_only(lab: tuple[psutil.Process, int]) -> None:
    process, port = lab
    session = requests.Session()
    session.trust_env = False
    for path in ("contents", "kernels", "terminals"):
        assert session.get(f"http://127.0.0.1:{port}/api/{path}", timeout=30).status_code == 403
    assert session.post(f"http://127.0.0.1:{port}/api/kernels", timeout=30).status_code == 403
    assert {address for address, _ in listening(process)} == {"127.0.0.1"}
