"""The commands of the audit: from a model to its documents, from a document to its models, and the history of both.

Exit codes of all: 0 as hoped (verified, untouched, the same), 1 not so, 2 the command could not be understood.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from orchestration.params import project_root

PEM = click.Path(exists=True, dir_okay=False, path_type=Path)


def answer(result: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """Print a result for people or for machines."""
    click.echo(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) if as_json else render(result))


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def audit(model: str, as_json: bool) -> None:
    """From a MODEL back to the documents: every digest is recomputed.

    MODEL is a folder, a registered model (models:/NAME@ALIAS or models:/NAME/VERSION), an MLflow run (runs:/ID), a
    folder of Hugging Face's cache (models--ORG--NAME), a weights file, or the DVC hash of a model's folder.

    Exit status: 0 every link of the chain is verified, 1 one is not, 2 no such model.

    \b
    Example: plumbline audit models:/plumbline@champion
             plumbline audit data/quantized_model/random-64-w4a16-gptq --html audit.html
    """
    from orchestration.provenance import audit_subject, render, resolved

    root = project_root()
    try:
        with resolved(model, root) as subject:
            result = audit_subject(subject, root)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    answer(result, as_json, render)
    sys.exit(0 if result.verified else 1)


COMMANDS = (audit,)
