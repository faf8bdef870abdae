"""A server of the protocol of S3 on this machine, in this process; its content ends with the session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

KEY = "test"


def environment_of(address: str) -> dict[str, str]:
    """What a process needs to know of the server."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    }


@contextmanager
def bucket(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket that s3fs reaches by the environment; yields the file system. Skips without s3fs or a server."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs (pip install -c constraints.txt -e '.[s3]')")
    moto = pytest.importorskip("moto.server", reason="needs a server (pip install -c constraints.txt 'moto[server]')")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for variable, value in environment_of(f"http://{host}:{port}").items():
        monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir(name)
    try:
        yield files
    finally:
        files.rm(name, recursive=True)  # servers of one process share their memory
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
