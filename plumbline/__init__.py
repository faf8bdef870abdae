"""Plumbline: picks, proves and audits the calibration data behind quantized language models.

For notebooks, `import plumbline` exports the functions of `plumbline.api`: choose, collect, quantize, simulate,
compare, save, load_calibration_set, and the class CalibrationDataset. PyTorch is imported on first use.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.api import (
        CalibrationDataset,
        choose,
        collect,
        compare,
        load_calibration_set,
        quantize,
        save,
        simulate,
    )

__all__ = [
    "CalibrationDataset",
    "choose",
    "collect",
    "compare",
    "load_calibration_set",
    "quantize",
    "save",
    "simulate",
]

# OpenMP reads this when torch is imported. By default its idle threads spin: as soon as another process needs the same
# cores, every small operation waits for a whole time slice. Measured on 2 busy cores: activation statistics at 120
# tokens/s, and 4,400 with this setting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    # Every module of the package imports this one. An import statement would make the API, and with it nearly all
    # modules, part of the code version of every stage.
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
