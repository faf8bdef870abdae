"""Chromium under the tests' hand: every page and every expectation waits as long as the servers may take."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.processes import PATIENCE

MILLISECONDS = 1000 * PATIENCE
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright; without Playwright or Chromium the test is skipped and says what is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e '.[dev]')")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS, timeout=MILLISECONDS)
        yield browser
        browser.close()


def open_page(browser: Any, **options: Any) -> Any:
    """A page in a context of its own; `options` are those of `browser.new_context`."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(MILLISECONDS)
    return page


def expect(locator: Any) -> Any:
    """Playwright's assertions on a locator, which repeat until they hold; their own patience would be five seconds."""
    from playwright.sync_api import expect

    expect.set_options(timeout=MILLISECONDS)
    return expect(locator)
