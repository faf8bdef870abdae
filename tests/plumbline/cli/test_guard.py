"""What a browser sends when another site's page asks, and what our own page sends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from plumbline.cli.guard import guarded
from plumbline.cli.guarded_dagster import MODULE, guarded_command

OWN = "127.0.0.1:3000"


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("answered")


async def greet(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


@pytest.fixture
def client() -> Iterator[TestClient]:
    routes = [Route("/{path:path}", answer, methods=["GET", "POST"]), WebSocketRoute("/{path:path}", greet)]
    app = guarded(Starlette(routes=routes), ["ui.example.org"])
    with TestClient(app, f"http://{OWN}") as client:
        yield client


@pytest.mark.parametrize("host", [OWN, "127.0.0.1", "localhost:3000", "LOCALHOST", "[::1]:3000", "ui.example.org"])
def test_its_own_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/x", headers={"Host": host}).text == "answered"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:3000", "127.0.0.1.evil.example", "localhost@evil.example", "", "www.localhost"],
)
def test_no_other_host_is_answered(client: TestClient, host: str) -> None:
    for method in ("GET", "POST"):
        response = client.request(method, "/x", headers={"Host": host})
        assert response.status_code == 400 and "answered" not in response.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:5000"},  # another server of this machine
        {"Origin": "http://127.0.0.1:3000.evil.example"},
        {"Origin": "http://evil.example/127.0.0.1:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_what_another_page_posts_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    response = client.post("/graphql", headers=headers)
    assert response.status_code == 403 and "answered" not in response.text
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client.websocket_connect("/graphql", headers={"Host": OWN, **headers}),
    ):
        pass
    assert denied.value.status_code == 403


def test_its_own_page_and_programs_may_do_everything(client: TestClient) -> None:
    own = {"Origin": f"http://{OWN}", "Sec-Fetch-Site": "same-origin"}
    for headers in (own, {}):
        assert client.post("/graphql", headers=headers).text == "answered"
        with client.websocket_connect("/graphql", headers={"Host": OWN, **headers}) as websocket:
            assert websocket.receive_text() == "hello"
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/runs", headers=followed).text == "answered", "a link in a chat or in MLflow"
    assert client.get("/runs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize(
    ("query", "refused"),
    [
        ("mutation { x }", True),
        ("  #\n mutation M($a: Int) { x(a: $a) }", True),
        ("query Q { x } mutation M { y }", True),
        ("subscription { x }", True),
        ("{ mutation }", False),
        ("query mutation { x }", False),
        ("fragment F on T { x }", False),
        ("mutation {", False),  # cannot be executed
    ],
)
def test_no_mutation_by_get(client: TestClient, query: str, refused: bool) -> None:
    for path in ("/graphql", "/prefix/graphql"):
        for params in ({"query": query}, [("query", "{ x }"), ("query", query)]):
            assert client.get(path, params=params).status_code == (403 if refused else 200)
    assert client.post("/graphql", params={"query": query}).status_code == 200


def test_two_hosts_are_one_too_many(client: TestClient) -> None:
    response = client.get("/x", headers=[("Host", OWN), ("Host", "evil.example")])
    assert response.status_code in (400, 403)


def test_only_the_webserver_s_command_is_changed() -> None:
    python = sys.executable
    assert guarded_command([python, "-m", "dagster_webserver", "--port", "1"]) == [
        python, "-m", MODULE, "webserver", "--port", "1",
    ]  # fmt: skip
    daemon = [python, "-m", "dagster._daemon", "run"]
    assert guarded_command(daemon) == daemon
    with pytest.raises(RuntimeError, match=r"does not know.*constraints\.txt"):
        guarded_command([python, "-m", "dagster.webserver"])


@pytest.mark.parametrize(
    ("role", "title"), [("dev", "Start a local deployment"), ("webserver", "Run dagster-webserver")]
)
def test_each_role_is_dagster_s_own_command(role: str, title: str) -> None:
    shown = subprocess.run([sys.executable, "-m", MODULE, role, "--help"], capture_output=True, text=True, check=True)
    assert title in shown.stdout and "--port" in shown.stdout
