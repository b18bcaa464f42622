"""Provenance of results: code of library and notebooks, versions, hardware.

A run is outdated when its notebook's code or one of `RESULT_PACKAGES` has changed. The other
packages do not change a run's results: `analysis` starts from stored predictions at every report.
"""

import hashlib
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from fixres_poc import __version__
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY

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
    "papermill",
    "nbconvert",
]
INJECTED = "injected-parameters"
"""Tag of the parameters cell that papermill adds."""


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def library_hash(everything: bool = False) -> str:
    """16 hex digits that change with the code of `RESULT_PACKAGES`.

    Args:
        everything: include all other packages and the report's data and templates.
    """
    package = Path(__file__).parents[1]
    if everything:
        files = [file for file in package.rglob("*") if file.suffix in REPORT_FILES]
    else:
        files = [file for name in RESULT_PACKAGES for file in (package / name).rglob("*.py")]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()[:16]


LIBRARY = library_hash()
"""Hash of the code that this process runs; the files may change later."""


def notebook_path(stem: str) -> Path:
    """Path of a notebook in $FIXRES_NOTEBOOKS, by default notebooks/."""
    return Path(os.environ.get("FIXRES_NOTEBOOKS", REPOSITORY / "notebooks")) / f"{stem}.ipynb"


def code_hash(notebook: Any) -> str:
    """16 hex digits that change with a notebook's code cells, not with injected parameters.

    Args:
        notebook: path of its file, or its content.

    Raises:
        InputError: the notebook is missing or cannot be read.
    """
    try:
        if isinstance(notebook, Path):
            notebook = json.loads(notebook.read_text(encoding="utf-8"))
        sources = [
            "".join(cell["source"])
            for cell in notebook["cells"]
            if cell["cell_type"] == "code" and INJECTED not in cell["metadata"].get("tags", ())
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{notebook}: cannot be read as a notebook ({type(error).__name__}: {error})"
        ) from None
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def processor() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    match = re.search(r"(?m)^model name.*?: *(.*)", text)
    return match[1].strip() if match else platform.processor()


def environment(gpu: str | None = None) -> dict[str, Any]:
    """Versions of Python and the main packages, and the machine's hardware.

    Args:
        gpu: name of the accelerator, or None; passed in, as asking for it imports torch.

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
    versions |= {name: metadata.version(name) for name in PACKAGES}
    return {"versions": versions, "hardware": hardware}
