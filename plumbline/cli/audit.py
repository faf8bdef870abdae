"""The commands of the audit: from a model to its documents, from a document to its models, and the history of both.

Exit codes of all: 0 as hoped (verified, untouched, the same), 1 not so, 2 the command could not be understood.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.provenance.affected import Kind
    from plumbline.provenance.subject import Subject

PEM = click.Path(exists=True, dir_okay=False, path_type=Path)


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """What cannot be understood ends a command with exit status 2 and a sentence."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error


def answer(result: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """Print a result for people or for machines."""
    click.echo(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) if as_json else render(result))


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page for a reviewer.")
@click.option(
    "--restore",
    "restore_to",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Bring back the exact calibration set, statistics and parameters, from DVC's cache or remote.",
)
@click.option("--reproduce", "again", is_flag=True, help="Run the chain again in a clean place: same bytes?")
@click.option("--public-key", type=PEM, metavar="PEM", help="Also verify the signatures of `plumbline sign`.")
@click.option("--signature", type=click.Path(path_type=Path), metavar="FILE", help="Default: beside the folder.")
@click.option("--statement", type=click.Path(path_type=Path), metavar="FILE", help="Default: beside the folder.")
def audit(
    model: str,
    as_json: bool,
    html: Path | None,
    restore_to: Path | None,
    again: bool,
    public_key: Path | None,
    signature: Path | None,
    statement: Path | None,
) -> None:
    """From a MODEL back to the documents: every digest is recomputed.

    MODEL is a folder, a registered model (models:/NAME@ALIAS or models:/NAME/VERSION), an MLflow run (runs:/ID), a
    folder of Hugging Face's cache (models--ORG--NAME), a weights file, or the DVC hash of a model's folder.

    Exit status: 0 every link of the chain is verified, 1 one is not, 2 no such model.

    \b
    Example: plumbline audit models:/plumbline@champion
             plumbline audit data/quantized_model/random-64-w4a16-gptq --html audit.html
    """
    from plumbline.provenance import audit_subject, render, resolved
    from plumbline.provenance.model_links import record_of

    root = workspace_root()
    with usage(), resolved(model, root, fetch=restore_to is not None) as subject:
        signed: tuple[Any, ...] = ()
        if public_key is not None:
            from plumbline.provenance.signing import signature_links, signature_paths

            beside = signature_paths(subject.place or subject.folder)
            signed = signature_links(public_key, signature or beside[0], statement or beside[1])
        more, well = _further(subject, root, restore_to, again)
        result = audit_subject(subject, root, signed)  # sees what restoring has fetched into the cache
        if html is not None:
            from plumbline.provenance.page import write_page

            write_page(result, html, more, record_of(subject.folder))
    told = {**result.as_dict(), **{name: part for name, (part, _) in more.items()}}
    lines = [render(result), *(text for _, text in more.values())]
    click.echo(json.dumps(told, indent=1, ensure_ascii=False) if as_json else "\n\n".join(lines))
    sys.exit(0 if result.verified and well else 1)


def _further(
    subject: Subject, root: Path, restore_to: Path | None, again: bool
) -> tuple[dict[str, tuple[Any, str]], bool]:
    """What was asked for beside the audit: by name, for machines and for people; and whether it came out well."""
    from plumbline.provenance.audit import UNFORESEEN, open_read_case
    from plumbline.provenance.text import render_reproduction, render_restored

    more: dict[str, tuple[Any, str]] = {}
    well = True
    if restore_to is not None:
        from plumbline.provenance.restore import restore

        try:
            told = restore(open_read_case(subject.folder, root), restore_to)
            more["restored"] = {"folder": str(restore_to), **told}, render_restored(restore_to, told)
        except UNFORESEEN as error:
            more["restored"], well = ({"error": str(error)}, f"NOT RESTORED: {_why(error)}"), False
    if again:
        from plumbline.provenance.reproduce import reproduce

        try:
            made = reproduce(open_read_case(subject.folder, root), lambda line: click.echo(line, err=True))
            more["reproduced"] = made.as_dict(), render_reproduction(made)
            well = well and made.same
        except UNFORESEEN as error:
            more["reproduced"], well = ({"error": str(error)}, f"NOT REPRODUCED: {_why(error)}"), False
    return more, well


