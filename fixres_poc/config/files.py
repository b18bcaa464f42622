"""Paths of the repository, data/, runs/ and reports/; atomic files; JSON records.

Nothing large is imported here, so that simple commands start at once.
"""

import codecs
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
"""Name of the file in a training's folder which its pairs read."""


def home() -> Path:
    """Folder that holds data/, runs/ and reports/: $FIXRES_HOME, else the repository."""
    return Path(os.environ.get("FIXRES_HOME", REPOSITORY)).resolve()


def resolve(path: str | Path, base: Path = REPOSITORY) -> Path:
    """Absolute form of a path; `~` is the user's home.

    Links are not followed, so that messages do not name their targets.

    Args:
        base: folder of relative paths: the repository for settings, the working folder for the
            command line.

    Raises:
        InputError: no path can be like this: a link to itself, a NUL, too long a name, the home of
            an unknown user.
    """
    try:
        absolute = base / Path(path).expanduser()
        target = absolute.resolve()
        target.exists()  # fails if a name is too long, as is_file() would later
        plain = Path(os.path.abspath(absolute))
        return plain if plain.resolve() == target else target  # `..` after a link differs
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"path {str(path)!r}: cannot be resolved ({error})") from None


def impersonal(value: Any, *paths: str | None) -> Any:
    """Shorten the paths of this machine to their last name, in text or nested lists and mappings.

    A path is replaced only where it stands alone: `/data/birds` in `/data/birds/1.jpg`, but not in
    `/data/birds2`, a URL or a closing tag. This works for text and for cells of notebooks, not for
    finished pages. Images (keys image/...) stay.

    Args:
        paths: more files and folders to shorten, such as those of `named_paths`.
    """
    folders = (home(), REPOSITORY, Path(os.path.expanduser("~")), Path(sys.prefix))
    names = {str(folder): folder.name for folder in folders}
    for path in filter(None, paths):
        forms = [str(Path(path)), str(resolve(path)), os.path.realpath(resolve(path))]
        names |= dict.fromkeys(forms, os.path.basename(os.path.abspath(path)))
    names |= {html.escape(path): html.escape(name) for path, name in names.items()}
    longest_first = sorted(names, key=len, reverse=True)
    private = "|".join(re.escape(path) for path in longest_first if path[0] == "/" and names[path])
    # before a path may stand a colour, or a line end in quoted text
    before = r"\x1b\[[\d;]*m|\\[nrt]|file://|(?<![\w.~/<-])(?<!&lt;)"
    pattern = re.compile(rf"({before})({private})(?![\w~-]|\.\w)")

    def shorten(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: match[1] + names[match[2]], value)
        if isinstance(value, Mapping):
            return {
                key: item if str(key).startswith("image/") else shorten(item)
                for key, item in value.items()
            }
        return [shorten(item) for item in value] if isinstance(value, list | tuple) else value

    return shorten(value)


def named_paths(settings: Mapping[str, Any]) -> list[str | None]:
    """Files and folders that the settings of a run or a sweep name."""
    extra = settings.get("extra_test") or {}
    keys = ("dataset", "weights", "imagenet_list", "looked_at")
    return [*map(settings.get, keys), extra.get("folder")]


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
            docs/reports/demo, relative to `home` if it is there, else to the repository.
    """
    if "/" not in report:
        return home() / "reports" / report
    folder = home() / report
    return folder if folder.exists() else REPOSITORY / report


def file_digest(file: Path, algorithm: str = "sha256") -> str | None:
    """Digest of a file's content in hex digits; None if there is no such file."""
    if not file.is_file():
        return None
    with open(file, "rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def read_lines(file: Path, setting: str) -> list[str]:
    """Non-empty lines of a text file in UTF-8, or in UTF-16 with a byte order mark.

    Args:
        setting: that names the file, for errors.

    Raises:
        InputError: it is no regular file, or no such text.
    """
    try:
        if not file.is_file():
            raise OSError("no such file, or no regular one")
        content = file.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except (OSError, UnicodeError) as error:
        what = f"cannot be read as text in UTF-8 ({error})"
        raise InputError(f"{setting} = {str(file)!r}: {what}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_record(file: Path, **types: Any) -> dict[str, Any]:
    """Read a JSON object that the project wrote; empty if it is missing or damaged.

    Args:
        types: types of required entries, such as `fingerprint=str`; `dict | None` for an optional
            entry.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    fits = isinstance(content, dict) and all(
        isinstance(content.get(key), kind) for key, kind in types.items()
    )
    return content if fits else {}


@contextlib.contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces the path after the context; its folder is created.

    Args:
        lasting: synchronise the file first, so that it is complete even after a power cut.
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
    """Check the path of an output before the work for it starts.

    Raises:
        InputError: it has another suffix or is a folder, or its folder is missing or not writable.
    """
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"output = {str(path)!r}: allowed is a file whose name ends in {suffix}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(
            f"output = {str(path)!r}: the folder {str(path.parent)!r} is not there, or not writable"
        )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file as `replacing`: it is complete, or as it was before."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
