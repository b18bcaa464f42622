import json
from pathlib import Path

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
