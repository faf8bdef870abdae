"""The number of threads of a matrix product, which in float32 decides its last bits.

The order in which MKL sums a product of few rows depends on the number of threads (seen with 5 to 11 rows on 2). MKL
has its own count beside OpenMP's. `torch.set_num_threads` sets both; `torch.get_num_threads` reads only OpenMP's. Other
libraries set only OpenMP's: threadpoolctl, and numba when it is imported. Until `torch.set_num_threads` is called, MKL
follows OpenMP, so importing a library can change the bits of the next forward pass.
"""

from __future__ import annotations

import re

MKL = re.compile(r"mkl_get_max_threads\(\) : (\d+)")


def product_threads() -> int:
    """The number of threads of a matrix product on the calling thread: MKL's, or torch's in a build without MKL."""
    import torch

    count = MKL.search(torch.__config__.parallel_info())
    return int(count[1]) if count else torch.get_num_threads()


def settle_threads() -> None:
    """Keep the number of threads of matrix products as it is until `torch.set_num_threads` is called."""
    import torch

    torch.set_num_threads(product_threads())
