"""What results were made with: code of library and notebooks, versions, hardware. Neither torch nor pandas in here.

A run is outdated when its notebook's code or one of `RESULT_PACKAGES` has changed. The other
packages only run, choose from and show what was computed before: `analysis` starts from stored
predictions at every report.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

from fixres_poc import __version__
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY, home, read_record, write_atomically

RESULT_PACKAGES = ("data", "model", "method")
REPORT_FILES = (".py", ".csv", ".j2", ".js", ".css", ".mplstyle")
PACKAGES = [
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
]
PACKAGES += ["papermill", "nbconvert"]
INJECTED = "injected-parameters"
"""Tag of the cell that papermill adds."""
T = TypeVar("T")


def cores() -> int:
    """Processor cores that this process may use."""
    # macOS: all
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def library_hash(everything: bool = False) -> str:
    """16 hex digits that change with the code of `RESULT_PACKAGES`.

    Args:
        everything: with all other packages and the report's data and templates as well.
    """
    package = Path(__file__).parents[1]
    if everything:
        files = [file for file in package.rglob("*") if file.suffix in REPORT_FILES]
    else:
        files = [file for name in RESULT_PACKAGES for file in (package / name).rglob("*.py")]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()[:16]


LIBRARY = library_hash()
"""Of the code that this process runs: the files may be edited while it does."""


def kept(function: Callable[..., T]) -> Callable[..., T]:
    """Like `functools.cache`, and for later processes too: in runs/.cache, by arguments, library, torch and timm.

    For functions of a network's name and the like, whose arguments and results are numbers, strings
    and tuples of them.
    """

    @functools.cache
    @functools.wraps(function)
    def call(*arguments: Any) -> T:
        versions = [metadata.version(name) for name in ("torch", "timm")]
        key = json.dumps(
            [function.__module__, function.__qualname__, arguments, library_hash(), versions]
        )
        file = home() / "runs" / ".cache" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        found = read_record(file)
        if found.get("key") == key and "result" in found:
            return tuple(found["result"]) if isinstance(found["result"], list) else found["result"]  # type: ignore[return-value]
        result = function(*arguments)
        with contextlib.suppress(OSError):
            write_atomically(file, json.dumps({"key": key, "result": result}))
        return result

    return call


def notebook_path(stem: str) -> Path:
    """Path of a notebook in notebooks/, or in $FIXRES_NOTEBOOKS where that is set."""
    return Path(os.environ.get("FIXRES_NOTEBOOKS", REPOSITORY / "notebooks")) / f"{stem}.ipynb"


def code_hash(notebook: Path | Mapping[str, Any], kinds: tuple[str, ...] = ("code",)) -> str:
    """16 hex digits that change with a notebook's code cells, but not with its text, outputs or injected parameters.

    Args:
        notebook: its file or its content.
        kinds: the cells to look at, with "markdown" for the text as well.

    Raises:
        InputError: no such notebook, or it is not a notebook.
    """
    try:
        content = (
            json.loads(notebook.read_text(encoding="utf-8"))
            if isinstance(notebook, Path)
            else notebook
        )
        cells = [
            cell for cell in content["cells"] if INJECTED not in cell["metadata"].get("tags", ())
        ]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] in kinds]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{notebook}: cannot be read as a notebook ({type(error).__name__}: {error})"
        ) from None
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def processor() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def environment(gpu: str | None = None) -> dict[str, Any]:
    """Versions of Python and the main packages (those installed), and the machine's hardware.

    Args:
        gpu: name of the accelerator, None without one (asking for it would mean importing torch).

    Returns:
        `versions` (name to version) and `hardware` (cpu, cores, memory_bytes, gpu).
    """
    hardware = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
    }
    versions = {"python": platform.python_version(), "fixres_poc": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"versions": versions, "hardware": hardware}
