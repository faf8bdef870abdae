"""Restricts computation to one CPU thread, so that the order of a sum does not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from plumbline.base_model.threads import product_threads


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context, run torch, BLAS and scikit-learn on one thread; restore torch's number afterwards."""
    threads = product_threads()  # torch.get_num_threads may return what another library set
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)
