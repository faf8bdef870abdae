"""What `plumbline run` ends with: the table, the verdict, and where to look next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from assets.artifact import read_json
from orchestration.params import load_params


def show(root: Path) -> None:
    """Print choice × scheme with its figures, the verdict, then what to open and what to try."""
    console = Console(highlight=False)
    console.print(_table(root))
    scheme = load_params(root).deployment.scheme
    verdict_file = read_json(root / "data" / "calibration_report" / "verdict.json")
    verdict = Table.grid(padding=(0, 1))
    for sentence in (s for s in verdict_file["sentences"] if s.startswith(f"{scheme}:")):
        verdict.add_row("•", sentence)
    verdict.add_row("•", verdict_file["caveat"])
    verdict.add_row("•", f"the verdict on the other {len(load_params(root).grid.schemes) - 1} schemes is in the report")
    console.print(verdict)
    first = next(iter(load_params(root).pairs()))
    console.print(
        f"""
[bold]Look[/bold]   data/calibration_report/report.html    the report, in a browser
       make ui        the graph and its history, http://127.0.0.1:3000
       make mlflow    every evaluation as a run, http://127.0.0.1:5000
[bold]Try[/bold]    source .venv/bin/activate
       plumbline audit data/quantized_model/{first}
                      from a model back to the documents that calibrated it
       params.yaml    add a choice under calibrations: and its name under grid:
       inbox/         drop texts of your own there; then make demo again"""
    )


def _table(root: Path) -> Table:
    params = load_params(root)
    seconds = _seconds(list(params.pairs()))
    table = Table(
        title="Quantized model against base model, on documents that no choice has seen", title_justify="left"
    )
    for column in ("scheme", "calibration"):
        table.add_column(column, no_wrap=True)
    for column in ("KL", "perplexity", "top-1", "MB", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    base = 0.0
    for scheme in params.grid.schemes:
        rows = [(c, read_json(root / f"data/evaluation/{c}-{scheme}/metrics.json")) for c in params.grid.calibrations]
        best = min(row["kl_mean"] for _, row in rows)
        for index, (calibration, row) in enumerate(rows):
            base, kl = row["perplexity_base"], f"{row['kl_mean']:.5f}"
            table.add_row(
                scheme if index == 0 else "",
                calibration,
                f"[bold]{kl}[/bold]" if row["kl_mean"] == best else kl,
                f"{row['perplexity_quantized']:.3f}",
                f"{100 * row['top1_agreement']:.1f} %",
                f"{row['weights_bytes'] / 1e6:.1f}",
                seconds.get(f"{calibration}-{scheme}", ""),
                end_section=index == len(rows) - 1,
            )
    table.caption = (
        f"KL: divergence from the base model, nats per token; the base model's perplexity is {base:.3f}; "
        "top-1: same next token; MB: weights on disk; seconds: to quantize and evaluate"
    )
    table.caption_justify = "left"
    return table


def show_study(root: Path, name: str) -> None:
    """Print a study: the verdict, a row per comparison, and where the page is."""
    found = read_json(root / "data" / "study" / name / "verdict.json")
    console = Console(highlight=False)
    spread = {(arm["scheme"], arm["n"], arm["rule"]): arm["kl_sd"] / arm["kl_mean"] for arm in found["arms"]}
    table = Table(
        title=found["headline"], title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in ("scheme", "n", "rule"):
        table.add_column(column, no_wrap=True)
    for column in ("KL", "spread", "change", "interval, %", "verdict"):
        table.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for c in found["comparisons"]:
        pair = [(found["baseline"], c["kl_mean_baseline"]), (c["rule"], c["kl_mean"])]
        for rule, kl in pair:
            rival = rule == c["rule"]
            table.add_row(
                "" if rival else c["scheme"],
                "" if rival else str(c["n"]),
                rule,
                f"{kl:#.3g}",
                f"{100 * spread[c['scheme'], c['n'], rule]:.1f} %",
                f"{100 * c['difference']:+.1f} %" if rival else "",
                f"{100 * c['low']:+.1f} to {100 * c['high']:+.1f}" if rival and c["low"] is not None else "",
                _VERDICTS.get(c["verdict"], c["verdict"]) if rival else "",
                end_section=rival,
            )
    table.caption = (
        f"KL: mean divergence from the base model over {found['draws']} draws, nats per token; spread: standard "
        f"deviation from draw to draw; interval: {100 * found['confidence']:g} %, over draws and documents"
    )
    table.caption_justify = "left"
    console.print(table)
    console.print(f"\n[bold]Look[/bold]   data/study/{name}/study.html", soft_wrap=True)


_VERDICTS = {"no difference detected": "none seen"}


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
