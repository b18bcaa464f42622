from pathlib import Path

import pytest

from fixres_poc.config import paths


def test_relative_paths_are_the_repositorys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.resolve("data/a") == paths.REPOSITORY / "data/a"
    assert paths.resolve("/a") == Path("/a")
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    assert paths.run_folder("demo", "baseline") == tmp_path / "runs/demo/baseline"
    assert paths.report_folder("demo") == tmp_path / "reports/demo"
    monkeypatch.delenv("FIXRES_HOME")
    assert paths.home() == paths.REPOSITORY
