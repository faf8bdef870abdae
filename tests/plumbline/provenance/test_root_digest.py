"""The root digest of OpenSSF model signing, against its own library."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from plumbline.provenance.root_digest import file_digests, root_digest


def test_it_is_the_subject_of_a_signature(tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="needs the extra `signing`")
    from model_signing import hashing
    from model_signing._signing.signing import Payload

    names = (
        "model.safetensors",
        "a/b.json",
        "a.json",
        "A.json",
        "a/ä.txt",
        ".gitignore",
        ".git/config",
        "a/.gitignore",
    )
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number]) * 1000)
    files = file_digests(tmp_path)
    assert files.keys() == set(names)
    [subject] = Payload(hashing.Config().hash(tmp_path)).statement.pb.subject
    assert root_digest(files) == subject.digest["sha256"]


def test_it_is_the_digest_of_digests_and_follows_every_file(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    first = root_digest(file_digests(tmp_path))
    assert first == hashlib.sha256(hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest()).hexdigest()
    (tmp_path / "b").write_text("c")
    assert root_digest(file_digests(tmp_path)) != first
