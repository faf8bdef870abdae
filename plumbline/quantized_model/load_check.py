"""The last step of quantizing: load the folder as a user would, and hold it against the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline.base_model.bfloat16 import with_wide_products
from plumbline.base_model.expert_scales import expert_global_scales
from plumbline.base_model.quiet import quiet
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.scheme import some
from plumbline.quantized_model.simulate import simulate

TOKENS = 128
"""Tokens of the forward pass."""


@torch.no_grad()
def require_loads(
    folder: Path,
    model: PreTrainedModel,
    quantized: Quantized,
    scheme: SchemeParams,
    ids: Sequence[int],
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Load a quantized model with the default settings of `from_pretrained` and compare it with its simulation.

    With `loads_in: vllm`, transformers reads the global scales of NVFP4 experts, which it drops by itself.

    Args:
        folder: the exported model.
        model: the base model; not changed.
        quantized: what was exported.
        scheme: of `quantized`.
        ids: tokens of a sample; at most `TOKENS` are read.

    Returns:
        {"tokens": number of tokens whose logits were compared}.

    Raises:
        ValueError: the folder does not load, a weight is missing or unknown, or the logits differ; names the tensors or
            the first layer that differ.
    """
    simulated = with_wide_products(simulate(model, quantized, scheme))
    try:
        with quiet(), expert_global_scales() if scheme.loads_in == "vllm" else nullcontext():
            loaded, info = type(model).from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code, output_loading_info=True
            )
    except Exception as error:
        raise ValueError(
            f"the quantized model does not load in transformers: {type(error).__name__}: {error}"
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info[problem])):
            raise ValueError(f"the quantized model loads with {problem.replace('_', ' ')}: {some(names)}")
    loaded = with_wide_products(loaded.eval().to(model.device))
    x = torch.tensor([list(ids[:TOKENS])], device=model.device)
    outputs: list[dict[str, Tensor]] = []
    with quiet():
        logits = [_run(network, x, outputs) for network in (simulated, loaded)]
    if torch.equal(*logits):
        return {"tokens": x.shape[1]}
    weights = _different(simulated.state_dict(), loaded.state_dict())
    layers = [name for name, out in outputs[0].items() if not torch.equal(out, outputs[1].get(name, out[..., :0]))]
    size = float((logits[0].float() - logits[1].float()).norm() / logits[0].float().norm())
    where = f"weights that differ: {some(weights)}" if weights else f"first layer that differs: {some(layers[:1])}"
    raise ValueError(
        f"the loaded model does not compute what was quantized: its logits are off by {size:.2g} (relative); {where}"
    )


def _run(network: PreTrainedModel, x: Tensor, outputs: list[dict[str, Tensor]]) -> Tensor:
    """The logits (1, tokens, vocabulary); appends the output of every module by name, in order."""
    seen: dict[str, Tensor] = {}
    outputs.append(seen)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            first = out[0] if isinstance(out, tuple) and out else out
            if isinstance(first, Tensor) and name not in seen:
                seen[name] = first

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    try:
        logits: Tensor = network(input_ids=x, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits


def _different(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that are not equal, or not there."""
    return [name for name, value in expected.items() if name not in found or not torch.equal(value, found[name])]
