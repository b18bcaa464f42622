import shutil
import subprocess
from pathlib import Path

import pytest
import throwaway
from bs4 import BeautifulSoup

from fixres_poc.analysis import collection
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY, report_folder
from fixres_poc.sweep import reporting

RENDER = reporting.render


def test_failed_report_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    throwaway.use(monkeypatch, tmp_path)
    page = reporting.render_if_changed(throwaway.tiny())
    assert reporting.render_if_changed(throwaway.tiny()) == page
    page.unlink()

    def fail(*_: object) -> None:
        page.write_text("half")
        raise RuntimeError

    monkeypatch.setattr(reporting, "render", RENDER)
    monkeypatch.setattr(collection, "collect", fail)
    with pytest.raises(RuntimeError):
        reporting.render_if_changed(throwaway.tiny())
    monkeypatch.setattr(reporting, "render", throwaway.render)
    reporting.render_if_changed(throwaway.tiny())
    assert page.read_text() != "half"


def test_a_published_report_is_rendered_again_from_its_tables_alone(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "docs/reports/demo", tmp_path / "demo")
    (tmp_path / "demo/notebooks/train64_seed0.html").unlink()
    tables = {
        file: file.read_bytes()
        for name in ("*.csv", "*.parquet")
        for file in (tmp_path / "demo").glob(name)
    }
    (tmp_path / "demo/index.html").unlink()
    page = BeautifulSoup(
        reporting.rebuild(tmp_path / "demo").read_text(encoding="utf-8"), "html.parser"
    )
    links = {str(link["href"]) for link in page.select("#every-run a")}
    assert links == {f"notebooks/{file.name}" for file in (tmp_path / "demo/notebooks").iterdir()}
    assert len(page.select("img")) > 5
    assert {file: file.read_bytes() for file in tables} == tables
    with pytest.raises(InputError, match="no results"):
        reporting.rebuild(tmp_path)


def test_a_report_is_published_if_it_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "PUBLISHED", tmp_path / "published")
    with pytest.raises(InputError, match="tiny"):
        reporting.publish("tiny")
    for name in ("index.html", "notebooks/a.html"):
        (report_folder("tiny") / name).parent.mkdir(parents=True, exist_ok=True)
        (report_folder("tiny") / name).write_text(name)
    (tmp_path / "published/tiny").mkdir(parents=True)
    (tmp_path / "published/tiny/old.html").touch()
    reporting.publish("tiny")
    assert sorted(file.name for file in (tmp_path / "published/tiny").rglob("*.*")) == [
        "a.html",
        "index.html",
    ]
    monkeypatch.setattr(reporting, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="MB"):
        reporting.publish("tiny")


def test_what_sweeps_write_is_not_tracked() -> None:
    written = [
        "reports/x/index.html",
        "reports/index.html",
        "runs/x/sweep.json",
        "data/synthetic/x.jpg",
    ]
    ignored = subprocess.run(
        ["git", "check-ignore", *written], cwd=REPOSITORY, capture_output=True, text=True
    )
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert ignored.stdout.split() == written
    tracked = subprocess.run(
        ["git", "ls-files", "reports", "runs"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert tracked.stdout.split() == ["reports/README.md"]
