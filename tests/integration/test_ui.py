"""Dagster's UI in a real browser: materialize one partition by clicking, and see that it succeeded."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Workspace

pytestmark = pytest.mark.integration
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e '.[dev]')")

BROWSER = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(finished: Workspace, tmp_path: Path) -> Iterator[tuple[Workspace, str]]:
    """Dagster's webserver on a finished workspace."""
    workspace = finished.copy(tmp_path / "ui")
    port = free_port()
    log = (tmp_path / "webserver.log").open("w")
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, cwd=workspace.root, env=workspace.environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/server_info", process)
        yield workspace, url
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Poll until the server answers; an ended process ends the wait."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            with socket.socket() as pause:  # the kernel's own wait, a quarter of a second
                pause.settimeout(0.25)
                pause.bind(("127.0.0.1", 0))
                pause.listen()
                with pytest.raises(TimeoutError):
                    pause.accept()
    raise AssertionError(f"the webserver ended with {process.returncode}")


def test_materialize_one_partition_by_clicking(server: tuple[Workspace, str], tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    workspace, url = server
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=BROWSER)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{url}/assets/calibration_set?view=partitions&partition=random-8")
        page.get_by_role("button", name=re.compile("^Materialize")).first.click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name=re.compile("^(Launch|Materialize)")).last.click()
        page.goto(f"{url}/runs")
        page.get_by_text("Success").first.wait_for()
        page.goto(f"{url}/assets/calibration_set?view=partitions&partition=random-8")
        page.get_by_text("dvc_md5").first.wait_for()
        page.screenshot(path=str(tmp_path / "partition.png"))
        md5 = workspace.lock()["data/calibration_set/random-8"]
        assert md5 in page.content()
        browser.close()
    assert workspace.dvc("status").stdout.strip() == "Data and pipelines are up to date."
