"""Plumbline: picks, proves and audits the calibration data behind quantized language models.

For notebooks, `import plumbline` offers the functions of `plumbline.api`: choose, collect, quantize, simulate,
divergence, save, and CalibrationDataset and load_calibration_set. PyTorch is imported when one of them is first used.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.api import (
        CalibrationDataset,
        choose,
        collect,
        divergence,
        load_calibration_set,
        quantize,
        save,
        simulate,
    )

__all__ = [
    "CalibrationDataset",
    "choose",
    "collect",
    "divergence",
    "load_calibration_set",
    "quantize",
    "save",
    "simulate",
]

# Read when torch is imported, through whichever door. By default OpenMP's idle threads spin: as soon as another process
# wants the same cores, every small operation waits for a whole time slice (measured on 2 busy cores: activation
# statistics at 120 tokens/s, against 4,400 with this).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    # Every module of the package imports this one. An import statement would make the notebook's functions, and with
    # them nearly all modules, part of each stage's code version.
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
