"""The summary that `plumbline run` prints: the table, the verdict, and where to look next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plumbline.artifact import read_json
from plumbline.distribution import CHECKOUT, in_checkout
from plumbline.graph.timings import seconds_of
from plumbline.params import load_params
from plumbline.quantized_model.coverage import LEAST_SHARE
from plumbline.quantized_model.kv_cache_words import served_with


def show(root: Path) -> None:
    """Print the table of choice × scheme, the verdict, and what to open and try next."""
    console = Console(highlight=False)
    console.print(_table(root))
    _show_verdict(console, root)
    for warning in _left_out(root):
        console.print(f"[bold]![/bold] {escape(warning)}")
    _show_champion(console, root)
    _show_what_to_look_at(console, root)


def _show_verdict(console: Console, root: Path) -> None:
    """Print the headline, what was found under the scheme that is deployed, and the others where the choice matters."""
    params = load_params(root)
    scheme = params.deployment.scheme
    verdict_file = read_json(root / "data" / "calibration_report" / "verdict.json")
    console.print(f"[bold]{escape(verdict_file['headline'])}[/bold]")
    verdict = Table.grid(padding=(0, 1))
    for sentence in (s for s in verdict_file["sentences"] if s.startswith(f"{scheme}:")):
        verdict.add_row("•", escape(sentence))
    for advice in verdict_file["advice"]:
        if advice["matters"] and advice["scheme"] != scheme:
            verdict.add_row("•", escape(advice["sentence"]))
    verdict.add_row("•", escape(verdict_file["caveat"]))
    if others := len(params.grid.schemes) - 1:
        shown = "the other scheme" if others == 1 else f"the other {others} schemes"
        verdict.add_row("•", f"all that was found on {shown} is in the report")
    console.print(verdict)


def _show_what_to_look_at(console: Console, root: Path) -> None:
    """Print the three things to look at, and what to do next."""
    params = load_params(root)
    pair, (choice, _) = next(iter(params.pairs().items()))
    decision = root / "data" / "deployed_model" / "promotion.json"
    has_champion = decision.is_file() and (read_json(decision)["decision"] == "promoted")
    model = f"models:/{params.tracking.registered_model}@champion" if has_champion else f"data/quantized_model/{pair}"
    own = (
        ""
        if root != CHECKOUT
        else "\n       plumbline init DIR --model MODEL --corpus PATH    your own model and texts"
    )
    console.print(
        f"""
[bold]Look at three things[/bold]{_activate(root)}
    1  data/calibration_report/report.html
         the report, in a browser
    2  plumbline show {choice}
         the samples; as a page: data/sample_page/{choice}/samples.html
    3  plumbline audit {model}
         from a model back to its documents
[bold]Next[/bold]   plumbline ui      the graph and its history, http://127.0.0.1:3000
       plumbline mlflow  every evaluation as a run, http://127.0.0.1:5000
       params.yaml       add a choice under calibrations:, its name under grid:{own}""",
        soft_wrap=True,
    )


def _show_champion(console: Console, root: Path) -> None:
    """Print which model won, where it lies, and how to load and serve it; nothing before the first decision."""
    path = root / "data" / "deployed_model" / "promotion.json"
    if not path.is_file():
        return
    decision = read_json(path)
    champion = decision if decision["decision"] == "promoted" else decision["champion_before"]
    if champion is None:
        console.print(f"\n[bold]Champion[/bold]  none: {escape(decision['why'])}", soft_wrap=True)
        return
    folder = f"data/quantized_model/{champion['pair']}"
    uri = f"models:/{load_params(root).tracking.registered_model}@champion"
    if decision["decision"] == "rejected":  # the folder may hold the candidate that was refused
        console.print(
            f"\n[bold]Champion[/bold]  {champion['pair']}, as before: {escape(decision['why'])}\n"
            f'[bold]Load[/bold]   mlflow.transformers.load_model("{uri}")',
            soft_wrap=True,
        )
        return
    console.print(
        f"""
[bold]Champion[/bold]  {champion["pair"]}, {uri}, in {folder}
[bold]Load[/bold]   from transformers import AutoModelForCausalLM, AutoTokenizer
       model = AutoModelForCausalLM.from_pretrained("{folder}")
       tokenizer = AutoTokenizer.from_pretrained("{folder}")
