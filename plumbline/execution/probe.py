"""Whether Ray can be used: is it installed, and does a cluster answer at its address."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import tempfile
from pathlib import Path

from plumbline.distribution import install_command
from plumbline.execution.params import ExecutionParams

HOST_PORT = re.compile(r"(?P<host>[^\s/]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
SECONDS = 3.0
"""Seconds that a cluster has to answer."""


def problem(execution: ExecutionParams) -> str:
    """Why the executor cannot be used, without starting or joining anything; empty if nothing is known against it."""
    if execution.executor != "ray":
        return ""
    if importlib.util.find_spec("ray") is None:
        return (
            "execution.executor in params.yaml: found 'ray', but Ray is not installed; install the extra with "
            f"`{install_command('ray')}`, or say 'local'"
        )
    return "" if execution.address is None else _silence(execution.address)


def _silence(address: str) -> str:
    """Why no cluster answers at an address; empty if one does, as far as a connection shows."""
    at = _auto() if address == "auto" else address
    if not at:
        return unusable(address, "this machine runs none")
    parts = HOST_PORT.fullmatch(at)
    if parts is None or int(parts["port"]) > 65535:
        return unusable(address, f"found {at!r}, expected HOST:PORT of the head's GCS, such as 10.0.0.1:6379")
    try:
        socket.create_connection((parts["host"].strip("[]"), int(parts["port"])), SECONDS).close()
    except OSError as error:
        return unusable(address, f"{at}: {error.strerror or error}")
    return ""


def _auto() -> str:
    """Where Ray looks for the cluster of this machine; empty if there is none."""
    if named := os.environ.get("RAY_ADDRESS", ""):
        return named
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def unusable(address: str, reason: str) -> str:
    """A sentence about a cluster that cannot be used."""
    return (
        f"execution.address in params.yaml: found {address!r}, but no Ray cluster can be used there ({reason}); start "
        "one with `ray start --head`, name another HOST:PORT, or take address out, so that Ray is started here"
    )
