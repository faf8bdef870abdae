"""Keyless signing by Sigstore: an identity (of a person, of a CI job) signs, and a public log has the signature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.provenance.statement import PAYLOAD_TYPE

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig


def trust_config(path: Path | None) -> ClientTrustConfig:
    """The services and roots of a Sigstore instance: those of a file, or of the public instance.

    Raises:
        ValueError: the file is not a client trust configuration, or the public instance cannot be reached.
    """
    from sigstore.models import ClientTrustConfig

    try:
        if path is None:
            return ClientTrustConfig.production()
        return ClientTrustConfig.from_json(path.read_text(encoding="utf-8"))
    except Exception as error:  # of TUF, of the network, of pydantic
        if path is None:
            fix = "check the network, or name a private instance with --trust-config FILE"
            raise ValueError(
                f"the roots of Sigstore's public instance did not arrive ({_short(error)}); {fix}"
            ) from error
        raise ValueError(f"{path}: not a client trust configuration of Sigstore ({_short(error)})") from error


class KeylessSigner:
    """An identity, shown by an OpenID Connect token."""

    def __init__(self, token: str | None, trust: Path | None) -> None:
        """Get an identity and the instance that certifies it.

        Args:
            token: an OpenID Connect token for the audience `sigstore`; None: that of the CI job, else the browser asks.
            trust: client trust configuration of a private instance.

        Raises:
            ValueError: there is no valid token, or the instance cannot be reached.
        """
        from sigstore.oidc import IdentityToken, Issuer, detect_credential

        self._trust, self._config = trust, trust_config(trust)
        try:
            raw = token or detect_credential()
            if raw is not None:
                self._token = IdentityToken(raw)
            else:
                self._token = Issuer(self._config.signing_config.get_oidc_url()).identity_token()
        except Exception as error:  # of the token, of the network
            raise ValueError(f"no identity to sign with: {_short(error)}") from error

    def for_folder(self) -> Any:
        """`model_signing.signing.Config` that signs a folder as the identity."""
        from model_signing import signing

        return signing.Config().use_sigstore_signer(identity_token=str(self._token), trust_config=self._trust)

    def sealed(self, payload: bytes) -> str:
        """A Sigstore bundle (JSON) with the signed statement.

        Raises:
            ValueError: the instance cannot be reached or refuses the identity.
        """
        from sigstore.dsse import Statement
        from sigstore.sign import SigningContext

        try:
            with SigningContext.from_trust_config(self._config).signer(self._token) as signer:
                return str(signer.sign_dsse(Statement(payload)).to_json()) + "\n"
        except Exception as error:  # of Fulcio, of Rekor, of the network
            raise ValueError(f"Sigstore did not sign the statement: {_short(error)}") from error


class KeylessVerifier:
    """Whoever knows the signer's identity and who vouches for it."""

    def __init__(self, identity: str, issuer: str, trust: Path | None) -> None:
        """Get the roots that the certificates must lead to.

        Args:
            identity: an e-mail address, or the URL of a CI workflow.
            issuer: URL of the OpenID Connect provider that vouches for it.
            trust: client trust configuration of a private instance.

        Raises:
            ValueError: the instance's roots are not to be had.
        """
        from model_signing import verifying
        from sigstore.verify import Verifier, policy

        self._identity, self._issuer = identity, issuer
        self._verifier = Verifier(trusted_root=trust_config(trust).trusted_root)
        self._policy = policy.Identity(identity=identity, issuer=issuer)
        try:  # now, as it asks the public instance, too: without a network, nothing is tampered
            self._for_folder = verifying.Config().use_sigstore_verifier(
                identity=identity, oidc_issuer=issuer, trust_config=trust
            )
        except Exception as error:
            raise ValueError(f"the roots of Sigstore did not arrive ({_short(error)}); check the network") from error

    @property
    def signer(self) -> str:
        """Who signed, in words."""
        return f"{self._identity} ({self._issuer})"

    def for_folder(self) -> Any:
        """`model_signing.verifying.Config` that verifies a folder by the identity."""
        return self._for_folder

    def opened(self, envelope: bytes) -> Any:
        """The content of a signed statement; raises anything on one that is forged."""
        from sigstore.models import Bundle

        kind, payload = self._verifier.verify_dsse(Bundle.from_json(envelope), self._policy)
        if kind != PAYLOAD_TYPE:
            raise ValueError(f"its payload is of type {kind}, expected {PAYLOAD_TYPE}")
        return json.loads(payload)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