[bold]Serve[/bold]  vllm serve {folder}{served_with(root / folder)}""",
        soft_wrap=True,
    )


def _left_out(root: Path) -> list[str]:
    """A sentence per model that leaves much in full precision or is larger than the base model, with the reason."""
    lines = []
    for pair in load_params(root).pairs():
        row = read_json(root / f"data/evaluation/{pair}/metrics.json")
        if row["share"] < LEAST_SHARE:
            why = max(row["left"], key=row["left"].__getitem__)
            lines.append(f"{pair}: {100 * row['share']:.0f} % of its matrices are quantized; most of the rest: {why}")
        if row["weights_bytes"] > row["base_weights_bytes"]:
            megabytes = f"{row['weights_bytes'] / 1e6:.1f} MB, the base model {row['base_weights_bytes'] / 1e6:.1f} MB"
            lines.append(f"{pair} is larger than its base: {megabytes}")
    return lines


def _activate(root: Path) -> str:
    """How to activate the environment of `make demo`, which is not on the path."""
    return ", after: source .venv/bin/activate" if root == CHECKOUT and in_checkout() else ""


def _table(root: Path) -> Table:
    params = load_params(root)
    seconds = _seconds(list(params.pairs()))
    title = "Quantized model against base model, on held-out documents"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("scheme", "calibration"):  # long names wrap, so that no number is cut off
        table.add_column(column, overflow="fold")
    for column in ("KL", "ppl.", "top-1", "share", "bits", "MB", "s"):
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
                f"{row['perplexity_quantized']:.2f}",
                f"{100 * row['top1_agreement']:.1f} %",
                f"{100 * row['share']:.0f} %",
                f"{row['bits_per_weight']:.1f}",
                f"{row['weights_bytes'] / 1e6:.1f}",
                seconds.get(f"{calibration}-{scheme}", ""),
                end_section=index == len(rows) - 1,
            )
    table.caption = (
        f"KL: divergence from the base model, nats per token; ppl.: perplexity, the base model's is {base:.2f}; "
        "top-1: same next token; share: of the weights in matrices that are quantized, without embeddings, head, "
        "routers and towers; bits: per weight of the whole model; MB: weights on disk; s: seconds to quantize and "
        "evaluate"
    )
    table.caption_justify = "left"
    return table


SHOWN_SIZES = 4
"""Number of sizes that fit into 80 columns."""


def show_study(root: Path, name: str) -> None:
    """Print a study: the headline, a row per rule and control under every scheme, and the next step."""
    verdict = read_json(root / "data" / "study" / name / "verdict.json")
    console = Console(highlight=False)
    console.print(_table_of_study(verdict))
    advice = Table.grid(padding=(0, 1))
    for answer in (*verdict["recommendations"], *verdict["representativeness"]["by_scheme"]):
        advice.add_row("•", escape(answer["sentence"]))
    console.print(advice)
    console.print(
        f"""
[bold]Look[/bold]   data/study/{name}/study.html      every comparison with its interval, in a browser
       data/study/{name}/verdict.json    the same for machines
       plumbline mlflow    every rule × size × scheme as a run
[bold]Next[/bold]   {_next(verdict)}""",
        soft_wrap=True,
    )


def _table_of_study(verdict: Mapping[str, Any]) -> Table:
    sizes = verdict["sizes"]
    if len(sizes) > SHOWN_SIZES:  # evenly spaced, including both ends
        sizes = [sizes[round(i * (len(sizes) - 1) / (SHOWN_SIZES - 1))] for i in range(SHOWN_SIZES)]
    table = Table(
        title=escape(verdict["headline"]),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("scheme", "rule"):
        table.add_column(column, no_wrap=True)
    for n in sizes:
        table.add_column(f"n = {n}", justify="right", no_wrap=True)
    baseline = {(a["scheme"], a["n"]): a["kl_mean"] for a in verdict["arms"] if a["rule"] == verdict["baseline"]}
    cells = {(c["scheme"], c["rule"], c["n"]): _cell(c) for c in (*verdict["comparisons"], *verdict["controls"])}
    controls = list(dict.fromkeys(c["rule"] for c in verdict["controls"]))
    rivals = [rule for rule in verdict["rules"] if rule != verdict["baseline"]]
    for scheme in verdict["schemes"]:
        table.add_row(scheme, verdict["baseline"], *(f"KL {baseline[scheme, n]:#.3g}" for n in sizes))
        rows = [(rule, [cells.get((scheme, rule, n), "") for n in sizes]) for rule in (*rivals, *controls)]
        rows = [(rule, row) for rule, row in rows if any(row)]
        for index, (rule, row) in enumerate(rows):
            shown = f"[dim]({rule})[/dim]" if rule in controls else rule
            table.add_row("", shown, *row, end_section=index == len(rows) - 1)
    table.caption = (
        f"KL: mean divergence from the base model over {verdict['draws']} draws, nats per token; below it the "
        f"relative difference of each rule from {verdict['baseline']}. Bold: better or worse, corrected for all "
        "comparisons; (...): controls"
    )
    table.caption_justify = "left"
    return table


def _cell(c: Mapping[str, Any]) -> str:
    text = f"{100 * c['difference']:+.1f} %"
    return f"[bold]{text} {c['verdict']}[/bold]" if c["verdict"] in ("better", "worse") else text


def _next(verdict: Mapping[str, Any]) -> str:
    """The next step that the result suggests."""
    advised = next((one for one in verdict["recommendations"] if one["rules"]), None)  # what was just printed
    if advised:
        strategy = f"strategy: {verdict['rules'][advised['rules'][0]]['strategy']}, n: {advised['n']}"
        return f"params.yaml    a choice with {strategy} under calibrations:, its name under grid:"
    draws = [c["draws_needed"] for c in verdict["comparisons"] if c["draws_needed"] is not None]
    if draws and min(draws) <= 20 * verdict["draws"]:
        return (
            f"params.yaml    draws: {min(draws)} would settle the first open comparison, if it is as large as it looks"
        )
    return f"keep {verdict['baseline']}; more texts to evaluate on (tokens_per_domain) would show smaller differences"


def _seconds(pairs: list[str]) -> dict[str, str]:
    """Seconds to quantize and to evaluate each pair, from Dagster's history."""
    from plumbline.graph.instance import instance

    seconds: dict[str, str] = {}
    with instance() as history:
        for pair in pairs:
            parts = [seconds_of(history, asset, pair) for asset in ("quantized_model", "evaluation")]
            durations = [part for part in parts if part is not None]
            if len(durations) == len(parts):
                seconds[pair] = f"{sum(durations):.1f}"
    return seconds
