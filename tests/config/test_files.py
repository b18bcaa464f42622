from pathlib import Path

import pytest

from fixres_poc.config import files
from fixres_poc.config.errors import InputError


def test_relative_paths_are_the_repositorys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.resolve("data/a") == files.REPOSITORY / "data/a"
    assert files.resolve("/a") == Path("/a")
    assert files.resolve("a", tmp_path) == tmp_path / "a"
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    assert files.run_folder("demo", "baseline") == tmp_path / "runs/demo/baseline"
    assert files.report_folder("demo") == tmp_path / "reports/demo"
    monkeypatch.delenv("FIXRES_HOME")
    assert files.home() == files.REPOSITORY


def test_a_file_in_whose_place_a_folder_lies_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        files.write_atomically(tmp_path, "content")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 99_999, b'{"b": 1}', b'{"a": "1"}'])
def test_damaged_records_are_taken_for_absent(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    assert files.read_record(file, a=int) == files.read_record(tmp_path, a=int) == {}
    file.write_text('{"a": 1}')
    assert files.read_record(file, a=int, b=str | None) == {"a": 1}
