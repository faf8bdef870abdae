"""What `plumbline log` prints."""

from __future__ import annotations

from collections.abc import Mapping

from plumbline.text_layout import printable, wrapped
from plumbline.tracking.champions import ChampionRecord, Champions
from plumbline.tracking.registry import ALIAS


def render_log(history: Champions) -> str:
    """A paragraph per promotion, latest first."""
    lines = [f"models:/{history.model}@{ALIAS}: {len(history.promotions)} on record"]
    for each in history.promotions:
        before = f", before it version {each.from_version}" if each.from_version else ""
        now = "  ← champion" if each.version == history.champion and each is history.promotions[0] else ""
        lines += ["", f"{each.when}  {each.kind}: version {each.version}, {each.pair}{before}{now}"]
        lines += wrapped(f"    who   {each.who}", " " * 10)
        lines += wrapped(f"    why   {each.why}", " " * 10)
        lines += wrapped(f"    data  {_data(each)}", " " * 10)
        if each.figures:
            lines += wrapped(f"    gave  {_figures(each.figures)}", " " * 10)
    if history.remarks:
        lines += ["", *(line for remark in history.remarks for line in wrapped(f"note: {remark}", "      "))]
    if not history.promotions:
        lines.append("no champion yet: `plumbline run` makes the best choice of the deployed scheme one")
    return "\n".join(printable(line) for line in lines)


def _data(each: ChampionRecord) -> str:
    name, strategy = each.choice.get("name", "?"), each.choice.get("strategy", "?")
    counts = f"{each.data.get('samples', '?')} samples, {each.data.get('tokens', '?')} tokens"
    return f"{name} ({strategy}): {counts}, set {each.data.get('digest', '?')[:16]}"


def _figures(figures: Mapping[str, float]) -> str:
    parts = []
    if "kl_mean" in figures:
        parts.append(f"KL {figures['kl_mean']:.3g} nats per token")
    if {"perplexity_base", "perplexity_quantized"} <= figures.keys():
        parts.append(f"perplexity {figures['perplexity_quantized']:.4g} (base {figures['perplexity_base']:.4g})")
    if "top1_agreement" in figures:
        parts.append(f"top-1 agreement {figures['top1_agreement']:.1%}")
    if "weights_bytes" in figures:
        parts.append(f"{figures['weights_bytes']:,.0f} bytes")
    return ", ".join(parts)
