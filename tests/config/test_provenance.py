import json
from pathlib import Path

import pytest
import throwaway

from fixres_poc.config import provenance


def test_code_hash_looks_at_code_only(tmp_path: Path) -> None:
    notebook = throwaway.write_notebook(tmp_path / "a.ipynb", "x = 1", "print(x)")
    before = provenance.code_hash(notebook)
    content = json.loads(notebook.read_text())
    content["cells"][0]["source"] = ["Other ", "text."]
    content["cells"][2] |= {
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}],
        "execution_count": 2,
    }
    content["cells"][2]["source"] = ["print", "(x)"]
    notebook.write_text(json.dumps(content))
    assert provenance.code_hash(notebook) == before
    content["cells"][2]["source"] = ["print(y)"]
    notebook.write_text(json.dumps(content))
    assert provenance.code_hash(notebook) != before


def test_what_was_computed_once_is_read_by_later_processes(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def area(name: str, *sides: int) -> tuple[str, int]:
        asked.append((name, *sides))
        return name, sides[0] * sides[1]

    def another_process(*arguments: object) -> tuple[str, int]:
        return provenance.kept(area)(*arguments)

    def files() -> list[Path]:
        return sorted((own_home / "runs" / ".cache").glob("*.json"))

    assert another_process("a", 2, 3) == another_process("a", 2, 3) == ("a", 6)
    assert another_process("a", 2, 4) == ("a", 8)
    assert asked == [("a", 2, 3), ("a", 2, 4)]
    assert len(files()) == 2
    for damaged in ("", "[]", '{"key": 1, "result": 7}'):
        for file in files():
            file.write_text(damaged)
        assert another_process("a", 2, 3) == ("a", 6)
    assert len(asked) == 2 + 3
    monkeypatch.setattr(provenance, "library_hash", lambda: "another library")
    assert another_process("a", 2, 3) == ("a", 6)
    monkeypatch.setattr(
        "fixres_poc.config.provenance.metadata.version", lambda name: "another version"
    )
    assert another_process("a", 2, 3) == ("a", 6)
    assert len(asked) == 2 + 3 + 2
    monkeypatch.setattr(
        provenance, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    assert another_process("b", 1, 1) == another_process("b", 1, 1) == ("b", 1)
    assert len(asked) == 2 + 3 + 2 + 2
