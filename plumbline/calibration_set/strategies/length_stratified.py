"""Stratified sampling by length: the set has the requested lengths by construction."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from plumbline.calibration_set.methods.quotas import apportion, fill
from plumbline.calibration_set.strategies.base import Piece, Pool, Selection, sample_id


def _ascending(edges: tuple[int, ...]) -> tuple[int, ...]:
    if list(edges) != sorted(set(edges)):
        raise ValueError("must ascend without repeats, e.g. [64, 128, 256]")
    return edges


Edges = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1), AfterValidator(_ascending)]


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    buckets: Edges = (64, 128, 256, 512, 1024, 2048),
    quotas: Literal["proportional", "equal"] = "proportional",
) -> Selection:
    """Choose at random within buckets of length.

    Options:
        buckets: length of the longest sample of each bucket, in tokens, ascending. A longer sample is not dropped: a
            window of the last length is cut from it at a seeded offset, after its leading special tokens, as a new
            sample of the same document.
        quotas: `proportional` to the pool (the set has its length mix), or `equal` for every bucket (short and long
            samples count alike). Neighbours fill a bucket with too few samples, nearest first; notes and reasons list
            the fills.

    Optimises: the variance of what depends on length, against a random draw of the same size.
    Cost: O(N log N); reads token ids only of chosen samples that need a window, and no embeddings.
    Source: stratified sampling with proportional (Bowley) or equal allocation; mixing lengths for calibration: MaCa,
    arXiv 2602.07465.
    """
    edges = np.array(buckets, dtype=np.int64)
    lengths = pool.lengths
    bucket_of = np.searchsorted(edges, np.minimum(lengths, edges[-1]))
    rank = rng.permutation(len(pool))  # all random numbers, drawn once: the order of samples, and the offset of windows
    offset = rng.random(len(pool))
    usable = np.ones(len(pool), dtype=bool)
    while True:
        available = np.bincount(bucket_of[usable], minlength=len(edges))
        quota = apportion(available, min(n, int(usable.sum())), quotas)
        lent = fill(available, quota)
        rows, fills = _draw(bucket_of, rank, usable, available, quota, lent)
        windows, blocked = _windows(pool, rows, int(edges[-1]), offset)
        if not blocked:
            break
        usable[blocked] = False  # each of their windows repeats a sample of the set: choose other samples
    names = [f"{low + 1}-{high}" for low, high in zip([0, *buckets[:-1]], buckets, strict=True)]
    reasons: list[dict[str, Any]] = []
    for position, row in enumerate(rows):
        reason: dict[str, Any] = {"bucket": names[bucket_of[row]]}
        if row in fills:
            reason["fills"] = names[fills[row]]
        if position in windows:
            reason["window"] = [windows[position][-1].start, windows[position][-1].stop]
            reason["of_tokens"] = int(lengths[row])
        reasons.append(reason)
    chosen = np.bincount(bucket_of[rows], minlength=len(edges))
    table = zip(names, available.tolist(), quota.tolist(), chosen.tolist(), strict=True)
    notes = {
        "buckets": [dict(zip(("tokens", "pool", "quota", "chosen"), line, strict=True)) for line in table],
        "fills": [{"short": names[a], "from": names[b], "samples": count} for (a, b), count in lent.items()],
        "windowed": len(windows),
    }
    return Selection(rows, reasons, windows, notes=notes)


def _draw(
    bucket_of: NDArray[np.int64],
    rank: NDArray[np.int64],
    usable: NDArray[np.bool_],
    available: NDArray[np.int64],
    quota: NDArray[np.int64],
    lent: dict[tuple[int, int], int],
) -> tuple[NDArray[np.int64], dict[int, int]]:
    """The chosen rows in order of rank, and the bucket that a row fills if that is not its own."""
    chosen: list[int] = []
    fills: dict[int, int] = {}
    for bucket in range(len(quota)):
        members = np.flatnonzero(usable & (bucket_of == bucket))
        members = members[np.argsort(rank[members])]
        taken = int(min(quota[bucket], available[bucket]))
        chosen.extend(members[:taken].tolist())
        for (short, giver), count in lent.items():
            if giver == bucket:
                borrowed = members[taken : taken + count].tolist()
                chosen.extend(borrowed)
                fills.update(dict.fromkeys(borrowed, short))
                taken += count
    rows = np.array(chosen, dtype=np.int64)
    return rows[np.argsort(rank[rows])], fills


def _windows(
    pool: Pool, rows: NDArray[np.int64], largest: int, offset: NDArray[np.float64]
) -> tuple[dict[int, tuple[Piece, ...]], list[int]]:
    """A window for every chosen sample over `largest` tokens, by position, and the rows without a distinct window.

    If a window repeats another sample (two documents with the same licence text), the next offset is tried.
    """
    lengths = pool.lengths
    long = [position for position, row in enumerate(rows) if lengths[row] > largest]
    if not long:
        return {}, []
    special = pool.table["n_special"].to_numpy()
    names = pool.names(rows)
    taken = {name for position, name in enumerate(names) if lengths[rows[position]] <= largest}
    windows: dict[int, tuple[Piece, ...]] = {}
    blocked: list[int] = []
    for position, input_ids in zip(long, pool.input_ids(rows[long]), strict=True):
        keep = min(pool.special_prefix, int(special[rows[position]]), largest - 1)
        starts = len(input_ids) - largest + 1
        first = int(offset[rows[position]] * starts)
        for step in range(starts):
            start = keep + (first + step) % starts
            stop = start + largest - keep
            name = sample_id(np.concatenate([input_ids[:keep], input_ids[start:stop]]))
            if name not in taken:
                taken.add(name)
                row = int(rows[position])
                windows[position] = (*([Piece(row, 0, keep)] if keep else []), Piece(row, start, stop))
                break
        else:
            blocked.append(int(rows[position]))
    return windows, blocked
