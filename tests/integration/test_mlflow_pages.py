"""MLflow's own pages in a real browser: from the champion to its samples, and back."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import chromium, open_page
from tests.helpers.paths import PROJECT
from tests.helpers.small_chain import chain, register, second

pytestmark = pytest.mark.integration
SAMPLE = "the quick sample of this page"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address of `plumbline mlflow` over two evaluated models, and what it prints."""
    root = chain(tmp_path / "workspace", "random")
    second(root)
    page = tmp_path / "samples.html"
    page.write_text(f"<!doctype html><title>samples</title><p>{SAMPLE}</p>", encoding="utf-8")
    register(root, pages=[page])
    shutil.copy(PROJECT / "params.yaml", root)  # a whole one, for the command
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    environment = {**os.environ, "PLUMBLINE_ROOT": str(root), "PYTHONPATH": str(PROJECT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "plumbline.cli.main", "mlflow", "--port", port]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            while not _answers(f"{address}/health"):
                assert process.poll() is None, (tmp_path / "log").read_text()
            yield address, (tmp_path / "log").read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_from_the_champion_to_its_samples_and_back(served: tuple[str, str]) -> None:
    address, printed = served
    with chromium() as browser:
        _follow(open_page(browser, viewport={"width": 1600, "height": 1000}), address, printed)


def _follow(page: Any, address: str, printed: str) -> None:
    [bookmark] = re.findall(r"  plumbline: (\S+)", printed)
    page.goto(bookmark)  # the table of runs has the figures from the start
    for column in ("kl_mean", "top1_agreement", "weights_bytes"):
        page.get_by_role("columnheader", name=column).first.wait_for()
    page.get_by_text("Every quantized model, evaluated").first.wait_for()

    page.goto(f"{address}/#/models/plumbline/versions/1")
    page.get_by_text(re.compile(r"version 1 promoted by Ada: the first")).wait_for()
    with page.context.expect_page() as opened:  # MLflow opens links of a description in a new tab
        page.get_by_role("link", name="the samples it was calibrated with").click()
    page = opened.value
    page.frame_locator("iframe").get_by_text(SAMPLE).wait_for()
    page.get_by_role("tab", name="Overview").click()
    page.get_by_text("The samples that it was calibrated with are in the tab Artifacts").wait_for()
    page.get_by_role("link", name="plumbline").last.click()  # of the registered model
    page.get_by_text(re.compile(r"version 1 promoted by Ada: the first")).wait_for()
    assert "/models/plumbline" in page.url
