"""The pages of artifacts beside Dagster's UI: what is served, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from plumbline.cli.pages import WithPages


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    data = tmp_path / "data"
    for name in ("report/report.html", "report/verdict.json", "pages/a b/samples.html"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(f"<p>{name}</p>")
    (tmp_path / "secret.html").write_text("no")
    (data / "report/linked.html").symlink_to(tmp_path / "secret.html")  # as DVC's cache of symbolic links
    return TestClient(WithPages(PlainTextResponse("the UI"), data))


@pytest.mark.parametrize("path", ["report/report.html", "pages/a%20b/samples.html", "report/linked.html"])
def test_a_page_is_served_as_a_document_of_its_own_origin(client: TestClient, path: str) -> None:
    answer = client.get(f"/pages/{path}")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts") and "allow-same-origin" not in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize(
    "path", ["report/verdict.json", "../secret.html", "%2e%2e/secret.html", "report/../../secret.html", "", "report"]
)
def test_nothing_else_is(client: TestClient, path: str) -> None:
    answer = client.get(f"/pages/{path}")
    assert answer.status_code == 404 or answer.text == "the UI"


def test_a_path_that_goes_up_is_refused(tmp_path: Path) -> None:
    """Clients shorten `..` before they ask; another program may not."""
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.html").write_text("no")
    pages = WithPages(PlainTextResponse("the UI"), tmp_path / "data")

    async def as_sent(scope: Scope, receive: Receive, send: Send) -> None:
        await pages({**scope, "path": "/pages/../secret.html"}, receive, send)

    assert TestClient(as_sent).get("/any").status_code == 404


def test_it_begins_with_the_graph(client: TestClient) -> None:
    answer = client.get("/", follow_redirects=False)
    assert answer.status_code == 307 and answer.headers["location"] == "/asset-groups"


def test_the_rest_is_the_ui(client: TestClient) -> None:
    assert client.get("/assets/evaluation").text == "the UI"
    assert client.post("/pages/report/report.html").status_code == 405
