"""python -m tests.helpers.limited_steps FOLDER MODE MODEL/STEP...: steps in a process that may take no more memory than
is said before for the mode layer by layer.

Prints what becomes of each step, a line of JSON as it ends. FOLDER holds folders of models. Each holds, in `large` and
`small`, a model `base` and a calibration set `set`. The steps of the small ones come first, without a limit: what the
process holds then is what it holds anyway.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from plumbline.activation_stats import expert_calls, memory
from plumbline.base_model import large_mixture
from tests.helpers.model_steps import STEPS, Steps

ROOM = 16 << 20
"""Bytes beside what is said: buffers of products and activations, for which `REST` allows 1 GB."""
LARGE, AT_A_TIME = 8 << 20, 4 << 20
"""Bytes of a layer's experts beyond which they are loaded some at a time (the large mixture), and of those."""
SITES = 128 << 20
"""Bytes of the sites of experts that are summed at a time."""
SAID_BY_TORCH = ("allocate memory", "unable to mmap", "could not create a primitive", "memory ran out")


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Within the context, this process may allocate so many bytes more than it has now."""
    now = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (now + size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def attempt(run: Callable[[], None], size: int) -> str:
    """What became of a step with so many bytes: `done`, `out of memory`, or another error."""
    try:
        with limited(size):
            run()
    except (MemoryError, RuntimeError, OSError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
        short = isinstance(error, MemoryError) or any(said in text for said in SAID_BY_TORCH)
        return "out of memory" if short else text
    return "done"


def main(root: Path, mode: str, steps: Sequence[str]) -> None:
    torch.set_num_threads(1)
    large_mixture.LARGE, large_mixture.AT_A_TIME = LARGE, AT_A_TIME
    expert_calls.EXPERTS = memory.EXPERTS = SITES
    models, named = (sorted(set(names)) for names in zip(*(name.split("/") for name in steps), strict=True))
    with TemporaryDirectory() as scratch:
        for model in models:
            shutil.copytree(root / model / "small", Path(scratch) / model)
            for step in dict.fromkeys((*STEPS, *named)):
                Steps(Path(scratch) / model, mode).run(step)
    for name in steps:
        model, step = name.split("/")
        large = Steps(root / model / "large", mode)
        size = large.said()[step]()
        print(json.dumps([name, attempt(partial(large.run, step), size + ROOM)]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
