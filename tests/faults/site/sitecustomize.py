"""Holds a process at a chosen call until it is killed, or until the file `go` appears.

$FAULT_AT is module:function:text:number; the call of that number whose arguments' repr holds the
text is the one. $FAULT_FOLDER gets a file `held` with the process's number; nothing is held while
it is there.
"""

import functools
import importlib.abc
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any


def hold(module: ModuleType, function: str, text: str, number: int) -> None:
    plain, calls = getattr(module, function), []
    folder = Path(os.environ["FAULT_FOLDER"])

    @functools.wraps(plain)
    def held(*arguments: Any, **values: Any) -> Any:
        calls.extend([1] if text in repr((arguments, values)) else [])
        if len(calls) == number and not (folder / "held").exists():
            calls.append(1)
            (folder / "new").write_text(str(os.getpid()))
            (folder / "new").rename(folder / "held")
            while not (folder / "go").exists():
                time.sleep(0.05)
        return plain(*arguments, **values)

    setattr(module, function, held)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, *_: Any) -> Any:
        if name != module_name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        plain = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            plain(module)
            hold(module, function_name, text, int(number))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "FAULT_AT" in os.environ:
    module_name, function_name, text, number = os.environ["FAULT_AT"].split(":")
    if module_name in sys.modules:
        hold(sys.modules[module_name], function_name, text, int(number))
    else:
        sys.meta_path.insert(0, Finder())
