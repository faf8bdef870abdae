"""Pages in a real browser: nothing wider than the screen, what sorts sorts, and no text of a sample is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.base_model.load import load_tokenizer
from plumbline.sample_page.page import render
from plumbline.sample_page.shown import read_shown_set
from tests.helpers.browser import chromium, open_page
from tests.helpers.calibration_report import Disk, add_items, build_report
from tests.helpers.shown_set import CHOICES, HOSTILE, write_workspace

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("page")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("page")
    disk = Disk(root)
    add_items(disk)
    build_report(disk, root / "out")
    return (root / "out" / "report.html").as_uri()


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def test_the_page_fits_screens_sorts_and_prints(browser: Any, report: str, tmp_path: Path) -> None:
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = open_page(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
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
    page.emulate_media(media="print")  # Chromium leaves a button out where a page repeats a table's head
    shown = "all => all.map(button => getComputedStyle(button).display)"
    assert set(page.locator("thead button").evaluate_all(shown)) == {"contents"}
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open]):not(.aside)").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_the_page_of_samples_searches_sorts_and_runs_no_text(browser: Any, tmp_path: Path) -> None:
    root = write_workspace(tmp_path / "workspace")
    data, tokenizer = root / "data", load_tokenizer(root / "base")
    sets = [
        read_shown_set(
            data / "calibration_set" / name, data / "raw_corpus", tokenizer, data / "activation_stats" / name
        )
        for name in CHOICES
    ]
    for number, shown in enumerate((sets[:1], sets)):
        (tmp_path / f"{number}.html").write_text(render(*shown), encoding="utf-8")
    for number, width in ((0, 1280), (0, 390), (1, 1280), (1, 390)):
        page = open_page(browser, viewport={"width": width, "height": 900})
        trouble: list[str] = []
        page.on("pageerror", lambda error, trouble=trouble: trouble.append(str(error)))
        page.on("request", lambda request, trouble=trouble: trouble.append(request.url))
        page.goto((tmp_path / f"{number}.html").as_uri())
        page.locator("details").evaluate_all("all => all.forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert trouble == [(tmp_path / f"{number}.html").as_uri()] and "samples" in page.title()
        for text in HOSTILE:
            assert page.get_by_text(text).count() >= 1  # shown, not run

    cards = page.locator("article.sample:visible")
    page.fill("#search", "QUESTION 12")
    expected = sum("Question 12" in sample.text for shown in sets for sample in shown.samples)
    assert cards.count() == expected > 0 and page.locator("#count").inner_text() == f"{expected} of 21 samples"
    page.fill("#search", sets[0].samples[3].sample_id)  # ids are there in full
    assert {card.get_attribute("data-position") for card in cards.all()} >= {"3"}
    page.fill("#search", "")
    page.select_option("#which", "both")
    assert cards.count() == page.locator('article[data-in="both"]').count() < 21
    page.select_option("#which", "")
    page.select_option("#order", "-tokens")
    for column, shown in zip(page.locator(".column").all(), sets, strict=True):
        lengths = [int(str(card.get_attribute("data-tokens"))) for card in column.locator("article").all()]
        assert lengths == sorted((sample.tokens for sample in shown.samples), reverse=True)
