"""What a document touched, on one screen."""

from __future__ import annotations

from plumbline.provenance.affected import Affected, Touched
from plumbline.text_layout import printable, wrapped

FIRST = 5


def render_affected(found: Affected) -> str:
    """Where it stands, the sets, the models with their registered versions, then the verdict and what to do."""
    lines = [f"affected by {found.what}", *(f"  {place}" for place in found.corpus[:FIRST])]
    if len(found.corpus) > FIRST:
        lines.append(f"  and {len(found.corpus) - FIRST} more rows of the corpus")
    if not found.corpus:
        lines.append("  not in the corpus as it is now")
    if found.sets:
        lines += ["", "calibration sets", *(_line(each) for each in found.sets)]
    if found.models:
        lines += ["", "models", *(_line(each) for each in found.models)]
    if found.unknown:
        lines += ["", "cannot be ruled out", *(f"  {what}" for what in found.unknown)]
    return "\n".join(printable(line) for line in [*lines, "", *wrapped(_verdict(found), "  ")])


def _line(each: Touched) -> str:
    name = each.name if each.now else f"{each.name} (earlier version {each.md5[:8]})"
    tokens = f", {each.tokens:,} tokens" if each.tokens else ""
    deployed = f"  {', '.join(each.deployed)}" if each.deployed else ""
    return f"  {name}: {each.samples} of {each.of} samples{tokens}{deployed}"


def _verdict(found: Affected) -> str:
    if not found.touched:
        return "NONE: no calibration set and no model has a sample of it."
    text = f"TOUCHED: {len(found.sets)} calibration sets, {len(found.models)} models"
    deployed = f"; deployed: {', '.join(found.deployments)}" if found.deployments else "; none of them deployed"
    return (
        f"{text}{deployed}. Take it out of its source, `plumbline run`, and the models are made without it; "
        "`plumbline promote` puts one in place."
    )
