"""An inbox in S3, over HTTP: a server that speaks its protocol, and s3fs as a user would have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.intake import Intake, IntakeChanges
from plumbline.raw_corpus.params import CorpusParams
from plumbline.raw_corpus.stores import store_of
from plumbline.raw_corpus.summary import summary as summary_of
from tests.helpers.inbox import take_in_all
from tests.helpers.s3_server import bucket

s3fs = pytest.importorskip("s3fs", reason="needs s3fs (pip install -c constraints.txt -e '.[s3]')")

INBOX = "s3://drops/letters"


@pytest.fixture(name="bucket")
def fixture_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with bucket("drops", monkeypatch) as files:
        yield files


def test_objects_are_taken_in_by_content_and_read_although_they_are_gone(bucket: Any, tmp_path: Path) -> None:
    def written(name: str, content: bytes) -> None:
        # As another machine would: this one's listings are not told.
        s3fs.S3FileSystem(skip_instance_cache=True).pipe(f"drops/letters/{name}", content)

    def taken_in(before: Intake) -> tuple[Intake, IntakeChanges]:
        return take_in_all(store_of(INBOX, tmp_path, 1000), before)

    written("a.txt", b"alpha")
    written("copy.txt", b"alpha")
    written("sub/b.jsonl", b'{"text": "beta"}\n')
    written("x.exe", b"MZ")
    written("large.txt", b"x" * 1001)
    bucket.pipe("drops/elsewhere.txt", b"no part of the inbox")
    intake, changes = taken_in(Intake())
    assert changes == IntakeChanges(
        added=("a.txt", "sub/b.jsonl"), copies=("copy.txt",), refused=("large.txt", "x.exe")
    )
    assert taken_in(intake)[0] == intake

    written("a.txt", b"other")
    bucket.rm("drops/letters/copy.txt")
    bucket.rm("drops/letters/sub/b.jsonl")
    params = CorpusParams.model_validate({"sources": {}, "inbox": INBOX})
    (tmp_path / "corpus").mkdir()
    build_raw_corpus(params, tmp_path, tmp_path / "corpus", intake=intake)
    summary = summary_of(tmp_path / "corpus")
    assert summary["documents_by_source"] == {"inbox": 2}  # alpha and beta, as they were taken in
    _, changes = taken_in(intake)
    assert changes == IntakeChanges(changed=("a.txt",), removed=("sub/b.jsonl",))


def test_an_object_that_is_replaced_while_it_is_read_waits(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe("drops/letters/a.txt", b"alpha")
    store = store_of(INBOX, tmp_path, 1000)
    opened = store._open

    def replaced(name: str) -> Any:
        source = opened(name)
        bucket.pipe("drops/letters/a.txt", b"other")
        return source

    store._open = replaced  # type: ignore[method-assign]
    assert store.hold("a.txt") is None
    assert list((tmp_path / ".plumbline/inbox").iterdir()) == []


def test_a_bucket_that_is_not_there_says_so(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        store_of("s3://nowhere/letters", tmp_path, 1000).look()


def test_a_store_that_is_down_says_so(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    for ask in (lambda store: store.look(), lambda store: store.hold("a.txt")):
        with pytest.raises(OSError, match="does not answer.*AWS_ENDPOINT_URL"):
            ask(store_of(INBOX, tmp_path, 1000))
