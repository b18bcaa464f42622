"""Where files lie: the repository, data/, runs/ and reports/; and how to write one that is complete or not there.

No large package is imported here: what does little else starts at once.
"""

import contextlib
import html
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fixres_poc.config.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = "checkpoint.safetensors"
"""Name of the file in a training's folder that all its pairs read."""


def home() -> Path:
    """Folder that holds data/, runs/ and reports/: the repository, or $FIXRES_HOME where that is set."""
    return Path(os.environ.get("FIXRES_HOME", REPOSITORY)).resolve()


def resolve(path: str | Path) -> Path:
    """Absolute form of a path; relative ones are relative to the repository, `~` is the user's home.

    Raises:
        InputError: it can be no path: a link to itself, a NUL in it, too long a name, an unknown user's home.
    """
    try:
        resolved = (REPOSITORY / Path(path).expanduser()).resolve()
        resolved.exists()  # fails where a name is too long, as is_file() would later
        return resolved
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"path {str(path)!r}: cannot be resolved ({error})") from None


def impersonal(text: str, *paths: str | None) -> str:
    """The text with the given absolute paths, and the folders of this machine and its user, cut down to their names."""
    folders = [str(path) for path in (home(), REPOSITORY, Path.home(), sys.prefix) if len(Path(path).parts) > 1]
    private = folders + [path for path in paths if path and Path(path).is_absolute()]
    for path in sorted(private, key=len, reverse=True):
        for written in {path, html.escape(path)}:
            text = text.replace(written, html.escape(Path(path).name) if written != path else Path(path).name)
    return text


def sweep_folder(sweep: str) -> Path:
    """Folder of a sweep's runs, such as runs/demo."""
    return home() / "runs" / sweep


def run_folder(sweep: str, name: str) -> Path:
    """Folder of one run, such as runs/demo/train96_test120_seed0."""
    return home() / "runs" / sweep / name


def report_folder(sweep: str) -> Path:
    """Folder of a sweep's report, such as reports/demo."""
    return home() / "reports" / sweep


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


def write_atomically(path: Path, content: str | bytes, lasting: bool = True) -> None:
    """Write a file so that it is either complete or as it was before (see `replacing`)."""
    with replacing(path, lasting) as file:
        file.write(content.encode() if isinstance(content, str) else content)
