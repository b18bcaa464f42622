"""Where files lie: the repository, and the folders of data, runs and reports."""

import html
import os
import sys
from pathlib import Path

from fixres_poc.config.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


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
