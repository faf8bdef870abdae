"""tokenized_samples: the documents as token ids, as in production, in splits, with every token counted.

`tokens_in` and `tokens_out` are content tokens, those of the text or of the rendered chat: `tokens_in` = `tokens_out` +
the sum of `lost`. Tokens that the tokenizer adds around a sample are in `special_tokens`. The tokens in `by_split` and
`by_domain` are the samples' lengths and sum to `tokens_out` + `special_tokens`. `chats` counts documents, and those
without `assistant_spans`: if it is not known what the assistant wrote (assistant.py), the whole chat counts under
`statistics.tokens: assistant`, like a text. `control_tokens` counts those that documents spell themselves
(control_tokens.py).
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import link_or_copy, read_json, sha256_json, write_table
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.progress import Bar
from plumbline.raw_corpus import reader as raw_corpus
from plumbline.raw_corpus.shards import shard_path as corpus_shard_path
from plumbline.tokenized_samples.batches import (
    SAMPLES,
    TokenizedBatch,
    count_lost,
    document_batches,
    in_order,
    tokenize_batch,
)
from plumbline.tokenized_samples.control_tokens import CONTROL
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.splits import SPLITS
from plumbline.tokenized_samples.windows import LOST

if TYPE_CHECKING:
    from plumbline.tokenized_samples.encode import Encoder

log = logging.getLogger(__name__)

DUPLICATES = pa.schema([("shard", pa.string()), ("sample_id", pa.string()), ("row", pa.int64())])
REFUSED = pa.schema(
    [(name, pa.int64() if name == "row" else pa.string()) for name in ("doc_id", "source", "row", "reason", "detail")]
)
SMALL_BYTES = 64 << 20
"""Less text is tokenized in this process, with the library's threads, as starting processes would take longer."""
ROW_GROUP_TOKENS = 1 << 22


def write_shards(
    params: TokenizeParams,
    base: BaseCheckpoint,
    encoder: Encoder,
    corpus: Path,
    out: Path,
    previous: Path | None,
) -> list[dict[str, Any]]:
    """A shard per shard of the corpus, written or taken over from `previous`; their rows of the accounting, in order.

    Args:
        base: from which worker processes load the tokenizer.
        encoder: the same tokenizer in this process.
    """
    duplicates = raw_corpus.duplicates(corpus)
    policy = policy_in_force(params)
    keys = {
        # The documents of a shard are its file less those that an earlier shard holds.
        shard: sha256_json([shard, sorted(duplicates.get(shard, ())), encoder.fingerprint, policy])
        for shard in raw_corpus.shards(corpus)
    }
    entries = _taken_over(keys, previous, out)
    log.info("took over %d of %d shards", len(entries), len(keys))
    new = [shard for shard in keys if shard not in entries]
    work = (
        (shard, batch)
        for shard in new
        for batch in document_batches(raw_corpus.documents(corpus, shard, duplicates.get(shard, set())))
    )
    workers = params.workers or _cores()
    if workers == 1 or _text_bytes(corpus, new) < SMALL_BYTES:
        results: Iterator[tuple[str, TokenizedBatch]] = (
            (shard, tokenize_batch(encoder, params, batch)) for shard, batch in work
        )
    else:
        results = in_order(work, workers, base, params)
    with Bar(desc="tokenized_samples", unit=" documents") as progress:
        for shard, batches in itertools.groupby(results, key=lambda result: result[0]):
            entries[shard] = _write_shard(shard, keys[shard], (batch for _, batch in batches), out, progress)
    # A shard whose every document an earlier shard holds gave no work.
    return [entries.get(shard) or _new_entry(shard, key) for shard, key in keys.items()]


def policy_in_force(params: TokenizeParams) -> dict[str, Any]:
    """The parameters that decide a sample."""
    return params.model_dump(mode="json", exclude={"workers", "max_refused"})


def _taken_over(keys: Mapping[str, str], previous: Path | None, out: Path) -> dict[str, dict[str, Any]]:
    """Link the shards of an earlier version that were made of the same documents in the same way."""
    if previous is None:
        return {}
    old = _reusable(previous)
    return {shard: old[key] for shard, key in keys.items() if key in old and _link(previous, out, old[key])}


def shard_path(samples: Path, shard: str) -> Path:
    """Path of the samples of a shard; absent if it has none."""
    return samples / "shards" / f"{shard}.parquet"


def refused_path(samples: Path, shard: str) -> Path:
    """Path of the documents of a shard without tokens; absent if there are none."""
    return samples / "rejected" / f"{shard}.parquet"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text_bytes(corpus: Path, shards: list[str]) -> int:
    total = 0
    for shard in shards:
        metadata = pq.read_metadata(corpus_shard_path(corpus, shard))
        total += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return total


def _reusable(previous: Path) -> dict[str, dict[str, Any]]:
    path = previous / "accounting.json"
    return {entry["key"]: entry for entry in read_json(path)["shards"]} if path.is_file() else {}


def _link(previous: Path, out: Path, entry: dict[str, Any]) -> bool:
    """Link an unchanged shard; False if one of its files is missing, so that it must be built again."""
    refused = "chat_template_error" in entry["lost"]
    paths = [path for path, there in ((shard_path, entry["samples"]), (refused_path, refused)) if there]
    if not all(path(previous, entry["shard"]).is_file() for path in paths):
        return False
    for path in paths:
        link_or_copy(path(previous, entry["shard"]), path(out, entry["shard"]))
    return True


def _new_entry(shard: str, key: str) -> dict[str, Any]:
    return {
        "shard": shard,
        "key": key,
        "documents": 0,
        "samples": 0,
        "tokens": 0,
        "lost": {},
        "chats": 0,
        "unmasked": 0,
        "control": dict.fromkeys(CONTROL, 0),
    }


