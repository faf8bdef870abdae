"""Keyless signatures, against a private Sigstore instance in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.small_chain import MODEL, flip, run

pytest.importorskip("sigstore", reason="needs the extra `signing`")

from tests.helpers.sigstore_instance import ISSUER, running, token

ADA = "ada@example.org"


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The client trust configuration of a running instance."""
    with running(tmp_path_factory.mktemp("sigstore")) as path:
        yield path


@pytest.fixture(scope="module")
def signed_once(pristine: Path, trust: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain, signed by Ada. Do not change it: copy it."""
    root = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("keyless") / "workspace"))
    options = ["--keyless", "--identity-token", token(ADA), "--trust-config", str(trust)]
    result = run(root, "sign", str(root / MODEL), *options)
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed_once, tmp_path / "workspace"))


def links(root: Path, trust: Path, identity: str = ADA, issuer: str = ISSUER) -> tuple[str, str, str]:
    """Status of the signature and of the statement, and what both say."""
    options = ["--identity", identity, "--issuer", issuer, "--trust-config", str(trust), "--json"]
    listed = json.loads(run(root, "audit", str(root / MODEL), *options).stdout)["links"]
    found: dict[str, dict[str, Any]] = {link["name"]: link for link in listed}
    signature, statement = found["signature"], found["statement"]
    return signature["status"], statement["status"], f"{signature['meaning']} {statement['meaning']}"


def test_who_signed_is_verified(signed: Path, trust: Path) -> None:
    assert links(signed, trust)[:2] == ("verified", "verified")
    options = ["--identity", ADA, "--issuer", ISSUER, "--trust-config", str(trust)]
    result = run(signed, "audit", str(signed / MODEL), *options)
    assert result.exit_code == 0 and f"{ADA} ({ISSUER}) signed every file" in " ".join(result.output.split())


def test_another_identity_or_provider_did_not_sign(signed: Path, trust: Path) -> None:
    for other in ({"identity": "eve@example.org"}, {"issuer": "https://elsewhere.example.org"}):
        signature, statement, meaning = links(signed, trust, **other)
        assert (signature, statement) == ("tampered", "tampered") and "do" in meaning


def test_an_instance_with_other_keys_vouches_for_nothing(signed: Path, tmp_path: Path) -> None:
    with running(tmp_path, "other.json") as other:
        assert links(signed, other)[:2] == ("tampered", "tampered")


def test_a_changed_file_or_log_entry_is_found(signed: Path, trust: Path) -> None:
    envelope = signed / f"{MODEL}.intoto.json"
    bundle = json.loads(envelope.read_text())
    bundle["verificationMaterial"]["tlogEntries"][0]["integratedTime"] = "1700000000"
    envelope.write_text(json.dumps(bundle))
    assert links(signed, trust)[:2] == ("verified", "tampered")
    flip(signed / MODEL / "generation_config.json", 9)
    assert links(signed, trust)[:2] == ("tampered", "tampered")


def test_a_key_does_not_open_a_keyless_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    listed = json.loads(run(signed, "audit", str(signed / MODEL), "--public-key", str(keys[1]), "--json").stdout)[
        "links"
    ]
    assert {link["status"] for link in listed if link["name"] in ("signature", "statement")} == {"tampered"}


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("sign", [], "give --key PEM or --keyless"),
        ("sign", ["--keyless", "--key", "{file}"], "not both"),
        ("sign", ["--key", "{file}", "--trust-config", "{file}"], "--trust-config is for --keyless"),
        ("sign", ["--keyless", "--trust-config", "{file}"], "not a client trust configuration"),
        ("sign", ["--keyless", "--trust-config", "{trust}", "--identity-token", "x"], "no identity to sign with"),
        ("audit", ["--identity", ADA], "--identity and --issuer go together"),
        ("audit", ["--identity", ADA, "--issuer", ISSUER, "--public-key", "{file}"], "not both"),
        ("audit", ["--trust-config", "{file}"], "--trust-config is for --identity"),
        ("audit", ["--identity", ADA, "--issuer", ISSUER, "--trust-config", "{file}"], "not a client trust"),
    ],
)
def test_options_that_do_not_go_together_are_a_sentence(
    command: str, options: list[str], says: str, signed_once: Path, trust: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("{}")
    given = [option.format(file=tmp_path / "file", trust=trust) for option in options]
    result = run(signed_once, command, str(signed_once / MODEL), *given)
    assert result.exit_code == 2 and says in " ".join(result.output.split()), result.output


def test_without_a_network_the_command_says_so(signed_once: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sigstore.models import ClientTrustConfig

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(ClientTrustConfig, "production", unreachable)
    result = run(signed_once, "sign", str(signed_once / MODEL), "--keyless", "--identity-token", token(ADA))
    assert result.exit_code == 2 and "the roots of Sigstore's public instance did not arrive" in result.output
