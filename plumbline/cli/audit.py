"""The commands of the audit: `audit`, `affected`, `log` and `diff`.

Exit status of all: 0 for the good result (verified, not affected, the same), 1 for the other, 2 for a usage error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plumbline.cli.papers import require_outside_artifacts, why, write_papers
from plumbline.cli.sign import verifier_of
from plumbline.cli.usage import usage
from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.provenance.affected import Kind
    from plumbline.provenance.subject import Subject

PAPER = click.Path(dir_okay=False, path_type=Path)
PEM = click.Path(exists=True, dir_okay=False, path_type=Path)


def answer(result: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """Print a result as text or as JSON."""
    click.echo(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) if as_json else render(result))


@click.command()
@click.argument("model", required=False)
@click.option("--explain", is_flag=True, help="List the links of an audit and what each compares; needs no MODEL.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page for a reviewer.")
@click.option(
    "--restore",
    "restore_to",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Restore the exact calibration set, statistics and parameters from DVC's cache or remote.",
)
@click.option("--bom", type=PAPER, metavar="FILE", help="Write a CycloneDX 1.7 bill of materials (ML-BOM).")
@click.option("--croissant", type=PAPER, metavar="FILE", help="Write the calibration set's Croissant 1.1 description.")
@click.option("--reproduce", "again", is_flag=True, help="Rerun the chain in a clean workspace and compare the bytes.")
@click.option("--public-key", type=PEM, metavar="PEM", help="Also verify the signatures of `plumbline sign --key`.")
@click.option("--identity", metavar="NAME", help="Also verify those of `sign --keyless`: an e-mail address or a URL.")
@click.option("--issuer", metavar="URL", help="Who vouches for --identity: its OpenID Connect provider.")
@click.option("--trust-config", type=PEM, metavar="FILE", help="A private Sigstore instance (default: the public one).")
@click.option("--signature", type=click.Path(path_type=Path), metavar="FILE", help="Default: beside the folder.")
@click.option("--statement", type=click.Path(path_type=Path), metavar="FILE", help="Default: beside the folder.")
def audit(
    model: str | None,
    explain: bool,
    as_json: bool,
    html: Path | None,
    restore_to: Path | None,
    bom: Path | None,
    croissant: Path | None,
    again: bool,
    public_key: Path | None,
    identity: str | None,
    issuer: str | None,
    trust_config: Path | None,
    signature: Path | None,
    statement: Path | None,
) -> None:
    """Trace a MODEL back to the text of its calibration documents; every digest is recomputed, and the registry,
    dvc.lock, evaluation and promotion are compared with it.

    MODEL is a folder, a registered model (models:/NAME@ALIAS or models:/NAME/VERSION), an MLflow run (runs:/ID), a
    folder of Hugging Face's cache (models--ORG--NAME), a weights file, or the DVC hash of a model's folder.

    Exit status: 0 every link of the chain is verified, 1 at least one is not, 2 no such model.

    \b
    Example: plumbline audit models:/plumbline@champion
             plumbline audit data/quantized_model/random-64-w4a16-gptq --html audit.html
             plumbline audit models:/plumbline@champion --bom bom.cdx.json --croissant croissant.json
             plumbline audit --explain
    """
    if explain:
        from plumbline.provenance.explain import as_list, render_explanation

        click.echo(json.dumps(as_list(), indent=1, ensure_ascii=False) if as_json else render_explanation())
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    from plumbline.provenance import audit_subject, render, resolved
    from plumbline.provenance.model_files import record_of

    root = workspace_root()
    with usage(), resolved(model, root, fetch=restore_to is not None) as subject:
        papers = {"bom": bom, "croissant": croissant}
        require_outside_artifacts(papers, subject, root)
        signed: tuple[Any, ...] = ()
        if (verifier := verifier_of(public_key, identity, issuer, trust_config)) is not None:
            from plumbline.provenance.signing import signature_links, signature_paths

            beside = signature_paths(subject.place or subject.folder)
            signed = signature_links(verifier, signature or beside[0], statement or beside[1])
        more, succeeded = _further(subject, root, restore_to, again)
        result = audit_subject(subject, root, signed)  # after restoring, which fetches objects into the cache
        if html is not None:
            from plumbline.provenance.page import write_page

            write_page(result, html, more, record_of(subject.folder), root)
        written, papers_written = write_papers(papers, subject, root, result)
        more, succeeded = more | written, succeeded and papers_written
    content = {**result.as_dict(), **{name: part for name, (part, _) in more.items()}}
    lines = [render(result), *(text for _, text in more.values())]
    click.echo(json.dumps(content, indent=1, ensure_ascii=False) if as_json else "\n\n".join(lines))
    sys.exit(0 if result.verified and succeeded else 1)


def _further(
    subject: Subject, root: Path, restore_to: Path | None, again: bool
) -> tuple[dict[str, tuple[Any, str]], bool]:
    """Run --restore and --reproduce; returns name -> (JSON value, text), and whether all succeeded."""
    from plumbline.provenance.audit import UNFORESEEN, open_read_case
    from plumbline.provenance.text import render_reproduction, render_restored

    more: dict[str, tuple[Any, str]] = {}
    succeeded = True
    if restore_to is not None:
        from plumbline.provenance.restore import restore

        try:
            summary = restore(open_read_case(subject.folder, root), restore_to)
            more["restored"] = {"folder": str(restore_to), **summary}, render_restored(restore_to, summary)
        except UNFORESEEN as error:
            more["restored"], succeeded = ({"error": str(error)}, f"NOT RESTORED: {why(error)}"), False
    if again:
        from plumbline.provenance.reproduce import reproduce

        try:
            reproduction = reproduce(open_read_case(subject.folder, root), lambda line: click.echo(line, err=True))
            more["reproduced"] = reproduction.as_dict(), render_reproduction(reproduction)
            succeeded = succeeded and reproduction.same
        except UNFORESEEN as error:
            more["reproduced"], succeeded = ({"error": str(error)}, f"NOT REPRODUCED: {why(error)}"), False
    return more, succeeded


@click.command()
@click.argument("what")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["document", "file", "text", "source"]),
    help="How to read WHAT (default: the first that fits).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def affected(what: str, kind: Kind | None, as_json: bool) -> None:
    """List every calibration set, model and deployment with text of WHAT, earlier versions included.

    WHAT is a document's id (or the beginning of it), a file, a text (every document that contains it), or a source:
    a name under corpus.sources, or NAME/path of one of its files.

    Exit status: 0 none is affected, 1 at least one is (or cannot be ruled out), 2 WHAT matches nothing.

    \b
    Example: plumbline affected stdlib/library
             plumbline affected withdrawn.jsonl --json
             plumbline affected "jane.doe@example.com" --as text
    """
    from plumbline.provenance.affected import affected as affected_by
    from plumbline.provenance.affected_text import render_affected

    with usage():
        result = affected_by(what, workspace_root(), kind)
    answer(result, as_json, render_affected)
    sys.exit(1 if result.touched else 0)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def log(as_json: bool) -> None:
    """Show the history of champions: when, which choice on which data, its figures, who promoted it and why.

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
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every sample.")
def diff(a: str, b: str, as_json: bool) -> None:
    """Compare the chains of the models A and B: samples, parameters, versions, figures.

    A and B are references as for `plumbline audit`: folders, registered models, runs, weights files, DVC hashes.

    Exit status: 0 nothing differs, 1 something differs, 2 no such model.

    \b
    Example: plumbline diff models:/plumbline/3 models:/plumbline@champion
    """
    from plumbline.provenance import resolved
    from plumbline.provenance.audit import open_read_case
    from plumbline.provenance.difference import difference, render_difference

    root = workspace_root()
    with usage(), resolved(a, root) as subject_a, resolved(b, root) as subject_b:
        cases = open_read_case(subject_a.folder, root), open_read_case(subject_b.folder, root)
        result = difference(*cases, (subject_a.shown, subject_b.shown))
    answer(result, as_json, render_difference)
    sys.exit(0 if result.same else 1)


COMMANDS = (audit, affected, log, diff)
