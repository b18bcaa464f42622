"""What a user's own set-up and a container lack or bring, kept away from runs: they look the same everywhere.

All of it is put into the environment, which Snakemake, runs and kernels inherit.
"""

import os
import warnings

from fixres_poc.config.files import home

FOREIGN = ("MPLBACKEND", "PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONWARNINGS")


def shield() -> None:
    """Leave out the user's settings of Python, IPython and matplotlib; name a user whom the system does not know."""
    for name in FOREIGN:
        os.environ.pop(name, None)
    warnings.filters[:] = [each for each in warnings.filters if each[0] != "error"]  # type: ignore[index]
    os.environ["MATPLOTLIBRC"] = os.devnull
    runs = home() / "runs"
    os.environ["IPYTHONDIR"] = str(runs / ".ipython")
    if os.path.expanduser("~") == "~":  # neither $HOME nor an entry in /etc/passwd
        os.environ["HOME"] = str(runs / ".cache")
    os.environ.setdefault("USER", str(os.getuid()))  # Snakemake asks for a name
