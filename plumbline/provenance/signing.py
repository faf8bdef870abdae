"""Signatures over a model's folder (OpenSSF model-signing) and over the statement of its provenance (DSSE)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plumbline.distribution import install_command
from plumbline.provenance.history_link import known_promotions
from plumbline.provenance.link import Case, Link
from plumbline.provenance.model_files import without_links
from plumbline.provenance.statement import PROMOTION, payload, statement
from plumbline.tracking.promotion_chain import entry_digest

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAKE_KEYS = (
    "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"
)


def signature_paths(model: Path) -> tuple[Path, Path]:
    """Paths of a model's signature and statement: beside its folder, whose DVC hash must not change."""
    model = model.absolute()
    return model.with_name(f"{model.name}.sig"), model.with_name(f"{model.name}.intoto.json")


def sign(case: Case, key: Path, password: str | None, signature: Path, envelope: Path) -> None:
    """Sign the folder and the in-toto statement of its provenance. Audit the chain first.

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
            with without_links(case.model) as folder:
                signing.Config().use_elliptic_key_signer(private_key=key, password=password).sign(folder, drafts[0])
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
        fix = f"plumbline sign {case.model.name} --key PRIVATE_KEY, by the signer; or name the file with --signature"
        return Link(name, "missing", f"{signature.name} does not exist beside the folder", fix=fix)
    try:
        with without_links(case.model) as folder:
            verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(folder, signature)
    except Exception as error:  # a forged bundle may raise anything
        why = " ".join(str(error).split())[:300] or type(error).__name__
        meaning = f"{signature.name} is not a signature of this folder by {public_key.name}: {why}"
        return Link(name, "tampered", meaning, fix="get the folder and its signature again from the signer")
    return Link(name, "verified", f"{signature.name}: the holder of {public_key.name} signed every file of the folder")


def _statement_link(case: Case, key: Any, public_key: Path, envelope: Path) -> Link:
    from securesystemslib.dsse import Envelope

    name, fix = "statement", "get the statement again from the signer, or `plumbline sign` the model again"
    if not envelope.is_file():
        return Link(name, "missing", f"{envelope.name} does not exist beside the folder", fix=fix)
    try:
        sealed = Envelope.from_dict(json.loads(envelope.read_bytes()))
        sealed.verify([key], 1)
        signed = json.loads(sealed.payload)
    except Exception as error:  # a forged envelope may raise anything
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return Link(name, "tampered", f"{envelope.name} is not signed by {public_key.name}: {why}", fix=fix)
    current = statement(case)
    differing = [] if signed.get("predicateType") == current["predicateType"] else ["predicateType"]
    if signed.get("subject") not in (current["subject"], current["subject"][1:]):  # earlier ones lack the root digest
        differing.append("subject")
    # DVC's records and the registry may have gained entries since; those from the model's own record must agree.
    for part in ("externalParameters", "internalParameters", "buildType"):
        if _build_part(signed, part) != _build_part(current, part):
            differing.append(part)
    if _dependencies_on_record(signed) != _dependencies_on_record(current):
        differing.append("resolvedDependencies")
    if differing:
        meaning = f"{envelope.name} is signed, but differs from the model's record in {', '.join(differing)}"
        return Link(name, "tampered", meaning, fix=fix)
    if lost := _off_the_record(case, signed):
        meaning = f"{envelope.name} is signed, but what it names is not on record any more: {'; '.join(lost[:3])}"
        return Link(name, "tampered", meaning, fix="restore dvc.lock, promotions.jsonl and the registry from a backup")
    return Link(
        name, "verified", f"{envelope.name}: signed by the holder of {public_key.name}, agrees with the model's record"
    )


def _build_part(content: Any, part: str) -> Any:
    definition = (content.get("predicate") or {}).get("buildDefinition") or {}
    return definition.get(part)


def _dependencies_on_record(content: Any) -> list[Any]:
    """The dependencies that the model's own record names."""
    return [d for d in _dependencies(content) if not {"dvc", PROMOTION} & (d.get("digest") or {}).keys()]


def _dependencies(content: Any) -> list[Any]:
    return _build_part(content, "resolvedDependencies") or []


def _off_the_record(case: Case, signed: Any) -> list[str]:
    """Artifacts and promotions of the statement that neither DVC's records nor the registry have now.

    Later runs and promotions are no fault: they come on top of what is on record. A workspace that does not know the
    model cannot say.
    """
    lost = []
    promotions = {entry_digest(entry) for entry in known_promotions(case).values()}
    evaluations = {version.evaluation for version in case.versions}
    for dependency in _dependencies(signed):
        path, digest = str(dependency.get("name")), dependency.get("digest") or {}
        if PROMOTION in digest and promotions and digest[PROMOTION] not in promotions:
            lost.append("the newest promotion at the time of signing")
        md5 = digest.get("dvc")
        if md5 is not None and case.runs and md5 not in evaluations and not case.history.makers(md5, path):
            lost.append(f"{path} {md5}")
    return lost


def _private_key(path: Path, password: str | None) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path}: not a usable private key in PEM format ({error}); make one: {MAKE_KEYS}") from error
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
            f"{path}: not a public key in PEM format ({error}); openssl ec -in key.pem -pubout -out key.pub"
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
