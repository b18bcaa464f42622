"""What this machine is: its cores, and what is measured once and kept in runs/machine.json, for all runs alike."""

import json
import os
from collections.abc import Callable
from typing import Any

from filelock import FileLock

from fixres_poc.config import home
from fixres_poc.files import write_atomically


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS: all


def remembered(key: str, measure: Callable[[], Any]) -> Any:
    """What was measured under this key before, else measured now; of several processes one measures.

    Args:
        key: names what is measured, and all that it depends on.
        measure: returns a JSON value.
    """
    folder = home() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".machine.lock"):
        known = _read()
        if key not in known:
            known[key] = measure()
            write_atomically(folder / "machine.json", json.dumps(known, indent=1, sort_keys=True))
    return known[key]


def recall(key: str) -> Any:
    """What is kept under this key, None where there is nothing."""
    return _read().get(key)


def remember(key: str, value: Any) -> None:
    """Keep a JSON value under this key instead of what was there."""
    folder = home() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".machine.lock"):
        write_atomically(folder / "machine.json", json.dumps(_read() | {key: value}, indent=1, sort_keys=True))


def _read() -> dict[str, Any]:
    try:
        known = json.loads((home() / "runs" / "machine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
