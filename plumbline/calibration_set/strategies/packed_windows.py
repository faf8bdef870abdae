"""Documents joined and cut into full-length windows: the default of GPTQ-style code, here as a baseline."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from plumbline.calibration_set.strategies.base import Piece, Pool, Selection, sample_id


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    length: Annotated[int, Field(ge=2)] | None = None,
    order: Literal["random", "stream"] = "random",
    special_tokens: Literal["per_document", "per_window"] = "per_document",
) -> Selection:
    """Join the pool's documents and take the first n windows of `length` tokens. A baseline.

    Every window is full and unpadded. So only one length is calibrated, windows begin and end in mid-sentence, and
    tokens attend to unrelated documents. Other strategies are compared with this common practice.

    Options:
        length: tokens per window; null: the length of the pool's longest sample.
        order: of the documents: `random` (seeded) or as in the `stream` of the corpus. The samples of a document stay
            together, in their order.
        special_tokens: where the special tokens before a text (beginning-of-sequence) go: to the start of each document
            (`per_document`, as packing scripts do; most windows then begin without them), or to the start of each
            window only (`per_window`, as if the tokenizer encoded the window's text). A sample that continues the
            document of the sample before it never contributes them.

    Optimises: nothing; with a random order each token of the pool is about equally likely.
    Cost: O(N log N); reads token ids of the windows taken. A window that repeats one of the set is skipped; if the pool
    has too few windows, the set has fewer than n.
    Source: the data loaders of GPTQ (Frantar et al. 2023, arXiv 2210.17323) and `group_texts` of Hugging Face's
    examples; what it does to the Hessian: MaCa, arXiv 2602.07465.
    """
    length = int(pool.lengths.max()) if length is None else length
    if length <= pool.special_prefix:
        raise ValueError(
            f"packed_windows: found `length: {length}`, expected more than the {pool.special_prefix} special tokens "
            f"that a text begins with; raise it in params.yaml, calibrations"
        )
    prefix = np.minimum(pool.special_prefix, pool.table["n_special"].to_numpy()).astype(np.int64)
    rows, goes_on = _order(pool, rng, order)
    windows = _windows(
        pool,
        rows,
        np.where(goes_on | (special_tokens == "per_window"), prefix[rows], 0),
        length,
        prefix if special_tokens == "per_window" else np.zeros_like(prefix),
    )
    taken, read = _distinct(pool, windows, n)
    notes = {
        "baseline": "documents joined and cut into full-length windows",
        "length": length,
        "repeated": read - len(taken),
    }
    return Selection(
        np.array([parts[0].row for parts in taken.values()], dtype=np.int64),
        [{"window": number, "samples": len({piece.row for piece in parts})} for number, parts in taken.items()],
        dict(enumerate(taken.values())),
        notes=notes,
    )


def _distinct(pool: Pool, windows: Iterator[tuple[Piece, ...]], n: int) -> tuple[dict[int, tuple[Piece, ...]], int]:
    """The first n windows with different tokens, by their number in the stream, and how many windows were read."""
    taken: dict[int, tuple[Piece, ...]] = {}
    names: set[str] = set()
    read = 0
    while len(taken) < n and (batch := list(islice(windows, n - len(taken)))):
        for number, (parts, tokens) in enumerate(zip(batch, _tokens(pool, batch), strict=True), start=read):
            if (name := sample_id(tokens)) not in names:
                names.add(name)
                taken[number] = parts
        read += len(batch)
    return taken, read


def _order(pool: Pool, rng: np.random.Generator, order: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The pool's rows in the order in which they are joined, and which continue the document of the row before."""
    documents = pc.rank(pool.table["doc_id"], tiebreaker="dense").to_numpy().astype(np.int64) - 1
    if order == "random":
        rows = np.lexsort((pool.stream, rng.permutation(int(documents.max()) + 1)[documents]))
    else:
        rows = np.argsort(pool.stream)
    return rows.astype(np.int64), np.diff(documents[rows], prepend=-1) == 0


def _windows(
    pool: Pool, rows: NDArray[np.int64], starts: NDArray[np.int64], length: int, heads: NDArray[np.int64]
) -> Iterator[tuple[Piece, ...]]:
    """Yield the windows in order; the incomplete rest at the end is not used.

    Args:
        rows, starts: the rows in order, and the first token that each contributes.
        heads: per row of the pool, the number of its first tokens that go before a window that begins in it.
    """
    lengths = pool.lengths
    parts: list[Piece] = []
    lacking = length
    for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
        while start < lengths[row]:
            if not parts and heads[row]:
                parts.append(Piece(row, 0, int(heads[row])))
                lacking -= int(heads[row])
            stop = min(start + lacking, int(lengths[row]))
            parts.append(Piece(row, start, stop))
            lacking -= stop - start
            start = stop
            if not lacking:
                yield tuple(parts)
                parts, lacking = [], length


def _tokens(pool: Pool, windows: list[tuple[Piece, ...]]) -> Iterator[NDArray[np.int32]]:
    rows = list(dict.fromkeys(piece.row for parts in windows for piece in parts))
    tokens_of = dict(zip(rows, pool.input_ids(rows), strict=True))
    for parts in windows:
        yield np.concatenate([tokens_of[piece.row][piece.start : piece.stop] for piece in parts])
