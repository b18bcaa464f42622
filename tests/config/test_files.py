from pathlib import Path

import pytest

from fixres_poc.config import files


def test_relative_paths_are_the_repositorys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.resolve("data/a") == files.REPOSITORY / "data/a"
    assert files.resolve("/a") == Path("/a")
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    assert files.run_folder("demo", "baseline") == tmp_path / "runs/demo/baseline"
    assert files.report_folder("demo") == tmp_path / "reports/demo"
    monkeypatch.delenv("FIXRES_HOME")
    assert files.home() == files.REPOSITORY
