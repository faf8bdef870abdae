"""Signatures over the folder and over its provenance, by OpenSSF model-signing and in-toto."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plumbline.artifact import sha256_file
from plumbline.provenance import dvc_digest, signing
from plumbline.provenance.key_signatures import private_key
from plumbline.provenance.statement import PAYLOAD_TYPE, payload
from tests.helpers.small_chain import MODEL, OTHER, flip, make_keys, run


@pytest.fixture
def signed(both: Path, keys: tuple[Path, Path]) -> Path:
    """The workspace with its champion signed."""
    result = run(both, "sign", "models:/plumbline@champion", "--key", str(keys[0]))
    assert result.exit_code == 0, result.output
    return both


def links(root: Path, keys: tuple[Path, Path], *options: str, model: str = MODEL) -> dict[str, Any]:
    result = run(root, "audit", str(root / model), "--public-key", str(keys[1]), "--json", *options)
    return {link["name"]: link for link in json.loads(result.stdout)["links"]}


def envelope(root: Path) -> Path:
    return root / f"{MODEL}.intoto.json"


def test_a_signed_model_verifies_and_its_folder_is_untouched(
    signed: Path, keys: tuple[Path, Path], pristine: Path
) -> None:
    assert dvc_digest(signed / MODEL) == dvc_digest(pristine / MODEL)
    found = links(signed, keys)
    assert {found["signature"]["status"], found["statement"]["status"]} == {"verified"}
    assert run(signed, "audit", str(signed / MODEL), "--public-key", str(keys[1])).exit_code == 0
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed / MODEL)]
    command += ["--signature", str(signed / f"{MODEL}.sig"), "--public_key", str(keys[1])]
    assert subprocess.run(command, capture_output=True).returncode == 0  # its own command agrees


def test_the_statement_names_files_sources_and_documents(signed: Path) -> None:
    sealed = json.loads(envelope(signed).read_text())
    assert sealed["payloadType"] == "application/vnd.in-toto+json"
    said = json.loads(base64.b64decode(sealed["payload"]))
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {each["name"]: each["digest"]["sha256"] for each in said["subject"]}
    files = {path.name: sha256_file(path) for path in (signed / MODEL).iterdir()}
    bundle = json.loads((signed / f"{MODEL}.sig").read_text())
    [subject] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))["subject"]
    assert subjects == {"random-8-w4a16-rtn": subject["digest"]["sha256"], **files}  # the digest that was signed
    definition = said["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["choice"]["strategy"] == "random"
    record = json.loads((signed / MODEL / "calibration.json").read_text())
    documents = {doc for sample in record["calibration_set"]["samples"] for doc in sample["doc_ids"]}
    listed = [each["digest"] for each in definition["resolvedDependencies"]]
    assert {each["plumbline.document"] for each in listed if "plumbline.document" in each} == documents
    assert {"dvc": dvc_digest(signed / "data/raw_corpus")} in listed
    assert str(signed) not in json.dumps(said)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_changed_file_breaks_both(file: str, signed: Path, keys: tuple[Path, Path]) -> None:
    flip(signed / MODEL / file, 9)
    found = links(signed, keys)
    assert (found["signature"]["status"], found["statement"]["status"]) == ("tampered", "tampered")
    assert file in found["signature"]["meaning"]


def test_added_files_and_links_break_the_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / MODEL / "notes.txt").write_text("hello")
    assert links(signed, keys)["signature"]["status"] == "tampered"
    (signed / MODEL / "notes.txt").unlink()
    shutil.move(signed / MODEL / "config.json", signed / "config.json")
    (signed / MODEL / "config.json").symlink_to(signed / "config.json")
    assert links(signed, keys)["signature"]["status"] == "tampered"


def test_another_key_another_models_signature_and_none(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    found = links(signed, make_keys(tmp_path, "stranger"))
    assert (found["signature"]["status"], found["statement"]["status"]) == ("tampered", "tampered")
    found = links(signed, keys, model=OTHER)
    assert (found["signature"]["status"], found["statement"]["status"]) == ("missing", "missing")
    replay = ["--signature", str(signed / f"{MODEL}.sig"), "--statement", str(envelope(signed))]
    found = links(signed, keys, *replay, model=OTHER)
    assert (found["signature"]["status"], found["statement"]["status"]) == ("tampered", "tampered")
    assert "differs from the model's record in subject" in found["statement"]["meaning"]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"null", b"[" * 5000, b'{"payload": "e30=", "signatures": []}', b"\xff"]
)
def test_forged_files_are_tampering_and_no_traceback(content: bytes, signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / f"{MODEL}.sig").write_bytes(content)
    envelope(signed).write_bytes(content)
    found = links(signed, keys)
    assert (found["signature"]["status"], found["statement"]["status"]) == ("tampered", "tampered")


def test_an_edited_statement_is_found(signed: Path, keys: tuple[Path, Path]) -> None:
    sealed = json.loads(envelope(signed).read_text())
    said = json.loads(base64.b64decode(sealed["payload"]))
    said["predicate"]["buildDefinition"]["externalParameters"]["choice"]["strategy"] = "first_n"
    sealed["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    envelope(signed).write_text(json.dumps(sealed))
    assert links(signed, keys)["statement"]["status"] == "tampered"


def test_a_signed_statement_that_hides_a_document_is_found(signed: Path, keys: tuple[Path, Path]) -> None:
    """By the same key: whoever signed it said something else than the model does."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    said = json.loads(base64.b64decode(json.loads(envelope(signed).read_text())["payload"]))
    said["predicate"]["buildDefinition"]["resolvedDependencies"].pop()
    sealed = Envelope(payload(said), PAYLOAD_TYPE, {})
    sealed.sign(CryptoSigner(private_key(keys[0], None)))
    envelope(signed).write_text(json.dumps(sealed.to_dict()))
    found = links(signed, keys)
    assert (found["signature"]["status"], found["statement"]["status"]) == ("verified", "tampered")
    assert "differs from the model's record in resolvedDependencies" in found["statement"]["meaning"]


