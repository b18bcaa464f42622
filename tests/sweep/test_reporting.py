from pathlib import Path

import pytest
import throwaway

from fixres_poc.analysis import collection
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
