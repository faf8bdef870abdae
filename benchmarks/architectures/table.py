"""The table of architectures and schemes, and the reasons below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.architectures.cells import Cell
from tests.architectures.expected import LAYERWISE, LEAST_SHARE

WORDS = {"equal": "=", "refused": "refused", "fault": "fault"}
REASON = 160
"""Characters of a reason that are shown."""


def head(schemes: Sequence[str]) -> list[str]:
    """The first two lines."""
    columns = ["architecture", "share", LAYERWISE, *schemes]
    return [f"| {' | '.join(columns)} |", "|---|---:" + "|---" * (len(schemes) + 1) + "|"]


def row(name: str, cells: Mapping[str, Cell], schemes: Sequence[str]) -> str:
    """A line: the least share of weights under any scheme, then what became of each; `=` is equal bit for bit."""
    shares = [cell.share for cell in cells.values() if cell.share is not None]
    share = f"{min(shares):.3f}" if shares else "–"
    return f"| {' | '.join([name, share, *(WORDS[cells[scheme].outcome] for scheme in (LAYERWISE, *schemes))])} |"


def reasons(table: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    """A line per architecture and reason of a refusal or a fault, with the schemes that have it."""
    lines = []
    for name, cells in table.items():
        schemes: dict[str, list[str]] = {}
        for scheme, cell in cells.items():
            if cell.reason:
                reason = " ".join(cell.reason.split())
                schemes.setdefault(f"{cell.outcome}: {reason[:REASON]}", []).append(scheme)
        lines += [f"{name} ({', '.join(names)}) {reason}" for reason, names in schemes.items()]
    return lines


def totals(table: Mapping[str, Mapping[str, Cell]]) -> str:
    """How many cells have which outcome, and how many of the equal ones left weights out."""
    cells = [cell for entries in table.values() for cell in entries.values()]
    count = {word: sum(cell.outcome == word for cell in cells) for word in WORDS}
    short = sum(cell.outcome == "equal" and cell.share is not None and cell.share < LEAST_SHARE for cell in cells)
    return (
        f"{len(table)} architectures, {len(cells)} cells: {count['equal']} equal ({short} of them with a share below "
        f"{LEAST_SHARE}), {count['refused']} refused, {count['fault']} faults"
    )
