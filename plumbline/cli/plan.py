"""`plumbline plan`: what a scheme would quantize of a model, before any weight is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.params import Params
    from plumbline.quantized_model.plan import SchemePlan

CONFIG = "config.json"


@click.command()
@click.argument("model", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--scheme", "names", multiple=True, metavar="NAME", help="A scheme of params.yaml (repeatable).")
def plan(model: Path | None, names: tuple[str, ...]) -> None:
    """What a scheme would quantize of MODEL: weights by kind, bits per weight, size, and what is left out and why.

    MODEL is a folder with a config.json, or that file; weights are not read. Without it, the model of params.yaml.
    Without --scheme, the schemes of the grid.

    \b
    Example: plumbline plan --scheme w4a16-gptq
    """
    from plumbline.params import load_params

    root = workspace_root()
    try:
        params = load_params(root)
        for name in names or params.grid.schemes:
            if name not in params.schemes:
                raise ValueError(f"no scheme {name!r} in params.yaml; there: {', '.join(params.schemes)}")
        lines = _lines(_checkpoint(model, params, root), params, names or tuple(params.grid.schemes))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(lines))


def _checkpoint(model: Path | None, params: Params, root: Path) -> BaseCheckpoint:
    from plumbline.artifact import read_json
    from plumbline.base_model.checkpoint import BaseCheckpoint

    if model is None:
        return BaseCheckpoint.of(params.model, root)
    if model.is_file() and model.name != CONFIG:
        raise ValueError(f"{model}: expected a folder, or a file named {CONFIG}")
    folder = model.parent if model.is_file() else model
    is_quantized = (folder / CONFIG).is_file() and "quantization_config" in read_json(folder / CONFIG)
    changes = {"name": str(folder.resolve()), "revision": None, "dequantize": is_quantized}
    return BaseCheckpoint.of(params.model.model_copy(update=changes), root)


def _lines(base: BaseCheckpoint, params: Params, names: tuple[str, ...]) -> list[str]:
    from plumbline.artifact import read_json
    from plumbline.base_model.architecture import stored_dtype
    from plumbline.quantized_model.plan import plan_of

    config = read_json(base.folder / CONFIG)
    model, dtype = base.skeleton(), stored_dtype(config)
    lines = [f"{base.name}: {type(model).__name__}, {str(dtype).removeprefix('torch.')}"]
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "quantized")
        lines.append(f"The checkpoint itself is {method}; sizes are those of its weights in full precision.")
    for name in names:
        try:
            lines += ["", *table(name, plan_of(model, params.schemes[name], dtype))]
        except ValueError as error:
            lines += ["", f"{name}: refused: {error}"]
    return lines


def table(name: str, plan: SchemePlan) -> list[str]:
    """Lines that show a plan."""
    lines = [
        f"{name}: {_share(plan.quantized, plan.weights)} of {_weights(plan.weights)} weights quantized, "
        f"{plan.bits_per_weight:.2f} bits per weight, {_size(plan.bytes)} (base {_size(plan.base_bytes)})",
        f"  {'kind':16}{'weights':>10}{'of all':>9}{'quantized':>11}{'size':>11}{'base':>11}",
    ]
    lines += [
        f"  {row.kind:16}{_weights(row.weights):>10}{_share(row.weights, plan.weights):>9}"
        f"{_share(row.quantized, row.weights):>11}{_size(row.bytes):>11}{_size(row.base_bytes):>11}"
        for row in plan.kinds
    ]
    sizes = sorted(plan.group_sizes.items(), key=lambda item: -item[1])
    grouped = [f"{'one scale per channel' if size is None else size}: {count}" for size, count in sizes]
    lines.append(f"  matrices by group size: {', '.join(grouped)}")
    lines += ["  in full precision:"]
    lines += [
        f"    {_weights(entry.weights):>8} in {entry.tensors} tensors: {entry.reason} ({entry.example})"
        for entry in plan.full_precision
    ]
    return lines


def _weights(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return str(count)


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} B"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


COMMANDS = (plan,)
