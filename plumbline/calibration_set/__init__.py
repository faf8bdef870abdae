"""Calibration sets. To open one in your own code:

CalibrationDataset("data/calibration_set/random-64")      # torch.utils.data.Dataset
load_calibration_set("data/calibration_set/random-64")    # datasets.Dataset
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.calibration_set.calibration_dataset import CalibrationDataset, load_calibration_set

__all__ = ["CalibrationDataset", "load_calibration_set"]


def __getattr__(name: str) -> Any:
    # deferred, since torch and datasets take seconds to import
    if name in __all__:
        from plumbline.calibration_set import calibration_dataset

        return getattr(calibration_dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
