"""The last step of quantizing layer by layer: load the folder again, and hold it against the simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plumbline.base_model.quiet import quiet
from plumbline.base_model.streamed_pass import outputs
from plumbline.base_model.streamed_quantized import StreamedQuantized


@torch.no_grad()
def require_loads_layerwise(
    folder: Path,
    ids: Sequence[int],
    simulated: Mapping[str, Callable[[], Tensor]],
    device: Any = "auto",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Load a quantized model one decoder layer at a time, and compare what it computes with its simulation.

    Args:
        folder: the exported model.
        ids: tokens of a sample, all of which are read.
        simulated: by part, what its simulation computed: the hidden states after every decoder layer, in order, and
            last the logits; on the CPU.

    Returns:
        {"tokens": number of tokens whose logits were compared}.

    Raises:
        ValueError: the folder does not load, a weight is missing or unknown, or the logits differ; names the first
            layer that does.
    """
    try:
        with quiet():
            loaded = StreamedQuantized(folder, device, trust_remote_code)
            found = [computed.cpu() for computed in outputs(loaded, ids)]
    except Exception as error:
        raise ValueError(
            f"the quantized model does not load in transformers: {type(error).__name__}: {error}"
        ) from error
    logits, expected = found[-1], list(simulated.values())[-1]()
    if torch.equal(logits, expected):
        return {"tokens": len(ids)}
    pairs = zip(simulated.items(), found, strict=True)
    first = next(name for (name, read), computed in pairs if not torch.equal(read(), computed))
    size = float((logits.float() - expected.float()).norm() / expected.float().norm())
    raise ValueError(
        f"the loaded model does not compute what was quantized: its logits are off by {size:.2g} (relative); first "
        f"layer that differs: {first}"
    )
