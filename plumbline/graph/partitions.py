"""Partitions, computed from params.yaml.

Choice × scheme is one dimension of named pairs with a static mapping to the choices: staleness and automation follow
it per partition, which two-dimensional partitions do not give across assets of one dimension.
"""

from __future__ import annotations

import dagster as dg

from plumbline.params import load_params, requested

_params = load_params()

CALIBRATIONS = dg.StaticPartitionsDefinition(list(_params.calibrations))
PAIRS = dg.StaticPartitionsDefinition(list(_params.pairs()))
STUDIES = dg.StaticPartitionsDefinition(requested())
"""Those that were asked for; by default there is none."""

PAIRS_OF_CALIBRATION = dg.StaticPartitionMapping(
    {
        calibration: [key for key, (of, _) in _params.pairs().items() if of == calibration]
        for calibration in _params.grid.calibrations
    }
)
"""Upstream a calibration choice, downstream every model that is quantized with it."""


def split_pair(key: str) -> tuple[str, str]:
    """(calibration, scheme) of a pair's key.

    Raises:
        KeyError: the pair is not in the grid of params.yaml.
    """
    return load_params().pairs()[key]
