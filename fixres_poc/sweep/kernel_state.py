"""Code that runs inside a job's kernel: its start, and the initial state of each notebook.

`python -m fixres_poc.sweep.kernel_state <parent's process number> <arguments of ipykernel>` starts
a kernel. Then `kernel.Kernel` calls `note` once, and `restore` before every notebook.
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
State = list[tuple[Callable[[Any], object], Any]]
"""Functions that restore a value, and the values."""
_state: State = []


def note(notebooks: Sequence[str]) -> None:
    """Do the imports of these notebooks, and note the state in which every notebook starts."""
    for name in notebooks:
        # papermill reports what is wrong with the file
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            _import(Path(name))
    gc.collect()
    gc.freeze()
    gc.enable()
    libraries = {
        "numpy": _numpy,
        "pandas": _pandas,
        "matplotlib.pyplot": _matplotlib,
        "torch": _torch,
    }
    _state[:] = _namespace()
    for name in libraries.keys() & sys.modules.keys():
        _state.extend(libraries[name]())
    _state.extend(_python())


def restore(variables: Mapping[str, str]) -> None:
    """Restore the noted state, free memory, and set the next notebook's environment variables."""
    if tqdm := sys.modules.get("tqdm.std"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()
    if widgets := sys.modules.get("ipywidgets"):
        widgets.Widget.close_all()
    for put_back, value in _state:
        put_back(value)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(torch.initial_seed())
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    os.environ.update(variables, FIXRES_BEGUN=str(time.time()))


def _import(notebook: Path) -> None:
    """Do a notebook's imports; those that fail here fail again in their cell."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        # Markdown does not compile, or imports nothing
        with contextlib.suppress(Exception):
            tree = ast.parse("".join(cell["source"]))
            tree.body = [
                node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            exec(compile(tree, str(notebook), "exec"), {})


def _namespace() -> State:
    from IPython import get_ipython

    shell: Any = get_ipython()

    def reset(names: dict[str, Any]) -> None:
        shell.reset(new_session=True)  # also clears history and execution counts
        for name, value in names.items():
            shell.user_ns.setdefault(name, value)

    return [(reset, dict(shell.user_ns))]


def _python() -> State:
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


def _numpy() -> State:
    import numpy as np

    return [
        (lambda options: np.set_printoptions(**options), np.get_printoptions()),
        (lambda errors: np.seterr(**errors), np.geterr()),
    ]


def _pandas() -> State:
    import pandas as pd

    def reset(key: str) -> None:
        with warnings.catch_warnings(action="ignore"):  # of deprecated options
            pd.reset_option(key)

    return [(reset, "all")]


def _matplotlib() -> State:
    import matplotlib.pyplot as plt

    def set_backend(name: str) -> None:
        if plt.get_backend() != name:
            plt.switch_backend(name)

    plt.switch_backend(plt.get_backend())  # loads the backend, which sets parameters
    # as matplotlib.rc_context does it, without validation
    set_parameters = partial(dict.update, plt.rcParams)
    return [
        (plt.close, "all"),
        (set_backend, plt.get_backend()),
        (set_parameters, dict(plt.rcParams.copy())),
    ]


def _torch() -> State:
    import torch

    cudnn = torch.backends.cudnn
    flags = ("benchmark", "deterministic", "allow_tf32")
    settings = ("num_threads", "default_dtype", "float32_matmul_precision", "rng_state")
    return [
        (torch.set_default_device, None),
        (torch.set_grad_enabled, True),
        (torch.use_deterministic_algorithms, False),
        *((getattr(torch, f"set_{name}"), getattr(torch, f"get_{name}")()) for name in settings),
        *((partial(setattr, cudnn, name), getattr(cudnn, name)) for name in flags),
    ]


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensors of this process, with GNU's C library.

    By default freed tensors of more than 32 MiB go back to the system, which must clear the pages
    of the next ones: half the time of a CPU network at 224 px and 32 images.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX in malloc.h: no block has a mapping of its own
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is given back


def start_kernel(parent: int) -> None:
    """Run a kernel that Linux kills with its parent, even if its code ignores other signals."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent had ended before
        sys.exit(1)
    keep_freed_memory()
    gc.disable()  # during the imports, until `note`
    if Path(sys.path[0]) == Path.cwd():  # ipykernel adds the working folder itself
        del sys.path[0]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if __name__ == "__main__":
    start_kernel(int(sys.argv.pop(1)))
