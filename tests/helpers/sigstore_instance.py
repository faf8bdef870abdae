"""A private Sigstore instance in a thread: an identity provider, a certificate authority (Fulcio) and a log (Rekor).

Every key is made anew, so what it certifies is trusted only by its own client trust configuration.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ISSUER = "https://login.example.org"
SCT_LIST, OIDC_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
DAY = timedelta(days=1)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(der(key)).digest()


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def signed(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def token(identity: str) -> str:
    """An OpenID Connect token; Sigstore's clients leave it to the authority to check its signature."""
    now = datetime.now(UTC)
    claims = {"iss": ISSUER, "sub": identity, "aud": "sigstore", "iat": now, "exp": now + timedelta(minutes=5)}
    return jwt.encode(claims, "a secret of the identity provider, long enough", algorithm="HS256")


class Instance:
    """The services, and what a client must know of them."""

    def __init__(self) -> None:
        self.authority, self.ct_log, self.log = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        now = datetime.now(UTC)
        self.root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.authority.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key()), critical=False)
            .sign(self.authority, hashes.SHA256())
        )

    def certificate(self, request: dict[str, Any], bearer: str) -> dict[str, Any]:
        """Fulcio: a certificate for the identity of the token, with the timestamp of the certificate log."""
        csr = x509.load_pem_x509_csr(base64.b64decode(request["certificateSigningRequest"]))
        claims = jwt.decode(bearer, options={"verify_signature": False})
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(claims["sub"])]), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), critical=False
            )
            .add_extension(x509.UnrecognizedExtension(OIDC_ISSUER, claims["iss"].encode()), critical=False)
        )
        body = builder.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes
        milliseconds = int(now.timestamp() * 1000)
        entry = key_id(self.authority) + len(body).to_bytes(3, "big") + body
        to_sign = struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + struct.pack("!H", 0)  # RFC 6962, section 3.2
        seal = signed(self.ct_log, to_sign)
        sct = struct.pack("!B32sQHBBH", 0, key_id(self.ct_log), milliseconds, 0, 4, 3, len(seal)) + seal
        listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        octets = b"\x04" + (bytes([len(listed)]) if len(listed) < 128 else bytes([0x81, len(listed)])) + listed
        leaf = builder.add_extension(x509.UnrecognizedExtension(SCT_LIST, octets), critical=False)
        chain = [pem(leaf.sign(self.authority, hashes.SHA256())), pem(self.root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def entry(self, request: dict[str, Any]) -> dict[str, Any]:
        """Rekor: the entry of a signed envelope in a log of one entry, with its proof."""
        content = request["spec"]["proposedContent"]
        envelope, verifier = json.loads(content["envelope"]), content["verifiers"][0]
        digests = [hashlib.sha256(each).hexdigest() for each in (
            content["envelope"].encode(), base64.b64decode(envelope["payload"]))]  # fmt: skip
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": digests[0]},
            "payloadHash": {"algorithm": "sha256", "value": digests[1]},
            "signatures": [{"signature": each["sig"], "verifier": verifier} for each in envelope["signatures"]],
        }
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}, sort_keys=True).encode()
        root = hashlib.sha256(b"\0" + body).digest()  # of a tree with one leaf
        note = f"a log\n1\n{b64(root)}\n"
        checkpoint = f"{note}\n— log {b64(key_id(self.log)[:4] + signed(self.log, note.encode()))}\n"
        promise = {
            "body": b64(body),
            "integratedTime": int(datetime.now(UTC).timestamp()),
            "logID": key_id(self.log).hex(),
            "logIndex": 0,
        }
        proof = {"checkpoint": checkpoint, "hashes": [], "logIndex": 0, "rootHash": root.hex(), "treeSize": 1}
        verification = {"inclusionProof": proof, "signedEntryTimestamp": b64(signed(self.log, rfc8785.dumps(promise)))}
        return {"0" * 64: {**promise, "verification": verification}}

    def trust_config(self, url: str) -> dict[str, Any]:
        """The client trust configuration."""
        valid = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {"rawBytes": b64(der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid}
            return {
                "baseUrl": url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": {"keyId": b64(key_id(key))},
            }

        service = {"url": url, "majorApiVersion": 1, "validFor": valid, "operator": "a test"}
        root = b64(self.root.public_bytes(serialization.Encoding.DER))
        authority = {
            "subject": {"organization": "a test", "commonName": "an authority"},
            "uri": url,
            "certChain": {"certificates": [{"rawBytes": root}]},
            "validFor": valid,
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.log)],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self.ct_log)],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [service],
                "rekorTlogUrls": [service],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaUrls": [],
                "tsaConfig": {"selector": "ANY"},
            },
        }


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


@contextlib.contextmanager
def running(folder: Path, name: str = "trust.json") -> Iterator[Path]:
    """Serve an instance; yields the path of its client trust configuration."""
    instance = Instance()

    class Services(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"authorization_endpoint": "http://none", "token_endpoint": "http://none"})

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/signingCert"):
                bearer = self.headers["Authorization"].removeprefix("Bearer ")
                self._answer(200, instance.certificate(content, bearer))
            else:
                self._answer(201, instance.entry(content))

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Services)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        path = folder / name
        path.write_text(json.dumps(instance.trust_config(f"http://127.0.0.1:{server.server_port}")), encoding="utf-8")
        yield path
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
