"""`python -m fixres_poc` is the `fixres-poc` command."""

from fixres_poc.cli import app

app(prog_name="fixres-poc")
