"""Where files lie: repository, data/, runs/ and reports/; and files written whole or not at all.

No large package is imported here: what does little else starts at once.
"""

import contextlib
import hashlib
import html
import json
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fixres_poc.config.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = "checkpoint.safetensors"
"""Name of the file in a training's folder that all its pairs read."""


def home() -> Path:
    """Folder that holds data/, runs/ and reports/: $FIXRES_HOME, else the repository."""
    return Path(os.environ.get("FIXRES_HOME", REPOSITORY)).resolve()


def resolve(path: str | Path, base: Path = REPOSITORY) -> Path:
    """Absolute form of a path; `~` is the user's home.

    Args:
        base: folder of relative paths: the repository, as for all settings; of the command line,
            the working folder.

    Links stay as they are given, so that no message names what they lead to.

    Raises:
        InputError: it can be no path: a link to itself, a NUL in it, too long a name, an unknown
            user's home.
    """
    try:
        absolute = base / Path(path).expanduser()
        target = absolute.resolve()
        target.exists()  # fails where a name is too long, as is_file() would later
        plain = Path(os.path.abspath(absolute))
        return plain if plain.resolve() == target else target  # `..` behind a link leads elsewhere
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"path {str(path)!r}: cannot be resolved ({error})") from None


def impersonal(value: Any, *paths: str | None) -> Any:
    """Text, or nested lists and mappings of it, with this machine's folders cut to their names.

    A path is cut where it stands alone: `/data/birds` in `/data/birds/1.jpg`, but not in
    `/data/birds2`, a URL or a closing tag. It is for text and for a notebook's cells, not for
    finished pages. Images (keys image/...) stay.

    Args:
        paths: files and folders that are cut as well, such as those of `named_paths`.
    """
    ours = (home(), REPOSITORY, Path(os.path.expanduser("~")), Path(sys.prefix))
    names = {str(path): path.name for path in ours}
    for each in filter(None, paths):
        known = [str(Path(each)), str(resolve(each)), os.path.realpath(resolve(each))]
        names |= dict.fromkeys(known, os.path.basename(os.path.abspath(each)))
    names |= {html.escape(path): html.escape(name) for path, name in names.items()}
    private = [
        re.escape(path)
        for path in sorted(names, key=len, reverse=True)
        if path[0] == "/" and names[path]
    ]
    # a colour, or a line end in a quoted text, may
    before = r"\x1b\[[\d;]*m|\\[nrt]|file://|(?<![\w.~/<-])(?<!&lt;)"
    pattern = re.compile(rf"({before})({'|'.join(private)})(?![\w~-]|\.\w)")

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: found[1] + names[found[2]], value)
        if isinstance(value, Mapping):
            return {
                key: each if str(key).startswith("image/") else cut(each)
                for key, each in value.items()
            }
        return [cut(each) for each in value] if isinstance(value, list | tuple) else value

    return cut(value)


def named_paths(settings: Mapping[str, Any]) -> list[str | None]:
    """Files and folders that the settings of a run or a sweep name."""
    extra = settings.get("extra_test") or {}
    names = ("dataset", "weights", "imagenet_list", "looked_at")
    return [*map(settings.get, names), extra.get("folder")]


def sweep_folder(sweep: str) -> Path:
    """Folder of a sweep's runs, such as runs/demo."""
    return home() / "runs" / sweep


def run_folder(sweep: str, name: str) -> Path:
    """Folder of one run, such as runs/demo/train64_test80_seed0."""
    return sweep_folder(sweep) / name


def report_folder(report: str) -> Path:
    """Folder of a report.

    Args:
        report: name of a sweep, whose report is in reports/<sweep>; or a folder, such as
            docs/reports/demo. A relative one is looked for in `home`, then in the repository.
    """
    if "/" not in report:
        return home() / "reports" / report
    return home() / report if (home() / report).exists() else REPOSITORY / report


def file_digest(file: Path, algorithm: str = "sha256") -> str | None:
    """Digest of a file's content in hex digits, None where there is no such file."""
    if not file.is_file():
        return None
    with open(file, "rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def read_record(file: Path, **types: Any) -> dict[str, Any]:
    """A JSON file of ours as a table; empty where it is absent or damaged, so that it is made anew.

    Args:
        types: of entries that it must have, such as `fingerprint=str`; `dict | None` where the
            entry may be absent.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    fits = all(isinstance(content.get(key), kind) for key, kind in types.items())
    return content if fits else {}


@contextlib.contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the path's place once it is whole; its folder is made.

    Args:
        lasting: wait until it is on the disk, so that it is whole also after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: Path, suffix: str) -> None:
    """Refuse a file to write before the work for it is done.

    Raises:
        InputError: another suffix than the given one, a folder, or no folder around it that may be
            written to.
    """
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"output = {str(path)!r}: allowed is a file whose name ends in {suffix}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(
            f"output = {str(path)!r}: the folder {str(path.parent)!r} is not there, or not writable"
        )


def write_atomically(path: Path, content: str | bytes, lasting: bool = True) -> None:
    """Write a file so that it is either complete or as it was before (see `replacing`)."""
    with replacing(path, lasting) as file:
        file.write(content.encode() if isinstance(content, str) else content)
