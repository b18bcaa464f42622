"""A real browser for tests of pages, and all that a page asks for and says."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
)
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
NEEDED = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on PATH")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PHONE, DESK = 390, 1400


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def opened(
    browser: Browser, address: str, width: int = DESK, **options: Any
) -> Iterator[tuple[Page, list[str], list[str]]]:
    """A page, what it asked for, and what it said: on the console, in errors and in dialogs."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    asked = list[str]()
    said = list[str]()

    def close(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", close)
    page.goto(address)
    yield page, asked, said
    page.close()
