"""`plumbline engine` and `serve-check`: the engine's environment, and whether it serves a model as simulated."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from plumbline.quantized_model.kv_cache_words import served_with
from plumbline.workspace import NoWorkspace, workspace_root

EXIT = {"failed": 1, "no kernel": 3}
"""Verdict of a model -> exit status, the worst first."""


@click.command()
def engine() -> None:
    """Make the environment in which serve-check runs vLLM: 2 GB, minutes. Nothing happens if it is there.

    \b
    Example: plumbline engine
    """
    from plumbline.serving.environment import PLACE, make_environment

    place = (_workspace() or Path.cwd()) / PLACE
    make_environment(place, click.echo)
    click.echo(f"vLLM is ready: {place}\nnext: plumbline serve-check MODEL")


@click.command(name="serve-check")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--base", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The model before it.")
@click.option(
    "--texts",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Held-out texts: .jsonl with a `text` a line, or a file per text (repeatable).",
)
@click.option("--reference", "products", flag_value="reference", help="Products in plain torch, not vLLM's kernels.")
@click.option("--native", "products", flag_value="native", help="vLLM's kernels, or no result.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32", "float16"]), help="Default: as stored.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the record goes (one MODEL).")
def serve_check(
    models: tuple[str, ...],
    base: Path | None,
    files: tuple[Path, ...],
    products: str | None,
    dtype: str | None,
    out: Path | None,
) -> None:
    """Load MODEL in vLLM and compare what it answers with transformers, on which the evaluation rests.

    MODEL is a folder, a pair of the grid, or what `plumbline audit` takes; default: the champion. Texts and base model
    are those of the workspace. Outside of one, give --base and --texts. Where this machine lacks vLLM's kernels, plain
    products show whether the format is read right, and the result says so. Exit status 0: passed, 1: failed, 3: no
    kernel.

    \b
    Example: plumbline serve-check random-64-w4a16-gptq
    """
    from plumbline.serving.engine import EngineFailed

    if out is not None and len(models) > 1:
        raise click.UsageError("--out takes one MODEL")
    try:
        _check(models, base, files, products or "auto", dtype, out)
    except (ValueError, OSError, EngineFailed) as error:
        raise click.ClickException(str(error)) from error


def _check(
    names: Sequence[str], base: Path | None, files: Sequence[Path], products: Any, dtype: str | None, out: Path | None
) -> None:
    from plumbline.graph.served import base_and_texts
    from plumbline.serving.check import CheckSettings, dtype_of, serve_check
    from plumbline.serving.environment import engine_environment
    from plumbline.serving.record import LOG, record_path, write_record
    from plumbline.serving.text import SUMMARY_HEAD, described, summary_row

    root = _workspace()
    if root is None and (base is None or not files or not names):
        raise click.UsageError("outside of a workspace, give a folder as MODEL, --base FOLDER and --texts FILE")
    environment = engine_environment(root)
    folder, trusted, tokens = base_and_texts(root, base, files)
    settings = CheckSettings(dtype or dtype_of(folder), products, trust_remote_code=trusted)
    with contextlib.ExitStack() as stack:
        folders = {} if root is None else _of_workspace(root, names, stack)
        folders = folders or {Path(name).resolve().name: Path(name) for name in names}
        log = (root or Path.cwd()) / LOG
        records = serve_check(
            environment, folder, folders, tokens, settings, log, lambda line: click.echo(line, err=True)
        )
        if len(records) > 1:
            click.echo(SUMMARY_HEAD)
        for name, record in records.items():
            path = out or (record_path(root, name) if root else Path(f"{name}.serve_check.json"))
            write_record(path, record)
            where = str(path.relative_to(root) if root and path.is_relative_to(root) else path)
            todo = _next_step(record, shlex.quote(names[0] if names else str(folders[name])), folders[name])
            click.echo(described(name, record, where, todo) if len(records) == 1 else summary_row(name, record))
    verdicts = {record["verdict"] for record in records.values()}
    sys.exit(next((status for verdict, status in EXIT.items() if verdict in verdicts), 0))


def _workspace() -> Path | None:
    try:
        return workspace_root()
    except NoWorkspace:
        return None


def _of_workspace(root: Path, names: Sequence[str], stack: contextlib.ExitStack) -> dict[str, Path]:
    """Name -> folder of the models; copies from DVC's cache last as long as `stack`."""
    from plumbline.provenance.subject import MODELS, resolved

    if not names:
        from plumbline.tracking.model_version import ModelUri
        from plumbline.tracking.registry import ALIAS, open_registry

        registry = open_registry(root, read_only=True)
        if registry.champion() is None:
            raise ValueError(f"there is no champion yet; name a pair of the grid, a folder below {MODELS}")
        names = [str(ModelUri(registry.name, alias=ALIAS))]
    folders = {}
    for name in names:
        pair = root / MODELS / name
        if Path(name).name == name and pair.is_dir():  # not a path, which would take the place of the workspace's
            folders[name] = pair
            continue
        subject = stack.enter_context(resolved(name, root))
        label = subject.version.pair if subject.version else subject.folder.resolve().name
        folders[label] = subject.folder
    return folders


def _next_step(record: Mapping[str, Any], name: str, folder: Path) -> str:
    """The command that a reader of the result runs next."""
    again = f"plumbline serve-check {name}"
    if record["verdict"] == "no kernel":
        return f"{again} --reference   whether the format is read right"
    if record["verdict"] == "failed" and record["products"] == "native":
        return f"{again} --reference   passes if vLLM's kernels are at fault, not the format"
    if record["verdict"] == "failed":
        return f"{again} --dtype float32   fewer differences by rounding; then compare the schemes of the grid"
    return f"vllm serve {shlex.quote(str(folder))}{served_with(folder)}   where it is deployed"


COMMANDS = (engine, serve_check)
