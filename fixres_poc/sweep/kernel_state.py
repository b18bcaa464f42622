"""What runs inside a job's kernel: its start, and the state that each of its notebooks begins with.

`python -m fixres_poc.sweep.kernel_state <parent's process number> <arguments of ipykernel>` starts
a kernel. `note` is called once after that, `restore` before every notebook, both by
`kernel.Kernel`.
"""

import ast
import contextlib
import ctypes
import gc
import json
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
Noted = list[tuple[Callable[[Any], object], Any]]
"""Functions that put a value back, and the values."""
_noted: Noted = []


def note(notebooks: Sequence[str]) -> None:
    """Import what these notebooks import, and note the state that every notebook begins with."""
    for name in notebooks:
        # papermill says what is wrong with it
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            _import(Path(name))
    gc.collect()
    gc.freeze()
    libraries = {
        "numpy": _numpy,
        "pandas": _pandas,
        "matplotlib.pyplot": _matplotlib,
        "torch": _torch,
    }
    _noted[:] = _namespace()
    for name in libraries.keys() & sys.modules.keys():
        _noted.extend(libraries[name]())
    _noted.extend(_python())


def restore(variables: Mapping[str, str]) -> None:
    """Put the noted state back, free memory, and set the next notebook's environment variables."""
    if tqdm := sys.modules.get("tqdm.std"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()
    if widgets := sys.modules.get("ipywidgets"):
        widgets.Widget.close_all()
    for put_back, value in _noted:
        put_back(value)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(torch.initial_seed())
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    os.environ.update(variables, FIXRES_BEGUN=str(time.time()))


def _import(notebook: Path) -> None:
    """Do a notebook's imports as its cells do them; what fails fails again in its cell."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        # text fails to compile, or imports nothing
        with contextlib.suppress(Exception):
            tree = ast.parse("".join(cell["source"]))
            tree.body = [
                each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)
            ]
            exec(compile(tree, str(notebook), "exec"), {})


def _namespace() -> Noted:
    from IPython import get_ipython

    shell: Any = get_ipython()

    def begin(names: dict[str, Any]) -> None:
        shell.reset(new_session=True)  # its history and counts, too
        for name, value in names.items():
            shell.user_ns.setdefault(name, value)

    return [(begin, dict(shell.user_ns))]


def _python() -> Noted:
    def set_environment(values: dict[str, str]) -> None:
        os.environ.clear()
        os.environ.update(values)

    def set_filters(filters: Any) -> None:
        warnings.resetwarnings()
        warnings.filters[:] = filters  # type: ignore[index]

    return [
        (set_environment, dict(os.environ)),
        (os.chdir, os.getcwd()),
        (partial(sys.path.__setitem__, slice(None)), list(sys.path)),
        (set_filters, list(warnings.filters)),
    ]


def _numpy() -> Noted:
    import numpy as np

    return [
        (lambda options: np.set_printoptions(**options), np.get_printoptions()),
        (lambda errors: np.seterr(**errors), np.geterr()),
    ]


def _pandas() -> Noted:
    import pandas as pd

    def put_back(key: str) -> None:
        with warnings.catch_warnings(action="ignore"):  # options that pandas will drop
            pd.reset_option(key)

    return [(put_back, "all")]


def _matplotlib() -> Noted:
    import matplotlib.pyplot as plt

    def set_backend(name: str) -> None:
        if plt.get_backend() != name:
            plt.switch_backend(name)

    plt.switch_backend(plt.get_backend())  # loads it, which sets parameters
    # as matplotlib.rc_context: nothing to validate
    set_parameters = partial(dict.update, plt.rcParams)
    return [
        (plt.close, "all"),
        (set_backend, plt.get_backend()),
        (set_parameters, dict(plt.rcParams.copy())),
    ]


def _torch() -> Noted:
    import torch

    cudnn = torch.backends.cudnn
    flags = ("benchmark", "deterministic", "allow_tf32")
    kept = ("num_threads", "default_dtype", "float32_matmul_precision", "rng_state")
    return [
        (torch.set_default_device, None),
        (torch.set_grad_enabled, True),
        (torch.use_deterministic_algorithms, False),
        *((getattr(torch, f"set_{name}"), getattr(torch, f"get_{name}")()) for name in kept),
        *((partial(setattr, cudnn, name), getattr(cudnn, name)) for name in flags),
    ]


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors, with GNU's C library.

    By default tensors of more than 32 MiB go back to the system when freed, and the next ones are
    new pages, each of which the system must clear first: half the time of a CPU network at 224 px
    and 32 images.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX in malloc.h: no block from the system alone
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: none back


def start_kernel(parent: int) -> None:
    """Be a kernel that Linux kills with its parent: its code may be deaf to signals."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before we asked
        sys.exit(1)
    keep_freed_memory()
    if Path(sys.path[0]) == Path.cwd():  # ipykernel puts the present folder there by its own name
        del sys.path[0]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if __name__ == "__main__":
    start_kernel(int(sys.argv.pop(1)))
