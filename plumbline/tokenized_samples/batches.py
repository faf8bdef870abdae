"""The unit of work of tokenization: from some documents to a table of samples and counts of losses."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.raw_corpus.document import Document
from plumbline.tokenized_samples.assistant import Spans, cut
from plumbline.tokenized_samples.control_tokens import CONTROL
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.splits import split_of_document
from plumbline.tokenized_samples.windows import Window, windows

if TYPE_CHECKING:
    from plumbline.tokenized_samples.encode import Encoded, Encoder

SAMPLES = pa.schema(
    [
        ("sample_id", pa.string()),  # SHA-256 (hex) of the token ids as little-endian int32
        ("doc_id", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("source", pa.string()),
        ("window", pa.int32()),  # 0-based within the document
        ("start", pa.int32()),  # first content token of the window within the document
        ("n_tokens", pa.int32()),
        ("n_special", pa.int32()),  # how many of them the tokenizer added
        ("input_ids", pa.list_(pa.int32())),
        ("assistant_spans", pa.list_(pa.int32())),  # of a chat: [start, stop, ...] of what its assistant wrote
    ]
)
BATCH_BYTES = 1 << 20
"""Text per piece of work. A constant, so that the bytes written do not depend on the number of workers."""
BATCH_DOCUMENTS = 1024


@dataclass
class TokenizedBatch:
    """Samples of some documents, and the documents' share of the accounting."""

    samples: pa.Table
    documents: int
    tokens: int
    """Content tokens of the documents."""
    lost: dict[str, dict[str, int]] = field(default_factory=dict)
    """By reason: documents, samples, content tokens."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Documents without tokens: doc_id, source, row, reason, detail."""
    chats: int = 0
    unmasked: int = 0
    """Chats whose assistant spans could not be determined."""
    control: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CONTROL, 0))
    """Documents whose own text spells control tokens, and how many: see control_tokens.py."""


def sample_id(input_ids: np.ndarray) -> str:
    """SHA-256 (hex) of the token ids as little-endian int32, so equal samples have the same id in any document."""
    return hashlib.sha256(np.ascontiguousarray(input_ids, "<i4").tobytes()).hexdigest()


def tokenize_batch(encoder: Encoder, params: TokenizeParams, documents: list[Document]) -> TokenizedBatch:
    """Turn documents into samples."""
    columns: dict[str, list[Any]] = {name: [] for name in SAMPLES.names}
    batch = TokenizedBatch(SAMPLES.empty_table(), len(documents), 0)
    for document, encoded in zip(documents, encoder.encode(documents), strict=True):
        if isinstance(encoded, str):
            batch.refused.append(
                {
                    "doc_id": document.doc_id,
                    "source": document.source,
                    "row": document.row,
                    "reason": "chat_template_error",
                    "detail": encoded,
                }
            )
            count_lost(batch.lost, "chat_template_error", 0, 0)
            continue
        batch.chats += encoded.chat
        batch.unmasked += encoded.chat and encoded.assistant is None
        for name, n in zip(CONTROL, (encoded.control > 0, encoded.control, encoded.begins_twice), strict=True):
            batch.control[name] += int(n)
        cut_windows, lost = windows(encoded.content, encoded.prefix, encoded.suffix, params)
        batch.tokens += len(encoded.content)
        for reason, (samples, tokens) in lost.items():
            count_lost(batch.lost, reason, samples, tokens)
        split = split_of_document(document.source, document.group, params.splits.tuning, params.splits.report)
        for window in cut_windows:
            columns["sample_id"].append(sample_id(window.input_ids))
            columns["doc_id"].append(document.doc_id)
            columns["split"].append(split)
            columns["domain"].append(document.domain)
            columns["source"].append(document.source)
            columns["window"].append(window.index)
            columns["start"].append(window.start)
            columns["n_tokens"].append(len(window.input_ids))
            columns["n_special"].append(window.special)
            columns["input_ids"].append(window.input_ids)
            columns["assistant_spans"].append(_spans_of(window, encoded))
    if columns["sample_id"]:
        ids = columns.pop("input_ids")
        offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int32)
        arrays = {name: pa.array(values, SAMPLES.field(name).type) for name, values in columns.items()}
        arrays["input_ids"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(ids)))
        batch.samples = pa.Table.from_arrays([arrays[name] for name in SAMPLES.names], schema=SAMPLES)
    return batch


def _spans_of(window: Window, encoded: Encoded) -> Spans | None:
    if encoded.assistant is None:
        return None
    start = window.start
    return cut(encoded.assistant, start, start + len(window.input_ids) - window.special, len(encoded.prefix))


def count_lost(lost: dict[str, dict[str, int]], reason: str, samples: int, tokens: int, documents: int = 1) -> None:
    """Add to the count of a reason."""
    count = lost.setdefault(reason, {"documents": 0, "samples": 0, "tokens": 0})
    count["documents"] += documents
    count["samples"] += samples
    count["tokens"] += tokens


def document_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of about BATCH_BYTES of text."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text or "") + sum(len(m["content"]) for m in document.messages or ())
        if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_order(
    work: Iterable[tuple[str, list[Document]]],
    workers: int,
    base: BaseCheckpoint,
    params: TokenizeParams,
) -> Iterator[tuple[str, TokenizedBatch]]:
    """Tokenize (shard, documents) in `workers` processes; results come in the order of the work.

    At most 2 pieces of work per process are pending, so memory does not grow with the corpus.

    Raises:
        RuntimeError: a process died.
    """
    # not fork: a forked child would inherit locks of the tokenizers library without their threads
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (base, params)) as pool:
        under_way: deque[tuple[str, Future[TokenizedBatch]]] = deque()
        pieces = iter(work)
        try:
            while True:
                for shard, documents in itertools.islice(pieces, 2 * workers - len(under_way)):
                    under_way.append((shard, pool.submit(_run, documents)))
                if not under_way:
                    return
                shard, future = under_way.popleft()
                yield shard, future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of the {workers} tokenizing processes died, most likely killed for memory; "
                f"set tokenize.workers in params.yaml to fewer processes"
            ) from error
        finally:
            for _, future in under_way:
                future.cancel()


_work: Callable[[list[Document]], TokenizedBatch]
"""Set by _start in each worker process, so that the tokenizer is loaded once per process."""


def _start(base: BaseCheckpoint, params: TokenizeParams) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per process; before the library is first used
    from plumbline.tokenized_samples.encode import Encoder

    encoder = Encoder(base, params)

    def work(documents: list[Document]) -> TokenizedBatch:
        return tokenize_batch(encoder, params, documents)

    _work = work


def _run(documents: list[Document]) -> TokenizedBatch:
    return _work(documents)
