"""From a calibration choice to a calibration set: read the pool, let the strategy choose, check, write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from assets.artifact import canonical_json, read_json, write_json, write_table
from assets.calibration_set.reader import SCHEMA, set_digest
from assets.calibration_set.representativeness import representativeness
from assets.calibration_set.strategies import Strategy, get
from assets.calibration_set.strategies.base import COLUMNS, Pool, Selection, generator, sample_id
from assets.sample_features.reader import read_embeddings, read_manifest
from assets.tokenized_samples.reader import fingerprint_of, read_samples

_CORE = ("name", "strategy", "n", "seed", "domains", "allow_fewer")


def build_calibration_set(choice: Path, samples: Path, features: Path | None, out: Path) -> dict[str, Any]:
    """Choose the calibration set of one choice from the pool split.

    Args:
        choice: folder with `choice.json`.
        samples: a tokenized_samples artifact. The strategy is given samples of the pool only; tuning is what
            representativeness is measured against; report is not read.
        features: a sample_features artifact of the same samples; None: strategies that use embeddings fail.
        out: existing empty folder; gets samples.parquet, manifest.json and representativeness.json.

    Returns:
        Summary: samples, tokens, digest, counts, percentiles of the representativeness metrics.

    Raises:
        ValueError: features and samples differ in tokenization; an unknown domain; the pool or the strategy gives
            fewer than n samples and the choice does not allow it; the strategy broke its contract.
    """
    asked: dict[str, Any] = read_json(choice / "choice.json")
    fingerprint = fingerprint_of(samples)
    if features is not None:
        _same_tokenization(fingerprint, read_manifest(features)["fingerprint"])
    whole = read_samples(samples, splits=["pool"], columns=list(COLUMNS))
    whole = whole.take(pc.sort_indices(whole["sample_id"]))  # from here on, the order on disk decides nothing
    pool = Pool(_of_domains(whole, asked), _input_ids_from(samples), _embeddings_from(features, asked["name"]))
    strategy = get(asked["strategy"])
    n = _size(asked, pool, whole.num_rows)
    options = strategy.options.model_validate({key: value for key, value in asked.items() if key not in _CORE})
    keywords = {field: getattr(options, field) for field in type(options).model_fields}
    selection = strategy.select(pool, n, generator(asked["seed"], asked["strategy"]), **keywords)
    _check(selection, pool, n, asked, strategy)

    rows = _rows(pool, selection, asked["name"])
    write_table(out / "samples.parquet", rows)
    manifest = _manifest(asked, strategy, fingerprint, rows, selection, pool, whole.num_rows)
    manifest["fingerprint_parts"] = read_json(samples / "accounting.json")["fingerprint_parts"]
    write_json(out / "manifest.json", manifest)
    tuning = read_samples(samples, splits=["tuning"], columns=["n_tokens", "domain"])
    compared = [_lengths_and_domains(part) for part in (rows, whole, tuning)]
    measured = representativeness(compared[0], compared[1], compared[2])
    write_json(out / "representativeness.json", measured)
    summary = {key: manifest[key] for key in ("tokens", "documents", "digest")}
    percentiles = {f"{name}_percentile": metric["percentile"] for name, metric in measured["metrics"].items()}
    return {**summary, **manifest["counts"], **percentiles, "representativeness": measured["sentences"]}


def _same_tokenization(of_samples: str, of_features: str) -> None:
    if of_samples != of_features:
        raise ValueError(
            f"tokenization differs: tokenized_samples has fingerprint {of_samples[:12]}, sample_features was computed "
            f"on {of_features[:12]}; run sample_features again"
        )


def _of_domains(table: pa.Table, asked: dict[str, Any]) -> pa.Table:
    if asked["domains"] is None:
        return table
    present = sorted(set(pc.unique(table["domain"]).to_pylist()))
    for domain in asked["domains"]:
        if domain not in present:
            close = get_close_matches(domain, present, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            raise ValueError(
                f"params.yaml, calibrations: {asked['name']}: the pool has no domain `{domain}`{hint} "
                f"(it has {', '.join(present) or 'no samples at all'})"
            )
    return table.filter(pc.is_in(table["domain"], pa.array(asked["domains"], pa.string())))


def _size(asked: dict[str, Any], pool: Pool, whole: int) -> int:
    """How many samples to ask the strategy for: n, or with `allow_fewer` what there is."""
    if not len(pool) or (len(pool) < asked["n"] and not asked["allow_fewer"]):
        among = "" if asked["domains"] is None else f", {len(pool)} of them in domains {', '.join(asked['domains'])}"
        raise ValueError(_too_few(asked, len(pool), f"the pool has {whole} samples{among}"))
    return int(min(asked["n"], len(pool)))


def _too_few(asked: dict[str, Any], found: int, why: str) -> str:
    fix = f"lower n to {found}, add documents, or set `allow_fewer: true`" if found else "add documents"
    where = f"params.yaml, calibrations: {asked['name']}"
    return f"{where}: asked for n = {asked['n']} samples, found {found} ({why}); {fix}"


def _check(selection: Selection, pool: Pool, n: int, asked: dict[str, Any], strategy: Strategy) -> None:
    """Hold a strategy to its contract: a third party's mistake must not become a quietly wrong set."""
    rows = np.asarray(selection.indices)
    blame = f"strategy {asked['strategy']} of package {strategy.package}"
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer) or len(rows) != len(selection.reasons):
        raise ValueError(
            f"{blame}: expected one-dimensional integer indices with one reason each, found {rows.dtype} "
            f"{rows.shape} and {len(selection.reasons)} reasons; correct the strategy"
        )
    if len(rows) and (rows.min() < 0 or rows.max() >= len(pool)):
        found = f"{rows.min()} to {rows.max()}, expected 0 to {len(pool) - 1}"
        raise ValueError(f"{blame}: found indices {found}; correct the strategy")
    if len(np.unique(rows)) != len(rows):
        raise ValueError(f"{blame}: chose a sample twice; correct the strategy")
    if len(rows) > n:
        raise ValueError(f"{blame}: chose {len(rows)} samples, asked for {n}; correct the strategy")
    if not len(rows) or (len(rows) < n and not asked["allow_fewer"]):
        raise ValueError(_too_few(asked, len(rows), f"{blame} chose no more of {len(pool)}"))


