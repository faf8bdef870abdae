"""Alerts: what is told, to whom, and that nothing is told twice or lost."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import dagster as dg
import pytest

from plumbline.graph.alert_tick import alert_tick
from plumbline.graph.alerts import EMAIL, SMTP, UI, WEBHOOK, Alert, Channels, send

ALERT = Alert("check a of b failed", "KL +9 % against the champion's", "b", "1234")


@dg.asset
def deployed_model() -> None: ...


@dg.asset_check(asset=deployed_model)
def gate(context) -> dg.AssetCheckResult:  # Dagster reads the annotation, which is a string here
    passed = "bad" not in context.run.tags
    return dg.AssetCheckResult(passed=passed, description="well" if passed else "KL +9 % against the champion's")


@dg.asset
def corpus() -> None:
    raise dg.Failure("texts/a.txt is empty")


GATE = dg.AssetCheckKey(deployed_model.key, "gate")


class Receiver:
    """A webhook on this machine."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == 200:
                    outer.got.append(json.loads(body))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


@pytest.fixture
def tick(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ticks that tell a webhook; each goes on from the cursor of the one before."""
    monkeypatch.setenv(WEBHOOK, receiver.url)
    with dg.DagsterInstance.ephemeral() as instance:
        state: dict[str, str | None] = {"cursor": None}

        def run() -> str:
            context = dg.build_sensor_context(instance=instance, cursor=state["cursor"])
            try:
                return str(alert_tick(context, [GATE]).skip_message)
            finally:
                state["cursor"] = context.cursor

        run.instance = instance  # type: ignore[attr-defined]
        yield run


def made(tick: Any, *tags: str) -> None:
    dg.materialize([deployed_model, gate], instance=tick.instance, tags=dict.fromkeys(tags, "yes"))


def test_a_failed_gate_is_told_once(tick: Any, receiver: Receiver) -> None:
    made(tick, "bad")
    assert tick() == "nothing to tell"  # it was before the first tick
    made(tick, "bad")
    assert tick() == "told of 1: check gate of deployed_model failed"
    assert tick() == "nothing to tell"
    [told] = receiver.got
    assert (told["asset"], told["sentence"]) == ("deployed_model", "KL +9 % against the champion's")
    assert told["text"].startswith("check gate of deployed_model failed: KL +9 %")
    assert told["link"] == f"http://127.0.0.1:3000/runs/{told['run']}"
    made(tick)
    assert tick() == "nothing to tell" and len(receiver.got) == 1
    made(tick, "bad")
    assert tick().startswith("told of 1")


def test_the_first_gate_of_a_workspace_is_told(tick: Any, receiver: Receiver) -> None:
    tick()
    made(tick, "bad")
    assert tick().startswith("told of 1")


def test_a_failed_run_is_told_with_its_sentence(tick: Any, receiver: Receiver) -> None:
    tick()
    for _ in range(2):
        dg.materialize([corpus], instance=tick.instance, raise_on_error=False)
    assert tick().startswith("told of 2: run of ")
    assert [told["sentence"] for told in receiver.got] == ["texts/a.txt is empty"] * 2
    assert tick() == "nothing to tell"


def test_what_is_not_delivered_is_sent_again(tick: Any, receiver: Receiver) -> None:
    tick()
    made(tick, "bad")
    receiver.status = 500
    with pytest.raises(OSError, match="500"):
        tick()
    receiver.status = 200
    assert tick().startswith("told of 1") and len(receiver.got) == 1


def test_without_settings_the_sensor_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEBHOOK, EMAIL, SMTP):
        monkeypatch.delenv(name, raising=False)
    with dg.DagsterInstance.ephemeral() as instance:
        reason = str(alert_tick(dg.build_sensor_context(instance=instance), [GATE]).skip_message)
    assert WEBHOOK in reason and EMAIL in reason and ".env" in reason


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({WEBHOOK: "file:///etc/passwd"}, WEBHOOK),
        ({EMAIL: "a@b.c"}, SMTP),
        ({SMTP: "smtps://u:secret@h"}, EMAIL),
        ({EMAIL: "a@b.c", SMTP: "http://u:secret@h"}, SMTP),
        ({EMAIL: "a@b.c", SMTP: "smtps://"}, SMTP),
    ],
)
def test_a_wrong_setting_is_named_without_its_secret(environment: dict[str, str], name: str) -> None:
    with pytest.raises(ValueError) as refused:
        Channels.of(environment)
    assert name in str(refused.value) and "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "calls"),
    [
        ("smtps://me:word@mail.example", ["SMTP_SSL mail.example 465", "login me word", "send", "quit"]),
        ("smtp://me:word@mail.example:25", ["SMTP mail.example 25", "starttls", "login me word", "send", "quit"]),
        ("smtp://localhost", ["SMTP localhost 587", "send", "quit"]),
    ],
)
def test_an_e_mail_goes_out_encrypted_where_there_is_a_password(
    address: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sent: list[EmailMessage] = []

    class Server:
        def __init__(self, kind: str, host: str, port: int) -> None:
            done.append(f"{kind} {host} {port}")

        def __enter__(self) -> Server:
            return self

        def __exit__(self, *_: object) -> None:
            done.append("quit")

        def starttls(self, context: object) -> None:
            done.append("starttls")

        def login(self, user: str, password: str) -> None:
            done.append(f"login {user} {password}")

        def send_message(self, message: EmailMessage) -> None:
            done.append("send")
            sent.append(message)

    for kind in ("SMTP", "SMTP_SSL"):
        monkeypatch.setattr(smtplib, kind, lambda host, port, kind=kind, **_: Server(kind, host, port))
    send(ALERT, Channels.of({EMAIL: "a@b.c, d@e.f", SMTP: address, UI: "https://ui.example/"}))
    assert done == calls
    assert sent[0]["To"] == "a@b.c, d@e.f" and sent[0]["Subject"] == "Plumbline: check a of b failed"
    assert sent[0].get_content() == "KL +9 % against the champion's\n\nhttps://ui.example/runs/1234\n"
