"""`plumbline export` and `tasks`: calibration sets for other quantizers, and benchmarks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

import click

from plumbline.workspace import workspace_root


@click.command()
@click.argument("choice")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to", "tool", type=click.Choice(["llm-compressor", "imatrix"]), required=True, help="The tool to export to."
)
@click.option("--scheme", metavar="NAME", help="llm-compressor: the scheme of its recipe (default: the deployed one).")
def export(choice: str, out: Path, tool: str, scheme: str | None) -> None:
    """Export the calibration set of CHOICE for another quantizer.

    For llm-compressor, OUT is a folder with the samples, a recipe and a script that runs both. For llama.cpp, OUT is a
    file with the importance matrix (imatrix) computed from the set's activation statistics.

    \b
    Example: plumbline export random-64 --to llm-compressor for-llm-compressor
             plumbline export random-64 --to imatrix imatrix.gguf
    """
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.export.export import for_imatrix, for_llm_compressor
    from plumbline.params import load_params

    root = workspace_root()
    try:
        params = load_params(root)
        if tool == "llm-compressor":
            click.echo(for_llm_compressor(root, choice, scheme or params.deployment.scheme, params.schemes, out))
        elif scheme is not None:
            raise ValueError("--scheme requires --to llm-compressor: an imatrix serves every type of llama.cpp")
        else:
            click.echo(for_imatrix(root, choice, BaseCheckpoint.of(params.model, root), out))
    except (ValueError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--task", "tasks", multiple=True, required=True, help="Task of lm-evaluation-harness (repeatable).")
@click.option(
    "--include", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder with your own task files."
)
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The model to compare with (default: the base model of params.yaml).",
)
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of items per task.")
@click.option("--batch-size", default=8, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the result of every item.")
def tasks(
    model: Path,
    tasks: tuple[str, ...],
    include: Path | None,
    against: Path | None,
    limit: int | None,
    batch_size: int,
    out: Path | None,
) -> None:
    """Test whether MODEL is worse at tasks than the base model: McNemar's test on paired items, Holm over the tasks.

    \b
    Example: plumbline tasks data/quantized_model/random-64-w4a16-gptq --task arc_easy --task hellaswag
    """
    from plumbline.artifact import write_table
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.base_model.load import load_model
    from plumbline.lm_eval.harness import run_tasks
    from plumbline.lm_eval.items import compare as compare_items
    from plumbline.lm_eval.items import item_table
    from plumbline.params import load_params

    root = workspace_root()
    try:
        base = BaseCheckpoint.of(load_params(root).model, root)
        first, tokenizer = against or base.folder, base.tokenizer()
        tables = {}
        for name, folder in (("first", first), ("second", model)):
            own = against is None and name == "first"
            loaded = base.load() if own else load_model(folder, base.device, base.trust_remote_code)
            tables[name] = item_table(run_tasks(loaded, tokenizer, tasks, include, limit, batch_size))
            if out is not None:
                write_table(out / f"{name}.parquet", tables[name])
        rows = compare_items(tables["first"], tables["second"])
    except (ValueError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"first: {first.name}, second: {model.name}")
    for row in rows:
        click.echo(
            f"{row['task']}: {100 * row['accuracy_first']:.1f} % and {100 * row['accuracy_second']:.1f} % "
            f"of {row['items']} items, {row['only_first']} only by the first, {row['only_second']} only by the second, "
            f"p = {row['p_value']:.3g}, over all tasks {row['p_adjusted']:.3g}"
        )


COMMANDS = (export, tasks)