def _rows(pool: Pool, selection: Selection, name: str) -> pa.Table:
    indices = np.asarray(selection.indices, dtype=np.int64)
    picked = pool.table.take(pa.array(indices))
    ids: list[str] = picked["sample_id"].to_pylist()
    parents: list[str | None] = [None] * len(ids)
    tokens = pool.input_ids(indices)
    for position, window in selection.windows.items():
        parents[position] = ids[position]
        tokens[position] = window.cut(tokens[position])
        ids[position] = sample_id(tokens[position])
    repeated = [sample for sample, count in Counter(ids).items() if count > 1]
    if repeated:
        which = f"sample {repeated[0][:12]} is in the set twice"
        raise ValueError(f"calibration choice {name}: {which}, after windows were cut; correct the strategy")
    return pa.table(
        {
            "position": pa.array(range(len(ids)), pa.int64()),
            "sample_id": ids,
            **{column: picked[column] for column in ("doc_id", "domain", "source")},
            "n_tokens": pa.array([len(sample) for sample in tokens], pa.int64()),
            "input_ids": pa.array(tokens, pa.list_(pa.int32())),
            "reason": [canonical_json(reason) for reason in selection.reasons],
            "parent": pa.array(parents, pa.string()),
        }
    ).cast(SCHEMA)


def _manifest(
    asked: dict[str, Any],
    strategy: Strategy,
    fingerprint: str,
    rows: pa.Table,
    selection: Selection,
    pool: Pool,
    whole: int,
) -> dict[str, Any]:
    by_domain = rows.group_by("domain").aggregate([("n_tokens", "count"), ("n_tokens", "sum")]).to_pylist()
    tokens = int(pc.sum(rows["n_tokens"]).as_py())
    return {
        "choice": asked,
        "strategy_package": strategy.package,
        "fingerprint": fingerprint,
        "digest": set_digest(rows["sample_id"].to_pylist(), fingerprint),
        "samples": rows.num_rows,
        "tokens": tokens,
        "documents": pc.count_distinct(rows["doc_id"]).as_py(),
        "pool_samples": whole,
        "counts": {
            "pool_samples": whole,
            "filtered_by_domain": whole - len(pool),
            "not_chosen": len(pool) - rows.num_rows,
            "selected": rows.num_rows,
            "missing": asked["n"] - rows.num_rows,
            "windowed": len(selection.windows),
            "tokens_cut_by_windows": int(pool.lengths[np.asarray(selection.indices)].sum()) - tokens,
        },
        "domains": {
            line["domain"]: {"samples": line["n_tokens_count"], "tokens": line["n_tokens_sum"]} for line in by_domain
        },
        "notes": selection.notes,
    }


def _lengths_and_domains(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    return table["n_tokens"].to_numpy().astype(np.int64), np.array(table["domain"].to_pylist(), dtype=np.str_)


def _input_ids_from(samples: Path) -> Callable[[Sequence[str]], dict[str, NDArray[np.int32]]]:
    def read(names: Sequence[str]) -> dict[str, NDArray[np.int32]]:
        wanted = pads.field("sample_id").isin(pa.array(names, pa.string()))
        files = pads.dataset(samples / "shards", format="parquet")
        found: dict[str, NDArray[np.int32]] = {}
        for batch in files.to_batches(columns=["sample_id", "input_ids"], filter=wanted):
            for name, ids in zip(batch["sample_id"].to_pylist(), batch["input_ids"], strict=True):
                found[name] = np.array(ids.values, dtype=np.int32)
        return found

    return read


def _embeddings_from(features: Path | None, name: str) -> Callable[[Sequence[str]], NDArray[np.float16]]:
    def read(names: Sequence[str]) -> NDArray[np.float16]:
        if features is None:
            raise ValueError(f"calibration choice {name}: its strategy needs embeddings; run sample_features first")
        return read_embeddings(features, names)

    return read
