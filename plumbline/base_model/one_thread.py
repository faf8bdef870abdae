"""One CPU thread, where the order of a sum must not depend on how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from plumbline.base_model.threads import product_threads


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch, BLAS and scikit-learn compute on one thread within, and put torch's number back afterwards."""
    threads = product_threads()  # torch.get_num_threads may be what another library set
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)
