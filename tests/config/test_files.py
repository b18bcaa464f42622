from pathlib import Path

import pytest

from fixres_poc.config import files


def test_relative_paths_are_the_repositorys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.resolve("data/a") == files.REPOSITORY / "data/a"
    assert files.resolve("a", tmp_path) == tmp_path / "a"
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    assert files.home() == tmp_path
    monkeypatch.delenv("FIXRES_HOME")
    assert files.home() == files.REPOSITORY


@pytest.mark.parametrize(
    ("dataset", "text", "expected"),
    [
        (
            "/code",
            "/code/a.jpg '/code' </code> https://x.org/code /code2 x/code /code-old",
            "code/a.jpg 'code' </code> https://x.org/code /code2 x/code /code-old",
        ),
        (
            "/p",
            "<td>/p/1.jpg</td><p>/q</p> a/p+b == ../p /p.",
            "<td>p/1.jpg</td><p>/q</p> a/p+b == ../p p.",
        ),
        (
            "/data/birds/",
            "file:///data/birds/x \x1b[31m/data/birds/y",
            "file://birds/x \x1b[31mbirds/y",
        ),
        ("/a&b/c&d", "&quot;/a&amp;b/c&amp;d&quot; /a&b/c&d", "&quot;c&amp;d&quot; c&d"),
        ("/", "/ </b> //", "/ </b> //"),
        ("/no", r"'no: \n/no/x' /no/..", r"'no: \nno/x' no/.."),
        (
            "here/birds",
            f"{files.REPOSITORY}/here/birds/1.jpg {files.REPOSITORY}",
            f"birds/1.jpg {files.REPOSITORY.name}",
        ),
    ],
)
def test_paths_of_the_machine_are_cut_where_they_stand_alone(
    dataset: str, text: str, expected: str
) -> None:
    nested = {"text": [text], "image/png": "/code/p", "number": 1}
    assert files.impersonal(nested, dataset) == nested | {"text": [expected]}


def test_the_target_of_a_link_is_cut_as_well(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "birds").symlink_to(tmp_path / "secret")
    private = files.named_paths({"extra_test": {"folder": str(tmp_path / "birds")}})
    assert files.impersonal(f"{tmp_path}/secret/1.jpg", *private) == "birds/1.jpg"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"[" * 99_999, b'{"b": 1}', b'{"a": "1"}']
)
def test_damaged_records_are_taken_for_absent(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    assert files.read_record(file, a=int) == files.read_record(tmp_path, a=int) == {}
    file.write_text('{"a": 1}')
    assert files.read_record(file, a=int, b=str | None) == {"a": 1}
