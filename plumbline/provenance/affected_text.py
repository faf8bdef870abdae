"""Text of `plumbline affected`."""

from __future__ import annotations

from plumbline.provenance.affected import Affected, AffectedVersion
from plumbline.text_layout import printable, wrapped

FIRST = 5


def render_affected(result: Affected) -> str:
    """Format the result: places in the corpus, sets, models with their registered versions, and the verdict."""
    lines = [f"affected by {result.what}", *(f"  {place}" for place in result.corpus[:FIRST])]
    if len(result.corpus) > FIRST:
        lines.append(f"  and {len(result.corpus) - FIRST} more rows of the corpus")
    if not result.corpus:
        lines.append("  not in the corpus as it is now")
    if result.sets:
        lines += ["", "calibration sets", *(_line(version) for version in result.sets)]
    if result.models:
        lines += ["", "models", *(_line(version) for version in result.models)]
    if result.unknown:
        lines += ["", "cannot be ruled out", *(f"  {name}" for name in result.unknown)]
    return "\n".join(printable(line) for line in [*lines, "", *wrapped(_verdict(result), "  ")])


def _line(version: AffectedVersion) -> str:
    name = version.name if version.now else f"{version.name} (earlier version {version.md5[:8]})"
    tokens = f", {version.tokens:,} tokens" if version.tokens else ""
    deployed = f"  {', '.join(version.deployed)}" if version.deployed else ""
    return f"  {name}: {version.samples} of {version.of} samples{tokens}{deployed}"


def _verdict(result: Affected) -> str:
    if not result.touched:
        return "NONE: no calibration set and no model has a sample of it."
    text = f"TOUCHED: {len(result.sets)} calibration sets, {len(result.models)} models"
    deployed = f"; deployed: {', '.join(result.deployments)}" if result.deployments else "; none of them deployed"
    return (
        f"{text}{deployed}. Remove it from its source and `plumbline run` to make the models without it, then "
        "`plumbline promote` one of them."
    )
