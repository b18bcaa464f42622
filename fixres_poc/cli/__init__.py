"""The command line: `fixres-poc`, or `python -m fixres_poc`; docs/command_line.md shows every command."""

from fixres_poc.cli import runs, sweeps
from fixres_poc.cli.application import app

__all__ = ["app", "runs", "sweeps"]
