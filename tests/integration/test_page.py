"""The report in a real browser: nothing wider than the screen, tables that sort, everything open on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.calibration_report import Disk, add_items, build_report

pytestmark = pytest.mark.integration
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e '.[dev]')")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("page")
    disk = Disk(root)
    add_items(disk)
    build_report(disk, root / "out")
    return (root / "out" / "report.html").as_uri()


@pytest.fixture
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def test_the_page_fits_screens_sorts_and_prints(browser: Any, report: str, tmp_path: Path) -> None:
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        errors: list[str] = []
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        page.goto(report)
        page.locator("details").evaluate_all("all => all.forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert not errors
        inside = page.locator("table").evaluate_all("all => all.every(table => table.closest('.scroll'))")
        assert inside  # a wide table scrolls by itself
    assert page.locator("nav a").count() == page.locator("h2").count() > 10

    table = page.locator("table.sortable").first
    heading = table.locator("th", has_text="against random")

    def differences() -> list[str]:
        return [cell.get_attribute("data-value") for cell in table.locator("tbody td:nth-child(4)").all()]

    numbers = sorted(float(value) for value in differences() if value)
    assert 0 < len(numbers) < table.locator("tbody tr").count()
    for order, expected in (("ascending", numbers), ("descending", numbers[::-1])):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == order
        found = differences()
        assert [float(value) for value in found[: len(numbers)]] == expected
        assert set(found[len(numbers) :]) == {""}  # what has no figure stays at the end

    page.reload()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open]):not(.aside)").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
