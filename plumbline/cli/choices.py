"""`plumbline strategies` and `schemes`: the strategies and schemes that params.yaml can use."""

from __future__ import annotations

import click

from plumbline.workspace import workspace_root


@click.command()
@click.argument("name", required=False)
def strategies(name: str | None) -> None:
    """List the strategies for choosing a calibration set; with a NAME, describe one and its options.

    \b
    Example: plumbline strategies embedding_cluster
    """
    from inspect import getdoc

    import yaml

    from plumbline.calibration_set.strategies import get, names

    if name is None:
        for strategy_name in names():
            strategy = get(strategy_name)
            first = (getdoc(strategy.select) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")
            click.echo(
                f"{strategy_name:20} {first}{'' if strategy.package == 'plumbline' else f' ({strategy.package})'}"
            )
        click.echo("\nplumbline strategies NAME   description, options, cost and source of one")
        return
    try:
        strategy = get(name)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    defaults = strategy.options.model_construct().model_dump(mode="json", warnings=False)
    entry = {f"{name.replace('_', '-')}-64": {"strategy": name, "n": 64, "seed": 0, **defaults}}
    click.echo(yaml.safe_dump(entry, default_flow_style=None, sort_keys=False, width=100))
    click.echo(getdoc(strategy.select) or f"(package {strategy.package} has no description)")


@click.command()
@click.argument("name", required=False)
def schemes(name: str | None) -> None:
    """List the quantization schemes of params.yaml and their fields; with a NAME, show one in full.

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


COMMANDS = (strategies, schemes)
