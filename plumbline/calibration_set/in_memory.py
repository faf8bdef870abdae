"""A pool of samples that somebody has in memory, for choosing among them without a workspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from plumbline.calibration_set.strategies.base import COLUMNS, Pool, Readers, Samples, sample_id
from plumbline.tokenized_samples.batches import SAMPLES


def pool_of(samples: Sequence[Sequence[int]]) -> Pool:
    """The pool of these token ids; a sample that occurs again is in it once.

    What the set should represent is the pool itself. Embeddings, activations and the base model are not at hand: a
    strategy that reads one of them fails with a ValueError that says so.

    Raises:
        ValueError: a sample is empty.
    """
    tokens: dict[str, NDArray[np.int32]] = {}
    for position, sample in enumerate(samples):
        ids = np.asarray(sample, dtype=np.int32)
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"samples[{position}]: expected a list of token ids, found shape {ids.shape}")
        tokens.setdefault(sample_id(ids), ids)
    place = {name: number for number, name in enumerate(tokens)}
    names = sorted(tokens)
    rows = [_row(name, len(tokens[name])) for name in names]
    table = pa.Table.from_pylist(rows, SAMPLES).select(list(COLUMNS))
    readers = Readers(
        lambda wanted: {name: tokens[name] for name in wanted},
        _missing("embeddings"),
        _missing("activations"),
        lambda: [],
    )
    stream = np.array([place[name] for name in names], dtype=np.int64)
    model, tokenizer = _missing("the base model"), _missing("the base model's tokenizer")
    return Pool(table, readers, stream, Samples(table, readers), None, model, tokenizer)


def _row(name: str, length: int) -> dict[str, Any]:
    about = {"sample_id": name, "doc_id": name, "split": "pool", "domain": "text", "source": "memory"}
    return {**about, "window": 0, "start": 0, "n_tokens": length, "n_special": 0, "input_ids": []}


def _missing(what: str) -> Callable[..., NoReturn]:
    def read(*_: object) -> NoReturn:
        raise ValueError(f"this strategy reads {what}, which a list of samples lacks; give the folder of a workspace")

    return read