def _write_shard(shard: str, key: str, batches: Iterator[TokenizedBatch], out: Path, progress: Any) -> dict[str, Any]:
    """Write a shard's samples as they arrive; returns its row of the accounting, before duplicates."""
    entry = _new_entry(shard, key)
    refused: list[dict[str, Any]] = []
    pending: list[pa.Table] = []
    pending_tokens = 0
    writer: pq.ParquetWriter | None = None

    def flush() -> None:
        nonlocal writer, pending_tokens
        if not pending:
            return
        path = shard_path(out, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = writer or pq.ParquetWriter(path, SAMPLES, compression="zstd", write_statistics=False)
        writer.write_table(pa.concat_tables(pending).combine_chunks())
        pending.clear()
        pending_tokens = 0

    for batch in batches:
        entry["documents"] += batch.documents
        entry["tokens"] += batch.tokens
        entry["chats"] += batch.chats
        entry["unmasked"] += batch.unmasked
        entry["control"] = {name: entry["control"][name] + batch.control[name] for name in CONTROL}
        entry["samples"] += batch.samples.num_rows
        for reason, count in batch.lost.items():
            count_lost(entry["lost"], reason, count["samples"], count["tokens"], count["documents"])
        refused += batch.refused
        if batch.samples.num_rows:
            pending.append(batch.samples)
            pending_tokens += int(batch.samples["n_tokens"].to_numpy().sum())
        if pending_tokens >= ROW_GROUP_TOKENS:
            flush()
        progress.update(batch.documents)
    flush()
    if writer is not None:
        writer.close()
    if refused:
        write_table(refused_path(out, shard), pa.Table.from_pylist(refused, REFUSED))
    return entry


def account(entries: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Find duplicate samples in the shards' order, write duplicates.parquet, and count the rest."""
    seen: set[bytes] = set()  # about 100 bytes per sample of the corpus
    duplicates: dict[str, list[Any]] = {name: [] for name in DUPLICATES.names}
    by_split = {split: {"samples": 0, "tokens": 0, "documents": 0} for split in SPLITS}
    by_domain: dict[str, dict[str, int]] = {}
    lost: dict[str, dict[str, int]] = {}
    content = special = 0
    columns = ["sample_id", "doc_id", "split", "domain", "n_tokens", "n_special"]
    for entry in entries:
        for reason, count in entry["lost"].items():
            count_lost(lost, reason, count["samples"], count["tokens"], count["documents"])
        if not entry["samples"]:
            continue
        kept_of = lost_of = ""  # a document's samples follow each other
        row = 0
        with pq.ParquetFile(shard_path(out, entry["shard"])) as file:
            for batch in file.iter_batches(columns=columns):
                values = [batch.column(name).to_pylist() for name in columns]
                for sample, doc_id, split, domain, n_tokens, n_special in zip(*values, strict=True):
                    key = bytes.fromhex(sample)
                    if key in seen:
                        for name, value in zip(DUPLICATES.names, (entry["shard"], sample, row), strict=True):
                            duplicates[name].append(value)
                        count_lost(lost, "duplicate", 1, n_tokens - n_special, int(doc_id != lost_of))
                        lost_of = doc_id
                    else:
                        seen.add(key)
                        content, special = content + n_tokens - n_special, special + n_special
                        of_domain = by_domain.setdefault(domain, {"samples": 0, "tokens": 0, "documents": 0})
                        for counts in (by_split[split], of_domain):
                            counts["samples"] += 1
                            counts["tokens"] += n_tokens
                            counts["documents"] += int(doc_id != kept_of)
                        kept_of = doc_id
                    row += 1
    write_table(out / "duplicates.parquet", pa.table(duplicates, DUPLICATES))
    return {
        "documents_in": sum(entry["documents"] for entry in entries),
        "samples_out": len(seen),
        "tokens_in": sum(entry["tokens"] for entry in entries),
        "tokens_out": content,
        "special_tokens": special,
        "chats": {
            "documents": sum(entry["chats"] for entry in entries),
            "without_assistant_spans": sum(entry["unmasked"] for entry in entries),
        },
        "control_tokens": {name: sum(entry["control"][name] for entry in entries) for name in CONTROL},
        "lost": lost,
        "by_split": by_split,
        "by_domain": by_domain,
    }


def require_complete(accounting: dict[str, Any], params: TokenizeParams, out: Path) -> None:
    """Refuse samples that do not add up, too many refused chats, and no sample at all.

    Raises:
        ValueError: names the first refused chat, or where the documents went.
    """
    lost = accounting["lost"]
    assert set(lost) <= set(LOST)
    assert accounting["tokens_in"] == accounting["tokens_out"] + sum(count["tokens"] for count in lost.values())
    refused = lost.get("chat_template_error", {"documents": 0})["documents"]
    if refused > params.max_refused * accounting["documents_in"]:
        shard = next(s["shard"] for s in accounting["shards"] if "chat_template_error" in s["lost"])
        first = pq.read_table(refused_path(out, shard)).to_pylist()[0]
        raise ValueError(
            f"the chat template refused {refused} of {accounting['documents_in']} documents; tokenize.max_refused in "
            f"params.yaml allows {100 * params.max_refused:.1f} %. First: {first['source']} row {first['row']}: "
            f"{first['detail']}. Repair the chats, or raise the limit"
        )
    if not accounting["samples_out"]:
        reasons = ", ".join(f"{reason}: {count['documents']} documents" for reason, count in sorted(lost.items()))
        raise ValueError(
            f"none of {accounting['documents_in']} documents gave a sample ({reasons or 'there is no document'}); see "
            f"tokenize.min_tokens, max_length and long_documents in params.yaml"
        )
