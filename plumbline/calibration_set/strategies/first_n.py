"""The first samples of the corpus: the most common default of other tools, here as a baseline."""

from __future__ import annotations

import numpy as np

from plumbline.calibration_set.strategies.base import Pool, Selection


def select(pool: Pool, n: int, rng: np.random.Generator) -> Selection:
    """Take the first n samples in the order of the corpus. A baseline: it shows what not choosing costs.

    The order is that of the sources in params.yaml, their files, rows and windows. The seed has no effect.

    Optimises: nothing; it is biased, since corpora are rarely in random order.
    Cost: O(N); reads neither tokens nor embeddings.
    Source: `dataset[:n]` or `split="train[:512]"`, as in the examples of most quantization tools.
    """
    first = np.argpartition(pool.stream, n - 1)[:n]  # places are unique, so there are no ties
    rows = first[np.argsort(pool.stream[first])].astype(np.int64)
    places = pool.stream[rows].tolist()
    notes = {"baseline": "the first samples of the stream", "last_place": places[-1]}
    return Selection(rows, [{"place": place} for place in places], notes=notes)
