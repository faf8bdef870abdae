"""`plumbline sign`, and what its signatures are verified by."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plumbline.cli.usage import usage
from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.provenance.signing import Signer, Verifier

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option("--key", type=FILE, metavar="PEM", help="Private key on an elliptic curve.")
@click.option("--password", envvar="PLUMBLINE_KEY_PASSWORD", help="Password of the key (or PLUMBLINE_KEY_PASSWORD).")
@click.option("--keyless", is_flag=True, help="Sign by Sigstore as the CI job, or as whoever logs in; needs a network.")
@click.option("--identity-token", envvar="PLUMBLINE_IDENTITY_TOKEN", metavar="TOKEN", help="--keyless: sign as this.")
@click.option("--trust-config", type=FILE, metavar="FILE", help="--keyless: a private Sigstore instance.")
def sign(
    model: str,
    key: Path | None,
    password: str | None,
    keyless: bool,
    identity_token: str | None,
    trust_config: Path | None,
) -> None:
    """Sign the folder of MODEL and the statement of its provenance, if its audit verifies every link.

    Writes two files beside the folder: NAME.sig, a signature over every file (OpenSSF model-signing), and
    NAME.intoto.json, the chain as a signed in-toto statement with SLSA provenance. Needs the extra `signing`.
    With --keyless, Sigstore's public log shows who signed and when, to everybody.

    Exit status: 0 signed, 1 the chain does not verify, 2 the key, the identity or the model cannot be used.

    \b
    Example: openssl ecparam -name prime256v1 -genkey -noout -out key.pem
             openssl ec -in key.pem -pubout -out key.pub
             plumbline sign models:/plumbline@champion --key key.pem
             plumbline audit models:/plumbline@champion --public-key key.pub
             plumbline sign models:/plumbline@champion --keyless
    """
    from plumbline.provenance import audit_subject, render, resolved
    from plumbline.provenance.audit import open_read_case
    from plumbline.provenance.signing import sign as sign_model
    from plumbline.provenance.signing import signature_paths

    root = workspace_root()
    with usage(), resolved(model, root) as subject:
        signer = _signer(key, password, keyless, identity_token, trust_config)
        result = audit_subject(subject, root)
        if not result.verified:
            click.echo(f"{render(result)}\n\nNOT SIGNED: the chain is not verified.")
            sys.exit(1)
        if subject.place is None:
            raise ValueError(f"{model}: only DVC's cache has this folder; `dvc checkout` it and sign it there")
        paths = signature_paths(subject.place)
        sign_model(open_read_case(subject.folder, root), signer, *paths)
    click.echo(f"signed {subject.shown}:\n  {paths[0]}  every file of the folder\n  {paths[1]}  its provenance")


def _signer(key: Path | None, password: str | None, keyless: bool, token: str | None, trust: Path | None) -> Signer:
    """The signer that the options name.

    Raises:
        ValueError: they name none or two, or it cannot be used.
    """
    from plumbline.provenance.signing import require_installed

    if (key is None) != keyless:
        raise ValueError("give --key PEM or --keyless" + ("; not both" if keyless else ""))
    if not keyless and trust is not None:
        raise ValueError("--trust-config is for --keyless")
    require_installed()
    if key is None:
        from plumbline.provenance.keyless import KeylessSigner

        return KeylessSigner(token, trust)
    from plumbline.provenance.key_signatures import KeySigner

    return KeySigner(key, password)


def verifier_of(
    public_key: Path | None, identity: str | None, issuer: str | None, trust: Path | None
) -> Verifier | None:
    """What the options of `plumbline audit` verify signatures by; None: they name nothing.

    Raises:
        ValueError: the options do not go together, or what they name cannot be used.
    """
    from plumbline.provenance.signing import require_installed

    if (identity is None) != (issuer is None):
        raise ValueError("--identity and --issuer go together: who signed, and who vouches for it")
    if public_key is not None and identity is not None:
        raise ValueError("give --public-key, or --identity and --issuer; not both")
    if trust is not None and identity is None:
        raise ValueError("--trust-config is for --identity")
    if public_key is None and identity is None:
        return None
    require_installed()
    if public_key is not None:
        from plumbline.provenance.key_signatures import KeyVerifier

        return KeyVerifier(public_key)
    from plumbline.provenance.keyless import KeylessVerifier

    return KeylessVerifier(str(identity), str(issuer), trust)


COMMANDS = (sign,)
