"""The command line: `fixres-poc`, or `python -m fixres_poc`; see docs/command_line.md."""

from fixres_poc.cli import runs, sweeps
from fixres_poc.cli.application import app

__all__ = ["app", "runs", "sweeps"]
