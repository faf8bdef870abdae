"""Signatures over a model's folder (OpenSSF model-signing) and over the statement of its provenance (DSSE)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plumbline.distribution import install_command
from plumbline.provenance.link import Case, Link
from plumbline.provenance.statement import payload, statement

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAKE_KEYS = (
    "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"
)


def signature_paths(model: Path) -> tuple[Path, Path]:
    """Where the signature and the statement of a model lie: beside its folder, whose content stays as DVC has it."""
    model = model.absolute()
    return model.with_name(f"{model.name}.sig"), model.with_name(f"{model.name}.intoto.json")


def sign(case: Case, key: Path, password: str | None, signature: Path, envelope: Path) -> None:
    """Sign the folder, and the in-toto statement of what it was made from. The chain should have been audited.

    Args:
        key: a private key in PEM, on an elliptic curve.
        password: of the key, if it has one.
        signature: the file to write for the folder: a sigstore bundle, which `model_signing verify key` reads.
        envelope: the file to write for the statement: a DSSE envelope, which in-toto's and SLSA's tools read.

    Raises:
        ValueError: the libraries are not installed, or the key cannot be used.
    """
    _require_installed()
    from model_signing import signing
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    signer = CryptoSigner(_private_key(key, password))
    sealed = Envelope(payload(statement(case)), PAYLOAD_TYPE, {})
    sealed.sign(signer)
    with tempfile.TemporaryDirectory(prefix=".signing-", dir=signature.parent) as scratch:
        drafts = Path(scratch) / "sig", Path(scratch) / "intoto"
        try:
            signing.Config().use_elliptic_key_signer(private_key=key, password=password).sign(case.model, drafts[0])
        except (ValueError, OSError, TypeError) as error:
            raise ValueError(f"{case.model} cannot be signed with {key}: {error}") from error
        text = json.dumps(sealed.to_dict(), sort_keys=True, indent=1)
        drafts[1].write_text(text + "\n", encoding="utf-8")
        drafts[0].replace(signature)
        drafts[1].replace(envelope)


def signature_links(
    public_key: Path, signature: Path, envelope: Path
) -> tuple[tuple[str, Callable[[Case], Link]], ...]:
    """The links that a public key adds to an audit.

    Raises:
        ValueError: the libraries are not installed, or the key cannot be read.
    """
    _require_installed()
    key = _public_key(public_key)
    return (
        ("signature", lambda case: _folder_link(case, public_key, signature)),
        ("statement", lambda case: _statement_link(case, key, public_key, envelope)),
    )


def _folder_link(case: Case, public_key: Path, signature: Path) -> Link:
    from model_signing import verifying

    name = "signature"
    if not signature.is_file():
        fix = f"plumbline sign {case.model.name} --key PRIVATE_KEY, by whoever vouches for it; or give --signature"
        return Link(name, "missing", f"{signature.name} is not there, beside the folder", fix=fix)
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(case.model, signature)
    except Exception as error:  # whatever a forged bundle leads to
        why = " ".join(str(error).split())[:300] or type(error).__name__
        meaning = f"{signature.name} is no signature by {public_key.name} over this folder: {why}"
        return Link(name, "tampered", meaning, fix="get the folder and its signature again from who made them")
    return Link(name, "verified", f"{signature.name}: the holder of {public_key.name} signed every file of the folder")


def _statement_link(case: Case, key: Any, public_key: Path, envelope: Path) -> Link:
    from securesystemslib.dsse import Envelope

    name, fix = "statement", "get the statement again from who made it, or `plumbline sign` the model anew"
    if not envelope.is_file():
        return Link(name, "missing", f"{envelope.name} is not there, beside the folder", fix=fix)
    try:
        sealed = Envelope.from_dict(json.loads(envelope.read_bytes()))
        sealed.verify([key], 1)
        said = json.loads(sealed.payload)
    except Exception as error:  # whatever a forged envelope leads to
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return Link(name, "tampered", f"{envelope.name} is not signed by {public_key.name}: {why}", fix=fix)
    now = statement(case)
    differing = [part for part in ("subject", "predicateType") if said.get(part) != now.get(part)]
    # What DVC remembers may have been collected since; what the model itself says may not differ.
    for part in ("externalParameters", "internalParameters", "buildType"):
        if _of_build(said, part) != _of_build(now, part):
            differing.append(part)
    if _own(said) != _own(now):
        differing.append("resolvedDependencies")
    if differing:
        meaning = f"{envelope.name} is signed, and says something else of {', '.join(differing)} than the model does"
        return Link(name, "tampered", meaning, fix=fix)
    return Link(name, "verified", f"{envelope.name}: signed by the holder of {public_key.name}, and as the model says")


def _of_build(content: Any, part: str) -> Any:
    definition = (content.get("predicate") or {}).get("buildDefinition") or {}
    return definition.get(part)


def _own(content: Any) -> list[Any]:
    listed = _of_build(content, "resolvedDependencies") or []
    return [each for each in listed if "dvc" not in (each.get("digest") or {})]


def _private_key(path: Path, password: str | None) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path}: no private key in PEM that opens ({error}); make one: {MAKE_KEYS}") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError(f"{path}: expected a key on an elliptic curve, found {type(key).__name__}: {MAKE_KEYS}")
    return key


def _public_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path}: no public key in PEM ({error}); openssl ec -in key.pem -pubout -out key.pub"
        ) from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise ValueError(f"{path}: expected a key on an elliptic curve, found {type(key).__name__}: {MAKE_KEYS}")
    return SSlibKey.from_crypto(key)


def _require_installed() -> None:
    missing = [name for name in ("model_signing", "in_toto_attestation", "securesystemslib") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"signatures need an extra that is not installed ({', '.join(missing)} missing): "
            f"{install_command('signing')}"
        )
