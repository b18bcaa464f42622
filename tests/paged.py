"""What tests of pages share: cells and outputs of notebooks, and the page of some."""

from typing import Any

import nbformat
from bs4 import BeautifulSoup

from fixres_poc.report import pages

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PARAMETERS = "report = ''", "parameters"
"""Source and tag of a report's first cell."""


def text(source: str, *tags: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": source, "metadata": {"tags": [*tags]}}


def code(source: str, *tags: str, outputs: Any = ()) -> dict[str, Any]:
    return text(source, *tags) | {"cell_type": "code", "outputs": [*outputs], "execution_count": 1}


def display(data: dict[str, str], **metadata: Any) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def printed(words: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": words}


def raised(name: str, value: str, *traceback: str) -> dict[str, Any]:
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": [*traceback]}


def notebook(*cells: dict[str, Any]) -> Any:
    """As nbformat reads it."""
    content = {"cells": [*cells], "metadata": {"kernelspec": KERNEL}}
    return nbformat.from_dict(content | {"nbformat": 4, "nbformat_minor": 4})  # type: ignore[no-untyped-call]


def page(*cells: dict[str, Any]) -> BeautifulSoup:
    """The page of a notebook that is not in a file."""
    return BeautifulSoup(pages.render_content(notebook(*cells), {}), "html.parser")
