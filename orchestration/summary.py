"""What `plumbline run` ends with: the table, the verdict, and where to look next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from assets.artifact import read_json
from orchestration.params import load_params


def show(root: Path) -> None:
    """Print choice × scheme with its figures, then what to open and what to try."""
    console = Console(highlight=False, soft_wrap=False)
    console.print(_table(root))
    verdict = read_json(root / "data" / "calibration_report" / "verdict.json")
    for sentence in verdict["sentences"]:
        console.print(f"• {sentence}")
    first = next(iter(load_params(root).pairs()))
    console.print(
        f"""
[bold]Look[/bold]   the report       data/calibration_report/report.html
       the graph        make ui       then http://127.0.0.1:3000
       the runs         make mlflow   then http://127.0.0.1:5000
[bold]Try[/bold]    where a model came from     plumbline audit data/quantized_model/{first}
       another choice              a line under calibrations: and its name under grid: in params.yaml, make demo
       your own texts              drop files into inbox/, make demo
(plumbline is in .venv/bin: source .venv/bin/activate)"""
    )


def _table(root: Path) -> Table:
    params = load_params(root)
    seconds = _seconds(list(params.pairs()))
    table = Table(title="Held-out documents, quantized model against base model", title_justify="left", min_width=80)
    table.add_column("scheme")
    table.add_column("calibration")
    for column in ("KL, nats/token", "perplexity", "(base)", "top-1", "size, MB", "seconds"):
        table.add_column(column, justify="right")
    for scheme in params.grid.schemes:
        rows = [(c, read_json(root / f"data/evaluation/{c}-{scheme}/metrics.json")) for c in params.grid.calibrations]
        best = min(row["kl_mean"] for _, row in rows)
        for index, (calibration, row) in enumerate(rows):
            kl = f"{row['kl_mean']:.5f}"
            table.add_row(
                scheme if index == 0 else "",
                calibration,
                f"[bold]{kl}[/bold]" if row["kl_mean"] == best else kl,
                f"{row['perplexity_quantized']:.3f}",
                f"{row['perplexity_base']:.3f}",
                f"{100 * row['top1_agreement']:.1f} %",
                f"{row['weights_bytes'] / 1e6:.1f}",
                seconds.get(f"{calibration}-{scheme}", ""),
                end_section=index == len(rows) - 1,
            )
    return table


def _seconds(pairs: list[str]) -> dict[str, str]:
    """Seconds to quantize and to evaluate each pair, as Dagster's history has them."""
    import dagster as dg

    from orchestration.workspace import instance

    found: dict[str, str] = {}
    with instance() as history:
        for pair in pairs:
            total: Any = 0.0
            for asset in ("quantized_model", "evaluation"):
                record = history.get_latest_data_version_record(dg.AssetKey(asset), partition_key=pair)
                event = record.event_log_entry.asset_materialization if record else None
                value = event.metadata.get("seconds") if event else None
                total = total + value.value if value is not None and total is not None else None
            if total is not None:
                found[pair] = f"{total:.1f}"
    return found
