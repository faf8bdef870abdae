"""`plumbline`: the command line. Heavy packages are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

import click

from plumbline.cli import audit as audit_commands
from plumbline.cli import release as release_commands
from plumbline.cli import statistics as statistics_commands
from plumbline.workspace import workspace_root


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Picks, proves and audits the calibration data behind quantized language models.

    \b
    plumbline run                                   bring every artifact up to date, show the table
    plumbline audit data/quantized_model/NAME       from a model back to its documents
    plumbline study                                 does the choice matter, and how sure is that?
    plumbline status                                what is out of date, and why
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Read when tqdm is imported: a bar of any library appears only if it lasts, and seldom in a log file.
    os.environ.setdefault("TQDM_DELAY", "2")
    os.environ.setdefault("TQDM_MININTERVAL", "0.2" if sys.stderr.isatty() else "20")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


for command in (*audit_commands.COMMANDS, *release_commands.COMMANDS, *statistics_commands.COMMANDS):
    main.add_command(command)


@main.command()
@click.option("--only", multiple=True, metavar="ASSET", help="Only this asset (may be given several times).")
def run(only: tuple[str, ...]) -> None:
    """Materialize what is missing or out of date, then show the results.

    \b
    Example: plumbline run --only raw_corpus --only tokenized_samples
    """
    from plumbline.graph.run import RunFailed, run_graph

    root, started = workspace_root(), time.perf_counter()
    _require_git_or_no_scm(root)
    try:
        steps = run_graph(root, only, click.echo)
    except (RunFailed, ValueError) as error:
        raise click.ClickException(str(error)) from error
    seconds = time.perf_counter() - started
    click.echo(_took(steps, seconds))
    if (root / "data" / "calibration_report" / "table.json").is_file():
        from plumbline.cli.summary import show

        show(root)


@main.command()
@click.argument("name", required=False)
def strategies(name: str | None) -> None:
    """The ways to choose a calibration set; with a NAME, what one does and its options.

    \b
    Example: plumbline strategies embedding_cluster
    """
    from inspect import getdoc

    import yaml

    from plumbline.calibration_set.strategies import get, names

    if name is None:
        for each in names():
            strategy = get(each)
            first = (getdoc(strategy.select) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")
            click.echo(f"{each:20} {first}{'' if strategy.package == 'plumbline' else f' ({strategy.package})'}")
        click.echo("\nplumbline strategies NAME   what one does, its options, its cost and its source")
        return
    try:
        strategy = get(name)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    defaults = strategy.options.model_construct().model_dump(mode="json", warnings=False)
    entry = {f"{name.replace('_', '-')}-64": {"strategy": name, "n": 64, "seed": 0, **defaults}}
    click.echo(yaml.safe_dump(entry, default_flow_style=None, sort_keys=False, width=100))
    click.echo(getdoc(strategy.select) or f"(package {strategy.package} does not say more)")


@main.command()
@click.argument("name", required=False)
def schemes(name: str | None) -> None:
    """The quantization schemes of params.yaml and what they are made of; with a NAME, one in full.

    \b
    Example: plumbline schemes w4a16-gptq
    """
    from plumbline.cli.scheme_list import list_schemes, show_scheme
    from plumbline.params import load_params

    try:
        params = load_params(workspace_root())
        if name is not None and name not in params.schemes:
            raise ValueError(f"no scheme {name!r} in params.yaml; there: {', '.join(params.schemes)}")
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if name is None:
        click.echo(list_schemes(params.schemes, params.grid.schemes))
    else:
        click.echo(show_scheme(name, params.schemes[name]))


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
def study(names: tuple[str, ...]) -> None:
    """Rules of choosing × sizes × draws × schemes: is one better, and how sure is that?

    NAME is an entry under `studies:` in params.yaml; without one, all of them. It takes many minutes; one that was
    stopped goes on where it was.

    \b
    Example: plumbline study strategies
    """
    from plumbline.params import load_params, request

    root, started = workspace_root(), time.perf_counter()
    _require_git_or_no_scm(root)
    try:
        asked = names or tuple(load_params(root).studies)
        if not asked:
            raise ValueError(f"{root / 'params.yaml'}: nothing under `studies:`; add an entry")
        request(asked, root)  # before the graph is loaded, of which they become a part

        from plumbline.graph.run import RunFailed, run_graph, with_upstream
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    try:
        steps = run_graph(root, with_upstream(root, "study"), click.echo)
    except (RunFailed, ValueError) as error:
        raise click.ClickException(str(error)) from error
    seconds = time.perf_counter() - started
    click.echo(_took(steps, seconds))
    from plumbline.cli.summary import show_study

    for name in asked:
        show_study(root, name)


@main.command()
def status() -> None:
    """What is out of date, and why. Exit status 1 if anything is.

    \b
    Example: plumbline status || plumbline run
    """
    from plumbline.graph.intake import waiting
    from plumbline.versioning.recording import changed_stages, on_request

    root = workspace_root()
    new = waiting(root).as_dict()
    for name in new.get("waiting", []):
        click.echo(f"inbox: {name} is not taken in yet")
    for name in new.get("removed", []):
        click.echo(f"inbox: {name} was deleted, and is still part of the corpus")
    changed = changed_stages(root)
    for name, reasons in changed.items():
        click.echo(f"{name}\n    " + "\n    ".join(reasons))
    stale = f"{len(changed)} stages out of date: plumbline run" if changed else ""
    click.echo(stale or ("the inbox has news: plumbline run" if new else "everything is up to date"))
    for asset in sorted(on_request(root)):
        for name, why in changed_stages(root, asset).items():
            click.echo(f"on request (plumbline study): {name}\n    " + "\n    ".join(why))
    sys.exit(1 if changed or new else 0)


@main.command()
@click.argument("choice")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", "tool", type=click.Choice(["llm-compressor", "imatrix"]), required=True, help="Who reads it.")
@click.option("--scheme", metavar="NAME", help="llm-compressor: the scheme of its recipe (default: the deployed one).")
def export(choice: str, out: Path, tool: str, scheme: str | None) -> None:
    """Hand the calibration set of CHOICE to another quantizer.

    llm-compressor gets a folder OUT with the samples, a recipe and a script that runs both. llama.cpp gets a file OUT
    with the importance matrix (imatrix) that the set's activation statistics amount to.

    \b
    Example: plumbline export random-64 --to llm-compressor for-llm-compressor
             plumbline export random-64 --to imatrix imatrix.gguf
    """
    from plumbline.export.export import for_imatrix, for_llm_compressor
    from plumbline.params import load_params

    root = workspace_root()
    try:
        params = load_params(root)
        if tool == "llm-compressor":
            click.echo(for_llm_compressor(root, choice, scheme or params.deployment.scheme, params.schemes, out))
        elif scheme is not None:
            raise ValueError("--scheme goes with --to llm-compressor: an imatrix serves every type of llama.cpp")
        else:
            click.echo(for_imatrix(root, choice, params.model, out))
    except (ValueError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--task", "tasks", multiple=True, required=True, help="Of lm-evaluation-harness (may be given several).")
@click.option(
    "--include", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Task files of your own."
)
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The model to compare with (default: the base model of params.yaml).",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only so many items of each task.")
@click.option("--batch-size", default=8, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep every item's result here.")
def tasks(
    model: Path,
    tasks: tuple[str, ...],
    include: Path | None,
    against: Path | None,
    limit: int | None,
    batch_size: int,
    out: Path | None,
) -> None:
    """Does MODEL do worse at tasks? McNemar's test on paired items, Holm over the tasks.

    \b
    Example: plumbline tasks data/quantized_model/random-64-w4a16-gptq --task arc_easy --task hellaswag
    """
    from plumbline.artifact import write_table
    from plumbline.base_model.load import load_model, load_tokenizer, model_folder
    from plumbline.lm_eval.harness import run_tasks
    from plumbline.lm_eval.items import compare as compare_items
    from plumbline.lm_eval.items import item_table
    from plumbline.params import load_params

    root = workspace_root()
    try:
        params = load_params(root).model
        base = model_folder(params, root)
        tokenizer = load_tokenizer(base, params.trust_remote_code)
        tables = {}
        for name, folder in (("first", against or base), ("second", model)):
            loaded = load_model(folder, params.device, params.trust_remote_code)
            tables[name] = item_table(run_tasks(loaded, tokenizer, tasks, include, limit, batch_size))
            if out is not None:
                write_table(out / f"{name}.parquet", tables[name])
        rows = compare_items(tables["first"], tables["second"])
    except (ValueError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"first: {(against or base).name}, second: {model.name}")
    for row in rows:
        click.echo(
            f"{row['task']}: {row['accuracy_first']:.1%} and {row['accuracy_second']:.1%} of {row['items']} items, "
            f"{row['only_first']} only by the first, {row['only_second']} only by the second, "
            f"p = {row['p_value']:.3g}, over all tasks {row['p_adjusted']:.3g}"
        )


@main.command()
def verify() -> None:
    """Re-hash every artifact and every object of DVC's cache: DVC itself trusts read-only cache files.

    Exit status 1 if one of them does not hold what its hash says.

    \b
    Example: plumbline verify
    """
    from plumbline.provenance import verify as verify_workspace

    try:
        wrong = verify_workspace(workspace_root())
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for line in wrong:
        click.echo(line)
    click.echo(f"{len(wrong)} corrupted" if wrong else "every artifact and cache object holds what its hash says")
    sys.exit(1 if wrong else 0)


@main.command()
def reconcile() -> None:
    """Tell Dagster what `dvc repro`, `dvc checkout` or `dvc pull` put in place.

    \b
    Example: dvc pull && plumbline reconcile
    """
    from plumbline.graph.definitions import load_definitions
    from plumbline.graph.instance import instance
    from plumbline.graph.reconcile import reconcile as report

    with instance() as history:
        names = report(history, load_definitions(workspace_root()))
    click.echo(f"reported {len(names)} artifacts to Dagster" if names else "Dagster knows everything in dvc.lock")


def _took(steps: int, seconds: float) -> str:
    if not steps:
        return f"everything is up to date ({seconds:.1f} s)\n"
    return f"{steps} {'step' if steps == 1 else 'steps'} in {seconds:.0f} s\n"


def _require_git_or_no_scm(root: Path) -> None:
    """A copy of the project without git (an archive) works once DVC is told so."""
    if not (root / ".git").exists():
        local = root / ".dvc" / "config.local"
        if "no_scm" not in (local.read_text() if local.is_file() else ""):
            with local.open("a") as file:
                file.write("[core]\n    no_scm = true\n")


if __name__ == "__main__":
    main()
