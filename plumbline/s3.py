"""Buckets of S3 and of stores that speak its protocol. Credentials and address come from the environment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from plumbline.distribution import install_command

SCHEME = "s3://"
SECONDS = 5
"""A store that answers nothing in this time is unreachable."""
OPTIONS = {
    "access_key_id": "key",
    "secret_access_key": "secret",
    "session_token": "token",
    "profile": "profile",
}
"""Settings of a DVC remote -> arguments of s3fs."""
CLIENT_OPTIONS = {"endpointurl": "endpoint_url", "region": "region_name"}
CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE,"


class StoreError(OSError):
    """A bucket cannot be used; the message says what to do."""


def filesystem(options: Mapping[str, str] | None = None, attempts: int = 5) -> Any:
    """s3fs for the store that the environment names (AWS_ENDPOINT_URL; without it, AWS).

    Args:
        options: settings of a DVC remote, which win over the environment.
        attempts: at a request that fails on the way.

    Raises:
        StoreError: s3fs is not installed.
    """
    try:
        from s3fs import S3FileSystem
    except ImportError as error:
        raise StoreError(f"S3 needs packages that are not installed: {install_command('s3')}") from error
    options = options or {}
    arguments: dict[str, Any] = {ours: options[name] for name, ours in OPTIONS.items() if name in options}
    client = {ours: options[name] for name, ours in CLIENT_OPTIONS.items() if name in options}
    network = {"connect_timeout": SECONDS, "retries": {"max_attempts": attempts - 1}}
    if attempts == 1:
        network["read_timeout"] = SECONDS
    return S3FileSystem(**arguments, client_kwargs=client, config_kwargs=network)


def bucket_of(url: str) -> str:
    """The bucket of `s3://bucket/prefix`."""
    return url.removeprefix(SCHEME).partition("/")[0]


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn errors of a request to a bucket into sentences with the fix.

    Raises:
        StoreError: the store does not answer, refuses, or lacks the bucket.
    """
    try:
        yield
    except StoreError:
        raise
    except PermissionError as error:
        raise StoreError(
            f"{url}: the store refuses access to the bucket ({error}); correct {CREDENTIALS} in the environment of "
            "this process, or give that key the right to list, read and write there"
        ) from error
    except FileNotFoundError as error:
        raise StoreError(f"{url}: there is no bucket {bucket_of(url)}; make it, or correct the name") from error
    except Exception as error:  # botocore's errors, which cannot be imported where it is absent
        if not _of_the_store(error):
            raise
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise StoreError(
                f"{url}: no credentials ({error}); set {CREDENTIALS} in the environment of this process"
            ) from error
        raise StoreError(
            f"{url}: the store does not answer ({str(error)[:200]}); start it, or correct AWS_ENDPOINT_URL, the "
            "address of a store other than AWS, in the environment of this process"
        ) from error


def bucket_problem(url: str, options: Mapping[str, str] | None = None) -> str:
    """The reason why a bucket cannot be used, found within seconds; empty if it answers. Nothing is written."""
    try:
        with explained(url):
            filesystem(options, attempts=1).call_s3("head_bucket", Bucket=bucket_of(url))
    except StoreError as error:
        return str(error)
    return ""


def _of_the_store(error: Exception) -> bool:
    """Whether an error is of the request, not of the code: botocore's, or of the system below."""
    return isinstance(error, OSError) or any(kind.__module__.startswith("botocore.") for kind in type(error).__mro__)
