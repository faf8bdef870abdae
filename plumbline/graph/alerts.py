"""Alerts: a failed gate, drift or a failed run is told to a webhook, by e-mail, or both.

The settings are environment variables, as a webhook's URL and a password are secrets; `plumbline ui` reads them from
the file `.env` of the workspace as well, which git ignores.
"""

from __future__ import annotations

import json
import smtplib
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from urllib.parse import urlsplit

WEBHOOK = "PLUMBLINE_ALERT_WEBHOOK"
EMAIL = "PLUMBLINE_ALERT_EMAIL"
SMTP = "PLUMBLINE_ALERT_SMTP"
UI = "PLUMBLINE_ALERT_UI"
HELP = (
    f"set {WEBHOOK}=https://… or {EMAIL}=you@example.org with {SMTP}=smtps://user:password@host, in the environment "
    "or in the file .env of the workspace, and start `plumbline ui` again"
)
SECONDS = 10
"""Seconds after which a server that does not answer has failed."""


@dataclass(frozen=True)
class Alert:
    """Something that a person should know."""

    title: str
    sentence: str
    asset: str
    run: str
    """Id of the run."""


@dataclass(frozen=True)
class Channels:
    """Where alerts go."""

    webhook: str | None
    email: tuple[str, ...]
    smtp: str | None
    ui: str
    """Address of Dagster's pages, for links."""

    @staticmethod
    def of(environment: Mapping[str, str]) -> Channels:
        """The settings of an environment.

        Raises:
            ValueError: a setting is wrong or lacks its other half; the message names it and never repeats a password.
        """
        webhook, smtp = environment.get(WEBHOOK) or None, environment.get(SMTP) or None
        to = tuple(name.strip() for name in environment.get(EMAIL, "").split(",") if name.strip())
        ui = (environment.get(UI) or "http://127.0.0.1:3000").rstrip("/")
        if webhook is not None and urlsplit(webhook).scheme not in ("http", "https"):
            raise ValueError(f"{WEBHOOK}: expected a URL that begins with https:// or http://")
        if bool(to) != bool(smtp):
            raise ValueError(f"{EMAIL} and {SMTP} belong together; set {SMTP if to else EMAIL}, too")
        if smtp is not None and (urlsplit(smtp).scheme not in ("smtp", "smtps") or not urlsplit(smtp).hostname):
            raise ValueError(f"{SMTP}: expected smtps://user:password@host:port, or smtp:// for STARTTLS")
        return Channels(webhook, to, smtp, ui)

    @property
    def any(self) -> bool:
        return self.webhook is not None or self.smtp is not None


def send(alert: Alert, channels: Channels) -> None:
    """Send an alert to every channel.

    Raises:
        OSError: a server cannot be reached or refuses.
    """
    link = f"{channels.ui}/runs/{alert.run}"
    text = f"{alert.title}: {alert.sentence}\n{link}"
    if channels.webhook is not None:
        body = json.dumps({"text": text, **asdict(alert), "link": link}).encode()  # `text` is what chat servers show
        request = urllib.request.Request(channels.webhook, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    if channels.smtp is not None:
        message = EmailMessage()
        message["Subject"], message["To"] = f"Plumbline: {' '.join(alert.title.split())}", ", ".join(channels.email)
        message["From"] = channels.email[0]
        message.set_content(f"{alert.sentence}\n\n{link}\n")
        _mail(channels.smtp, message)


def _mail(address: str, message: EmailMessage) -> None:
    server = urlsplit(address)
    host, context = str(server.hostname), ssl.create_default_context()
    if server.scheme == "smtps":
        connection: smtplib.SMTP = smtplib.SMTP_SSL(host, server.port or 465, timeout=SECONDS, context=context)
    else:
        connection = smtplib.SMTP(host, server.port or 587, timeout=SECONDS)
    with connection:
        if server.scheme == "smtp" and server.username:
            connection.starttls(context=context)
        if server.username:
            connection.login(server.username, server.password or "")
        connection.send_message(message)
