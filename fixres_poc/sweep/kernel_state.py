"""What runs inside a job's kernel: its start, and the state that each of its notebooks begins with.

`python -m fixres_poc.sweep.kernel_state <parent's process number> <arguments of ipykernel>` starts a kernel. `note` is
called once after that, `restore` before every notebook, both by `kernel.Kernel`.
"""

import ast
import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
GARBAGE = (50_000, 20, 10)
"""Looking for garbage at the default pace takes a fifth of the time of imports: they leave many objects."""
BEGUN = "FIXRES_BEGUN"
"""Environment variable with the time at which the present notebook began (`time.time()`)."""
Restore = Callable[[], object]
_restores: list[Restore] = []


def note(notebooks: Sequence[str]) -> None:
    """Import what these notebooks import, and note the state that every notebook begins with."""
    for name in notebooks:
        _import(Path(name))
    gc.collect()
    gc.freeze()
    noting = {"numpy": _numpy, "pandas": _pandas, "matplotlib.pyplot": _matplotlib, "torch": _torch}
    noting |= {"tqdm": _tqdm, "ipywidgets": _widgets}
    _restores[:] = [_namespace()] + [noted() for name, noted in noting.items() if name in sys.modules] + [_python()]


def restore(variables: Mapping[str, str]) -> None:
    """Put the noted state back, free memory, and set the environment variables of the next notebook."""
    for each in _restores:
        each()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    os.environ.update(variables)
    os.environ[BEGUN] = str(time.time())


def _import(notebook: Path) -> None:
    """Do a notebook's imports as its cells do them; what fails fails again in its cell, where it is shown."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        with contextlib.suppress(Exception):
            tree = ast.parse(source)
            imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), str(notebook), "exec"), {})


def _namespace() -> Restore:
    from IPython import get_ipython

    shell: Any = get_ipython()  # type: ignore[no-untyped-call]
    names = dict(shell.user_ns)

    def restore() -> None:
        shell.reset(new_session=True)  # its history, too
        for name, value in names.items():
            shell.user_ns.setdefault(name, value)

    return restore


def _python() -> Restore:
    environment, folder, path = dict(os.environ), os.getcwd(), list(sys.path)
    filters, state = list(warnings.filters), random.getstate()

    def restore() -> None:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[:] = path
        warnings.resetwarnings()
        warnings.filters[:] = filters  # type: ignore[index]
        random.setstate(state)

    return restore


def _numpy() -> Restore:
    import numpy as np

    options, errors, state = np.get_printoptions(), np.geterr(), np.random.get_state()

    def restore() -> None:
        np.set_printoptions(**options)
        np.seterr(**errors)
        np.random.set_state(state)

    return restore


def _pandas() -> Restore:
    from pandas._config import config

    def values() -> dict[str, Any]:
        return {key: config.get_option(key) for key in config._registered_options}

    with _no_warnings():  # options that pandas will drop
        options = values()

    def restore() -> None:
        with _no_warnings():
            for key, value in values().items():
                if value is not options[key]:
                    config.set_option(key, options[key])

    return restore


def _matplotlib() -> Restore:
    import matplotlib.pyplot as plt

    parameters, backend = dict(plt.rcParams.copy()), plt.get_backend()

    def restore() -> None:
        plt.close("all")
        if plt.get_backend() != backend:
            plt.switch_backend(backend)
        dict.update(plt.rcParams, parameters)  # as matplotlib.rc_context: nothing to validate

    return restore


def _torch() -> Restore:
    import torch

    threads, dtype, seed, state = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.initial_seed(),
        torch.get_rng_state(),
    )
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")}

    def restore() -> None:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(precision)
        for name, value in flags.items():
            setattr(cudnn, name, value)
        torch.cuda.manual_seed_all(seed)
        torch.set_rng_state(state)

    return restore


def _tqdm() -> Restore:
    from tqdm.std import tqdm

    def restore() -> None:
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()

    return restore


def _widgets() -> Restore:
    from ipywidgets import Widget

    return Widget.close_all  # type: ignore[no-any-return]


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def start_kernel(parent: int) -> None:
    """Be a kernel that Linux kills with its parent: it may be stuck in code that hears no signal."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before we asked
        sys.exit(1)
    gc.set_threshold(*GARBAGE)
    if Path(sys.path[0]) == Path.cwd():  # ipykernel puts the present folder there by its own name
        del sys.path[0]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if __name__ == "__main__":
    start_kernel(int(sys.argv.pop(1)))
