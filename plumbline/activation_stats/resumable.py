"""Collecting statistics layer by layer so that a run that was killed goes on where it was.

A part is written to disk as soon as it is complete, and before it the hidden states that the next layer reads. So a
later run repeats the layer in which the first one was killed, and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.layerwise import Collection
from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.store import JOINED, facts_of, tensors_of


def collect_pieces(collection: Collection, pieces: Pieces, scratch: Path, in_memory: int) -> None:
    """Write every part that is not on disk yet; `store.save_pieces` makes the artifact of them.

    Args:
        scratch: an existing folder for hidden states beyond `in_memory` bytes.
    """
    pieces.claim()
    if (pieces.folder / JOINED).exists():
        return  # all parts were complete, and may be used up
    names, rows = collection.names, range(len(collection.ordered))
    done = len(list(takewhile(lambda name: pieces.facts(name) is not None, names)))
    if 0 < done < len(names) and pieces.facts(states_after(names[done - 1])) is None:
        done = 0  # they were damaged
    if collection.progress is not None:
        collection.progress(done * sum(len(ids) for _, ids in collection.ordered))
    if done == len(names):
        return
    with HiddenStates(in_memory, scratch) as hidden:
        collection.begin(hidden)
        for row in rows if done else ():
            hidden[row] = pieces.tensor(states_after(names[done - 1]), str(row))
        for number, name in enumerate(names):
            if number < done:
                continue
            facts: dict[str, Any] = {}

            def tensors(name: str = name, last: bool = number + 1 == len(names), facts: Any = facts) -> Iterator[Any]:
                for part in collection.part(name, hidden):
                    yield from tensors_of(part)
                    add_facts(facts, facts_of(part))
                if not last:
                    pieces.write(states_after(name), ({str(row): hidden[row]} for row in rows), {})

            pieces.write(name, tensors(), facts)
            if number:
                pieces.remove(states_after(names[number - 1]))


def add_facts(facts: dict[str, Any], further: dict[str, Any]) -> None:
    """Add the sites of further statistics of the same samples, as `facts_of` has them."""
    sites = facts.get("sites", {}) | further["sites"]
    unreached = [*facts.get("unreached", []), *further["unreached"]]
    facts.update(further, sites=sites, unreached=unreached)


def states_after(part: str) -> str:
    """Name of the hidden states after a part."""
    return f"{part}.states"
