import shutil
from pathlib import Path
from unittest.mock import Mock

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
    page.write_text("half")
    with monkeypatch.context() as patch:
        patch.setattr(reporting, "render", RENDER)
        patch.setattr(collection, "collect", Mock(side_effect=RuntimeError))
        with pytest.raises(RuntimeError):
            reporting.render_if_changed(throwaway.tiny())
    reporting.render_if_changed(throwaway.tiny())
    assert page.read_text() != "half"
    page.write_text(whole := page.read_text().removesuffix("</html>"))
    reporting.render_if_changed(throwaway.tiny())
    assert page.read_text() != whole
    (table := page.with_name("results.csv")).unlink()
    reporting.render_if_changed(throwaway.tiny())
    assert table.exists()


def test_reports_of_one_name_may_be_made_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fixres_poc.report.sentences.write", Mock())
    monkeypatch.setattr(reporting, "_execute_results", executed := Mock())
    monkeypatch.setattr(reporting, "_write_index", Mock())
    for parent in ("a", "b"):
        reporting.rebuild(tmp_path / parent / "demo")
    first, second = (call.args[0] for call in executed.call_args_list)
    assert first != second


def test_the_tables_are_those_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    (tmp_path / "reports/demo").mkdir(parents=True)
    monkeypatch.setattr("fixres_poc.report.sentences.write", Mock())
    monkeypatch.setattr(reporting, "_execute_results", executed := Mock())
    monkeypatch.setattr(reporting, "_write_index", Mock())
    for parent in (REPOSITORY, REPOSITORY / "reports", REPOSITORY / "docs/reports"):
        reporting.rebuild(parent / "demo")
        assert report_folder(executed.call_args.args[1]) == parent / "demo"
    assert executed.call_args.args[1] == "docs/reports/demo"  # no path of this clone


def test_images_that_were_looked_at_are_an_input_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    (listed := tmp_path / "looked_at.txt").write_text("a.jpg\n")
    sweep = throwaway.tiny().model_copy(update={"looked_at": str(listed)})
    before = reporting.made_from(sweep)
    listed.write_text("b.jpg\n")
    assert reporting.made_from(sweep) != before


def test_a_published_report_is_rendered_again_from_its_tables_alone(tmp_path: Path) -> None:
    report = Path(shutil.copytree(REPOSITORY / "docs/reports/demo", tmp_path / "demo"))
    tables = {file: file.read_bytes() for file in report.glob("*.[cp][sa]*")}
    for name in ("notebooks/train64_seed0.html", "index.html"):
        (report / name).unlink()
    page = BeautifulSoup(reporting.rebuild(report).read_text(encoding="utf-8"), "html.parser")
    links = {str(link["href"]) for link in page.select("#every-run a")}
    assert links == {f"notebooks/{file.name}" for file in (report / "notebooks").iterdir()}
    assert len(page.select("img")) > 5
    assert {file: file.read_bytes() for file in tables} == tables
    assert len(tables) > 2
    with pytest.raises(InputError, match="no results"):
        reporting.rebuild(tmp_path)
    header, *_ = (report / "results.csv").read_text(encoding="utf-8").splitlines()
    (report / "results.csv").write_text(header, encoding="utf-8")
    with pytest.raises(InputError, match="demo: its tables are damaged"):
        reporting.rebuild(report)


def test_a_report_is_published_with_the_first_seeds_pages_if_it_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "PUBLISHED", tmp_path / "published")
    sweep = throwaway.tiny()
    with pytest.raises(InputError, match="tiny"):
        reporting.publish(sweep)
    report, published = report_folder("tiny"), tmp_path / "published/tiny"
    shutil.copytree(REPOSITORY / "docs/reports/from_scratch", report)
    most = sum(file.stat().st_size for file in report.rglob("*") if file.is_file())
    monkeypatch.setattr(reporting, "MOST_BYTES", most)
    (report / "index.html").write_text("with links to all pages")
    later = report / "notebooks/train64_seed1.html"
    later.write_text(" " * most)
    published.mkdir(parents=True)
    (published / "old.html").touch()
    page = BeautifulSoup(reporting.publish(sweep).read_text(encoding="utf-8"), "html.parser")
    copied, made = (
        {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        for folder in (published, report)
    )
    assert copied == made - {str(later.relative_to(report))}
    links = {str(link["href"]) for link in page.select("#every-run a")}
    assert links == {name for name in copied if name.startswith("notebooks/")}
    monkeypatch.setattr(reporting, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="MB"):
        reporting.publish(sweep)
