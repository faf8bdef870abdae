"""The parts of a model that is quantized layer by layer: its decoder layers and, last, what is outside them."""

from __future__ import annotations

from plumbline.base_model.decoder import Decoder
from plumbline.base_model.names import OUTSIDE, Names, outside, within

COMPUTED = "computed"
"""What a simulated part computes for the sample of the check: a part of its own, and the name of its tensor."""


def parts_of(decoder: Decoder) -> list[str]:
    """Names of the parts of a model, in the order in which they are made."""
    return [*decoder.names, OUTSIDE]


def selected(decoder: Decoder, part: str) -> Names:
    """Selects the weights and modules of a part."""
    return outside(decoder.name) if part == OUTSIDE else within(part)


def computed_by(part: str) -> str:
    """Name of the part that holds what `part` computes."""
    return f"{part}.{COMPUTED}"
