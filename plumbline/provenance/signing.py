"""Signatures over a model's folder (OpenSSF model-signing) and over the statement of its provenance (DSSE)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from plumbline.distribution import install_command
from plumbline.provenance.history_link import known_promotions
from plumbline.provenance.link import Case, Link
from plumbline.provenance.model_files import without_links
from plumbline.provenance.statement import PROMOTION, payload, statement
from plumbline.tracking.promotion_chain import entry_digest


class Signer(Protocol):
    """What signs: a key, or an identity."""

    def for_folder(self) -> Any:
        """A `model_signing.signing.Config` that signs with it."""

    def sealed(self, payload: bytes) -> str:
        """The text of a file with the signed payload."""


class Verifier(Protocol):
    """What a signature is compared with: a public key, or the name of an identity."""

    @property
    def signer(self) -> str:
        """Who signed, in words."""

    def for_folder(self) -> Any:
        """A `model_signing.verifying.Config` that verifies by it."""

    def opened(self, envelope: bytes) -> Any:
        """The payload of `sealed`; raises anything on a forged one."""


def signature_paths(model: Path) -> tuple[Path, Path]:
    """Paths of a model's signature and statement: beside its folder, whose DVC hash must not change."""
    model = model.absolute()
    return model.with_name(f"{model.name}.sig"), model.with_name(f"{model.name}.intoto.json")


def sign(case: Case, signer: Signer, signature: Path, envelope: Path) -> None:
    """Sign the folder and the in-toto statement of its provenance. Audit the chain first.

    Args:
        signer: a `KeySigner` or a `KeylessSigner`.
        signature: the file to write for the folder: a sigstore bundle, which `model_signing verify` reads.
        envelope: the file to write for the statement.

    Raises:
        ValueError: the key or the identity cannot be used.
    """
    sealed = signer.sealed(payload(statement(case)))
    with tempfile.TemporaryDirectory(prefix=".signing-", dir=signature.parent) as scratch:
        drafts = Path(scratch) / "sig", Path(scratch) / "intoto"
        try:
            with without_links(case.model) as folder:
                signer.for_folder().sign(folder, drafts[0])
        except Exception as error:  # of the key's library, of Sigstore
            raise ValueError(f"{case.model} cannot be signed: {error}") from error
        drafts[1].write_text(sealed, encoding="utf-8")
        drafts[0].replace(signature)
        drafts[1].replace(envelope)


def signature_links(
    verifier: Verifier, signature: Path, envelope: Path
) -> tuple[tuple[str, Callable[[Case], Link]], ...]:
    """The links that an audit gains by knowing who should have signed.

    Args:
        verifier: a `KeyVerifier` or a `KeylessVerifier`.
    """
    return (
        ("signature", lambda case: _folder_link(case, verifier, signature)),
        ("statement", lambda case: _statement_link(case, verifier, envelope)),
    )


def _folder_link(case: Case, verifier: Verifier, signature: Path) -> Link:
    name = "signature"
    if not signature.is_file():
        fix = f"plumbline sign {case.model.name}, by the signer; or name the file with --signature"
        return Link(name, "missing", f"{signature.name} does not exist beside the folder", fix=fix)
    try:
        with without_links(case.model) as folder:
            verifier.for_folder().verify(folder, signature)
    except Exception as error:  # a forged bundle may raise anything
        why = " ".join(str(error).split())[:300] or type(error).__name__
        meaning = f"{signature.name} is not a signature of this folder by {verifier.signer}: {why}"
        return Link(name, "tampered", meaning, fix="get the folder and its signature again from the signer")
    return Link(name, "verified", f"{signature.name}: {verifier.signer} signed every file of the folder")


def _statement_link(case: Case, verifier: Verifier, envelope: Path) -> Link:
    name, fix = "statement", "get the statement again from the signer, or `plumbline sign` the model again"
    if not envelope.is_file():
        return Link(name, "missing", f"{envelope.name} does not exist beside the folder", fix=fix)
    try:
        signed = verifier.opened(envelope.read_bytes())
    except Exception as error:  # a forged envelope may raise anything
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return Link(name, "tampered", f"{envelope.name} is not signed by {verifier.signer}: {why}", fix=fix)
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
    return Link(name, "verified", f"{envelope.name}: signed by {verifier.signer}, agrees with the model's record")


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


def require_installed() -> None:
    """Raise a ValueError that names the command if a library for signatures is not installed."""
    missing = [name for name in ("model_signing", "in_toto_attestation", "securesystemslib") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"signatures need an extra that is not installed ({', '.join(missing)} missing): "
            f"{install_command('signing')}"
        )
