"""Every tiny model of the tests, by name."""

from __future__ import annotations

from tests.architectures.blueprint import Blueprint
from tests.architectures.dense import DENSE
from tests.architectures.hybrids import HYBRIDS
from tests.architectures.mixtures import MIXTURES
from tests.architectures.multimodal import MULTIMODAL

CATALOGUE: dict[str, Blueprint] = {**DENSE, **MIXTURES, **HYBRIDS, **MULTIMODAL}
