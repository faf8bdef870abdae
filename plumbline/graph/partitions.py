"""Partitions, computed from params.yaml.

Choice × scheme is one dimension of named pairs with a static mapping to the choices. Dagster tracks staleness and
automation through it per partition, which it does not do between two-dimensional and one-dimensional partitions.
"""

from __future__ import annotations

import dagster as dg

from plumbline.params import load_params
from plumbline.requested import requested

_params = load_params()

CALIBRATIONS = dg.StaticPartitionsDefinition(list(_params.calibrations))
PAIRS = dg.StaticPartitionsDefinition(list(_params.pairs()))
STUDIES = dg.StaticPartitionsDefinition(requested())
"""The requested studies; none by default."""

PAIRS_OF_CALIBRATION = dg.StaticPartitionMapping(
    {
        calibration: [key for key, (choice, _) in _params.pairs().items() if choice == calibration]
        for calibration in _params.grid.calibrations
    }
)
"""Calibration choice -> every pair that is quantized with it."""


def split_pair(key: str) -> tuple[str, str]:
    """(calibration, scheme) of a pair's key.

    Raises:
        KeyError: the pair is not in the grid of params.yaml.
    """
    return load_params().pairs()[key]
