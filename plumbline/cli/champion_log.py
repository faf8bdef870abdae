"""Text of `plumbline log`."""

from __future__ import annotations

from collections.abc import Mapping

from plumbline.text_layout import printable, wrapped
from plumbline.tracking.champions import ChampionRecord, Champions
from plumbline.tracking.registry import ALIAS


def render_log(history: Champions) -> str:
    """Format the history: a paragraph per promotion, latest first."""
    lines = [f"models:/{history.model}@{ALIAS}: {len(history.promotions)} on record"]
    for promotion in history.promotions:
        previous = f", previously version {promotion.from_version}" if promotion.from_version else ""
        is_champion = promotion.version == history.champion and promotion is history.promotions[0]
        mark = "  ← champion" if is_champion else ""
        lines += [
            "",
            f"{promotion.when}  {promotion.kind}: version {promotion.version}, {promotion.pair}{previous}{mark}",
        ]
        lines += wrapped(f"    who   {promotion.who}", " " * 10)
        lines += wrapped(f"    why   {promotion.why}", " " * 10)
        lines += wrapped(f"    data  {_data(promotion)}", " " * 10)
        if promotion.figures:
            lines += wrapped(f"    gave  {_figures(promotion.figures)}", " " * 10)
    if history.remarks:
        lines += ["", *(line for remark in history.remarks for line in wrapped(f"note: {remark}", "      "))]
    if not history.promotions:
        lines.append("no champion yet: `plumbline run` makes the best choice of the deployed scheme one")
    return "\n".join(printable(line) for line in lines)


def _data(promotion: ChampionRecord) -> str:
    name, strategy = promotion.choice.get("name", "?"), promotion.choice.get("strategy", "?")
    counts = f"{promotion.data.get('samples', '?')} samples, {promotion.data.get('tokens', '?')} tokens"
    return f"{name} ({strategy}): {counts}, set {promotion.data.get('digest', '?')[:16]}"


def _figures(figures: Mapping[str, float]) -> str:
    parts = []
    if "kl_mean" in figures:
        parts.append(f"KL {figures['kl_mean']:.3g} nats per token")
    if {"perplexity_base", "perplexity_quantized"} <= figures.keys():
        parts.append(f"perplexity {figures['perplexity_quantized']:.4g} (base {figures['perplexity_base']:.4g})")
    if "top1_agreement" in figures:
        parts.append(f"top-1 agreement {100 * figures['top1_agreement']:.1f} %")
    if "weights_bytes" in figures:
        parts.append(f"{figures['weights_bytes']:,.0f} bytes")
    return ", ".join(parts)