def _why(error: Exception) -> str:
    """The sentence of an error that was foreseen; of another, also its kind."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error!s:.200}"


@click.command()
@click.argument("what")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["document", "file", "text", "source"]),
    help="What WHAT is (default: the first of these that fits).",
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def affected(what: str, kind: Kind | None, as_json: bool) -> None:
    """Every calibration set, model and deployment that WHAT touched, in every version that is still known.

    WHAT is a document's id (or the beginning of it), a file, a text (every document that contains it), or a source:
    a name under corpus.sources, or NAME/path of one of its files.

    Exit status: 0 none, 1 something was touched (or cannot be ruled out), 2 nothing known is meant by WHAT.

    \b
    Example: plumbline affected stdlib/library
             plumbline affected withdrawn.jsonl --json
             plumbline affected "jane.doe@example.com" --as text
    """
    from plumbline.provenance.affected import affected as affected_by
    from plumbline.provenance.affected_text import render_affected

    with usage():
        found = affected_by(what, workspace_root(), kind)
    answer(found, as_json, render_affected)
    sys.exit(1 if found.touched else 0)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def log(as_json: bool) -> None:
    """The history of champions: when, which choice on which data, its figures, who promoted it and why.

    Exit status: 0 there is a champion, 1 there is none, 2 MLflow does not answer.

    \b
    Example: plumbline log
    """
    from plumbline.cli.champion_log import render_log
    from plumbline.tracking.champions import champions

    with usage():
        history = champions(workspace_root())
    answer(history, as_json, render_log)
    sys.exit(0 if history.champion else 1)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="For machines, with every sample.")
def diff(a: str, b: str, as_json: bool) -> None:
    """What differs between the chains of the models A and B: samples in and out, parameters, versions, figures.

    A and B are whatever `plumbline audit` takes: folders, registered models, runs, weights files, DVC hashes.

    Exit status: 0 nothing differs, 1 something does, 2 no such model.

    \b
    Example: plumbline diff models:/plumbline/3 models:/plumbline@champion
    """
    from plumbline.provenance import resolved
    from plumbline.provenance.audit import open_read_case
    from plumbline.provenance.difference import difference, render_difference

    root = workspace_root()
    with usage(), resolved(a, root) as of_a, resolved(b, root) as of_b:
        cases = open_read_case(of_a.folder, root), open_read_case(of_b.folder, root)
        found = difference(*cases, (of_a.shown, of_b.shown))
    answer(found, as_json, render_difference)
    sys.exit(0 if found.same else 1)


@click.command()
@click.argument("model")
@click.option("--key", type=PEM, required=True, metavar="PEM", help="A private key on an elliptic curve.")
@click.option("--password", envvar="PLUMBLINE_KEY_PASSWORD", help="Of the key (or PLUMBLINE_KEY_PASSWORD).")
def sign(model: str, key: Path, password: str | None) -> None:
    """Sign the folder of MODEL and the statement of its provenance, once its audit has verified every link.

    Beside the folder it writes NAME.sig, a signature over every file (OpenSSF model-signing), and NAME.intoto.json, the
    chain as a signed in-toto statement with SLSA provenance. Needs the extra `signing`.

    Exit status: 0 signed, 1 the chain does not verify, 2 the key or the model cannot be used.

    \b
    Example: openssl ecparam -name prime256v1 -genkey -noout -out key.pem
             openssl ec -in key.pem -pubout -out key.pub
             plumbline sign models:/plumbline@champion --key key.pem
             plumbline audit models:/plumbline@champion --public-key key.pub
    """
    from plumbline.provenance import audit_subject, render, resolved
    from plumbline.provenance.audit import open_read_case
    from plumbline.provenance.signing import sign as sign_model
    from plumbline.provenance.signing import signature_paths

    root = workspace_root()
    with usage(), resolved(model, root) as subject:
        result = audit_subject(subject, root)
        if not result.verified:
            click.echo(f"{render(result)}\n\nNOT SIGNED: a signature would vouch for a chain that does not verify.")
            sys.exit(1)
        if subject.place is None:
            raise ValueError(f"{model}: only DVC's cache has this folder; `dvc checkout` it, and sign it where it lies")
        paths = signature_paths(subject.place)
        sign_model(open_read_case(subject.folder, root), key, password, *paths)
    click.echo(f"signed {subject.shown}:\n  {paths[0]}  every file of the folder\n  {paths[1]}  its provenance")


COMMANDS = (audit, affected, log, diff, sign)
