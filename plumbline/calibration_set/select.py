"""Build a calibration set: read the pool, let the strategy choose, check and write the samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plumbline.artifact import canonical_json
from plumbline.calibration_set.reader import SCHEMA, set_digest
from plumbline.calibration_set.strategies import Strategy
from plumbline.calibration_set.strategies.base import Pool, Selection, generator, sample_id
from plumbline.tokenized_samples.assistant import Spans, joined_spans

_CORE = ("name", "strategy", "n", "seed", "domains", "allow_fewer")
WRITTEN = "written by the base model"
"""Domain and source of a sample that no document holds."""


def choose(pool: Pool, strategy: Strategy, choice: Mapping[str, Any], whole: int) -> Selection:
    """Let a strategy choose from the pool, and check its selection.

    Args:
        choice: the content of `choice.json`.
        whole: samples of the pool before any filter, for the error message.
    """
    n = _size(choice, pool, whole)
    options = strategy.options.model_validate({key: value for key, value in choice.items() if key not in _CORE})
    keywords = {field: getattr(options, field) for field in type(options).model_fields}
    selection = strategy.select(pool, n, generator(choice["seed"], choice["strategy"]), **keywords)
    _check(selection, pool, n, choice, strategy)
    return selection


def _size(choice: Mapping[str, Any], pool: Pool, whole: int) -> int:
    """The number of samples to request: n, or with `allow_fewer` at most the size of the pool."""
    if not len(pool) or (len(pool) < choice["n"] and not choice["allow_fewer"]):
        among = "" if choice["domains"] is None else f", {len(pool)} of them in domains {', '.join(choice['domains'])}"
        raise ValueError(_too_few(choice, len(pool), f"the pool has {whole} samples{among}"))
    return int(min(choice["n"], len(pool)))


def _too_few(choice: Mapping[str, Any], count: int, why: str) -> str:
    fix = f"lower n to {count}, add documents, or set `allow_fewer: true`" if count else "add documents"
    where = f"params.yaml, calibrations: {choice['name']}"
    return f"{where}: asked for n = {choice['n']} samples, found {count} ({why}); {fix}"


def _check(selection: Selection, pool: Pool, n: int, choice: Mapping[str, Any], strategy: Strategy) -> None:
    """Check the contract of a strategy, so that a faulty one of another package cannot write a wrong set."""
    rows = np.asarray(selection.indices)
    blame = f"strategy {choice['strategy']} of package {strategy.package}"
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer) or len(rows) != len(selection.reasons):
        raise ValueError(
            f"{blame}: expected one-dimensional integer indices with one reason each, found {rows.dtype} "
            f"{rows.shape} and {len(selection.reasons)} reasons; correct the strategy"
        )
    ours = np.ones(len(rows), dtype=bool)
    ours[list(selection.written)] = False
    lengths = pool.lengths
    cut = [piece for parts in selection.pieces.values() for piece in parts]
    touched = np.concatenate([rows[ours], [piece.row for piece in cut]]).astype(np.int64)
    if len(touched) and (touched.min() < 0 or touched.max() >= len(pool)):
        span = f"{touched.min()} to {touched.max()}, expected 0 to {len(pool) - 1}"
        raise ValueError(f"{blame}: found indices {span}; correct the strategy")
    for piece in cut:
        if not 0 <= piece.start < piece.stop <= lengths[piece.row]:
            raise ValueError(f"{blame}: found {piece} of a sample of {lengths[piece.row]} tokens; correct the strategy")
    ours[list(selection.pieces)] = False
    if len(np.unique(rows[ours])) != int(ours.sum()):
        raise ValueError(f"{blame}: chose a sample twice; correct the strategy")
    if len(rows) > n:
        raise ValueError(f"{blame}: chose {len(rows)} samples, asked for {n}; correct the strategy")
    if not len(rows) or (len(rows) < n and not choice["allow_fewer"]):
        why = selection.notes.get("short") or f"chose no more of {len(pool)}"
        raise ValueError(_too_few(choice, len(rows), f"{blame}: {why}"))


def joined(pool: Pool, selection: Selection, name: str) -> pa.Table:
    """The table of the chosen samples (`reader.SCHEMA`): whole, joined of pieces, or written.

    Raises:
        ValueError: two of them have the same tokens.
    """
    touched = _touched(selection)
    tokens_of = dict(zip(touched, pool.input_ids(touched), strict=True))
    about = {column: pool.table[column].take(pa.array(touched, pa.int64())).to_pylist() for column in _ABOUT}
    spans_of = pool.assistant_spans(touched)
    at = {row: place for place, row in enumerate(touched)}
    columns: dict[str, list[Any]] = {column: [] for column in SCHEMA.names}
    for position, (row, reason) in enumerate(zip(selection.indices.tolist(), selection.reasons, strict=True)):
        pieces = selection.pieces.get(position, ())
        spans: Spans | None = None
        if position in selection.written:
            tokens = np.asarray(selection.written[position], dtype=np.int32)
            parents: list[int] = []
        elif pieces:
            tokens = np.concatenate([tokens_of[piece.row][piece.start : piece.stop] for piece in pieces])
            parents = list(dict.fromkeys(piece.row for piece in pieces))
            spans = joined_spans([(spans_of[at[piece.row]], piece.start, piece.stop) for piece in pieces])
        else:
            tokens, parents, spans = tokens_of[row], [row], spans_of[at[row]]
        parts = {column: list(dict.fromkeys(about[column][at[parent]] for parent in parents)) for column in _ABOUT}
        columns["position"].append(position)
        columns["sample_id"].append(sample_id(tokens) if pieces or not parents else parts["sample_id"][0])
        columns["doc_ids"].append(parts["doc_id"])
        columns["domain"].append(" + ".join(sorted(parts["domain"])) or WRITTEN)
        columns["source"].append(" + ".join(parts["source"]) or WRITTEN)
        columns["n_tokens"].append(len(tokens))
        columns["input_ids"].append(tokens)
        columns["reason"].append(canonical_json(reason))
        columns["parents"].append(parts["sample_id"] if pieces else [])
        columns["assistant_spans"].append(spans)
    repeated = [sample for sample, count in Counter(columns["sample_id"]).items() if count > 1]
    if repeated:
        which = f"sample {repeated[0][:12]} is in the set twice"
        raise ValueError(f"calibration choice {name}: {which}, after samples were cut; correct the strategy")
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in SCHEMA}, schema=SCHEMA)


_ABOUT = ("sample_id", "doc_id", "domain", "source")


def _touched(selection: Selection) -> list[int]:
    """Rows of the pool whose tokens are in the set, without repeats."""
    rows: dict[int, None] = {}
    for position, row in enumerate(np.asarray(selection.indices).tolist()):
        if position in selection.pieces:
            rows |= dict.fromkeys(piece.row for piece in selection.pieces[position])
        elif position not in selection.written:
            rows[row] = None
    return list(rows)


def _tokens_used(selection: Selection, pool: Pool) -> int:
    """Number of distinct token positions of the pool in the set (special tokens may begin several windows)."""
    spans: dict[int, list[tuple[int, int]]] = {row: [] for row in _touched(selection)}
    for piece in (piece for parts in selection.pieces.values() for piece in parts):
        spans[piece.row].append((piece.start, piece.stop))
    cut = {*selection.pieces, *selection.written}
    whole = [row for position, row in enumerate(selection.indices.tolist()) if position not in cut]
    used = int(pool.lengths[whole].sum())
    for row in spans.keys() - set(whole):
        end = 0
        for start, stop in sorted(spans[row]):
            used += max(0, stop - max(start, end))
            end = max(end, stop)
    return used


def manifest_of(
    choice: dict[str, Any],
    strategy: Strategy,
    fingerprint: str,
    rows: pa.Table,
    selection: Selection,
    pool: Pool,
    whole: int,
) -> dict[str, Any]:
    """What manifest.json says of a set: what was asked for, what it holds, and where the rest of the pool went.

    Args:
        rows: the set as it is stored.
        pool: what the strategy chose from.
        whole: samples of the pool before any filter.
    """
    by_domain = rows.group_by("domain").aggregate([("n_tokens", "count"), ("n_tokens", "sum")]).to_pylist()
    tokens = int(pc.sum(rows["n_tokens"]).as_py())
    touched = _touched(selection)
    return {
        "choice": choice,
        "strategy_package": strategy.package,
        "fingerprint": fingerprint,
        "digest": set_digest(rows["sample_id"].to_pylist(), fingerprint),
        "samples": rows.num_rows,
        "tokens": tokens,
        "documents": len(pc.unique(rows["doc_ids"].combine_chunks().flatten())),
        "pool_samples": whole,
        "counts": {
            "pool_samples": whole,
            "filtered_by_domain": whole - len(pool),
            "not_chosen": len(pool) - len(touched),
            "used": len(touched),
            "selected": rows.num_rows,
            "missing": choice["n"] - rows.num_rows,
            "cut_or_joined": len(selection.pieces),
            "written": len(selection.written),
            "tokens_left_out": int(pool.lengths[touched].sum()) - _tokens_used(selection, pool),
        },
        "domains": {
            line["domain"]: {"samples": line["n_tokens_count"], "tokens": line["n_tokens_sum"]} for line in by_domain
        },
        "notes": selection.notes,
    }