@pytest.mark.parametrize(("root", "status"), [(None, "verified"), ("0" * 64, "tampered")])
def test_a_statement_without_the_root_digest_holds_and_one_with_another_does_not(
    root: str | None, status: str, signed: Path, keys: tuple[Path, Path]
) -> None:
    """Statements of earlier versions name the files alone."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    said = json.loads(base64.b64decode(json.loads(envelope(signed).read_text())["payload"]))
    if root is None:
        said["subject"].pop(0)
    else:
        said["subject"][0]["digest"]["sha256"] = root
    sealed = Envelope(payload(said), PAYLOAD_TYPE, {})
    sealed.sign(CryptoSigner(private_key(keys[0], None)))
    envelope(signed).write_text(json.dumps(sealed.to_dict()))
    assert links(signed, keys)["statement"]["status"] == status


def test_a_chain_that_does_not_verify_is_not_signed(both: Path, keys: tuple[Path, Path]) -> None:
    flip(both / MODEL / "model.safetensors", -9)
    result = run(both, "sign", str(both / MODEL), "--key", str(keys[0]))
    assert result.exit_code == 1 and "NOT SIGNED" in result.output
    assert not (both / f"{MODEL}.sig").exists() and not envelope(both).exists()

    md5 = dvc_digest(both / OTHER)  # sound, and nowhere but in a temporary copy
    result = run(both, "sign", md5, "--key", str(keys[0]))
    assert result.exit_code == 2 and "and sign it there" in " ".join(result.output.split())


def test_keys_that_cannot_be_used_are_a_usage_error(both: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    for content, says in (
        (b"no key", "not a usable private key in PEM"),
        (keys[1].read_bytes(), "not a usable private key in PEM"),
    ):
        (tmp_path / "bad.pem").write_bytes(content)
        result = run(both, "sign", str(both / MODEL), "--key", str(tmp_path / "bad.pem"))
        assert result.exit_code == 2 and says in " ".join(result.output.split())
    result = run(both, "audit", str(both / MODEL), "--public-key", str(keys[0]))
    assert result.exit_code == 2 and "not a public key in PEM" in " ".join(result.output.split())


def test_without_the_extra_the_command_says_what_to_install(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "find_spec", lambda name: None)
    private, public = make_keys(both, "key")
    for arguments in (("sign", "--key", str(private)), ("audit", "--public-key", str(public))):
        result = run(both, arguments[0], str(both / MODEL), *arguments[1:])
        assert result.exit_code == 2 and "'.[signing]'" in result.output
