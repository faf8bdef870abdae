"""Signing and verifying with a key pair on an elliptic curve."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.provenance.statement import PAYLOAD_TYPE

MAKE_KEYS = (
    "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"
)


@dataclass(frozen=True)
class KeySigner:
    """The holder of a private key."""

    path: Path
    """PEM."""
    password: str | None
    """Of the key, if it has one."""

    def for_folder(self) -> Any:
        """`model_signing.signing.Config` that signs a folder with the key."""
        from model_signing import signing

        return signing.Config().use_elliptic_key_signer(private_key=self.path, password=self.password)

    def sealed(self, payload: bytes) -> str:
        """A DSSE envelope (JSON) with the signed payload, which in-toto's and SLSA's tools read.

        Raises:
            ValueError: the key cannot be used.
        """
        from securesystemslib.dsse import Envelope
        from securesystemslib.signer import CryptoSigner

        envelope = Envelope(payload, PAYLOAD_TYPE, {})
        envelope.sign(CryptoSigner(private_key(self.path, self.password)))
        return json.dumps(envelope.to_dict(), sort_keys=True, indent=1) + "\n"


class KeyVerifier:
    """Whoever has a public key."""

    def __init__(self, path: Path) -> None:
        """Read the key.

        Raises:
            ValueError: it is not a public key on an elliptic curve.
        """
        self.path, self._key = path, public_key(path)

    @property
    def signer(self) -> str:
        """Who signed, in words."""
        return f"the holder of {self.path.name}"

    def for_folder(self) -> Any:
        """`model_signing.verifying.Config` that verifies a folder by the key."""
        from model_signing import verifying

        return verifying.Config().use_elliptic_key_verifier(public_key=self.path)

    def opened(self, envelope: bytes) -> Any:
        """The content of a signed statement; raises anything on one that is forged."""
        from securesystemslib.dsse import Envelope

        sealed = Envelope.from_dict(json.loads(envelope))
        sealed.verify([self._key], 1)
        return json.loads(sealed.payload)


def private_key(path: Path, password: str | None) -> Any:
    """Load a private key on an elliptic curve.

    Raises:
        ValueError: the file has none, or the password does not open it.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path}: not a usable private key in PEM format ({error}); make one: {MAKE_KEYS}") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError(f"{path}: expected a key on an elliptic curve, found {type(key).__name__}: {MAKE_KEYS}")
    return key


def public_key(path: Path) -> Any:
    """Load a public key on an elliptic curve, as securesystemslib has it.

    Raises:
        ValueError: the file has none.
    """
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
