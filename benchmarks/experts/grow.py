"""A mixture of experts grown from the bundled Llama.

Each MLP becomes 8 experts of a quarter of its width: two random partitions of its channels into quarters. With all
experts active and a router that prefers none, every channel is summed twice at the weight 1/8, so `down_proj` is
multiplied by 4 and the mixture computes what the MLP computes. Two experts are active, half of the MLP's products. The
router starts as the mean direction of an expert's gates (Zhang et al., MoEfication, arXiv 2110.01786), so that it
prefers experts that answer. Then every block learns the output of the MLP it replaces, on the bundled model's training
documents, with transformers' loss for balanced experts. One pass of the bundled model serves all blocks, and nothing is
differentiated through it, which costs a third of training the whole model.

The architecture is Mixtral's: its attention is Llama's (Qwen3's normalizes queries and keys), and transformers reads
its quantized experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

EXPERTS, ACTIVE, PARTS = 8, 2, 4
ROUTER_SCALE = 1.0
"""Standard deviation of the router's logits of a normalized input."""
BATCH, LEARNING_RATE, WARM_UP, BALANCE = 16, 2e-3, 10, 0.02


def configuration(base: LlamaForCausalLM, active: int = ACTIVE) -> MixtralConfig:
    """Of a Mixtral with the attention of a Llama and quarters of its MLPs as experts."""
    names = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act "
        "max_position_embeddings rms_norm_eps tie_word_embeddings rope_parameters bos_token_id eos_token_id "
        "pad_token_id initializer_range"
    )
    shared: dict[str, Any] = {name: getattr(base.config, name) for name in names.split()}
    return MixtralConfig(
        **shared,
        intermediate_size=base.config.intermediate_size // PARTS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=active,
        router_aux_loss_coef=BALANCE,
    )


@torch.no_grad()
def upcycled(
    base: LlamaForCausalLM, seed: int = 0, active: int = ACTIVE, router: float = ROUTER_SCALE
) -> MixtralForCausalLM:
    """The untrained mixture, float32; with `active` = 8 and `router` = 0 it computes what the base model computes.

    Args:
        router: scale of the router; 0: no expert is preferred.
    """
    mixture = MixtralForCausalLM(configuration(base, active)).float().eval()
    shared = {name: value for name, value in base.state_dict().items() if ".mlp." not in name}
    absent, unknown = mixture.load_state_dict(shared, strict=False)
    assert not unknown and all(".mlp." in name for name in absent)
    generator = torch.Generator().manual_seed(seed)
    for old, new in zip(base.model.layers, mixture.model.layers, strict=True):
        mlp, block = old.mlp, new.mlp
        gate, up, down = (part.weight.float() for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        orders = [torch.randperm(len(gate), generator=generator) for _ in range(EXPERTS // PARTS)]
        slices = [part for order in orders for part in order.chunk(PARTS)]
        for expert, rows in enumerate(slices):
            block.experts.gate_up_proj[expert] = torch.cat([gate[rows], up[rows]])
            block.experts.down_proj[expert] = PARTS * down[:, rows]
        directions = torch.stack([gate[rows].mean(0) for rows in slices])
        directions -= directions.mean(0)
        block.gate.weight.copy_(router * functional.normalize(directions))
    return mixture


def train(
    mixture: MixtralForCausalLM, base: LlamaForCausalLM, rows: np.ndarray, steps: int, seed: int = 0
) -> Iterator[dict[str, float]]:
    """Train the experts and routers in place and yield the losses of every step.

    "error": squared error of a block's output relative to the MLP's, mean of the layers; "balance": of the experts'
    tokens, mean of the layers, 2 where all receive as many.

    Args:
        rows: int64 (windows, tokens).
    """
    mlps = [layer.mlp for layer in base.model.layers]
    blocks = [layer.mlp for layer in mixture.model.layers]
    mixture.set_experts_implementation("eager")
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP, (steps - step) / (0.5 * steps))
    )
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        batch = torch.from_numpy(rows[rng.choice(len(rows), BATCH, replace=False)])
        errors, balances = [], []
        for block, (x, y) in zip(blocks, _calls(base, mlps, batch), strict=True):
            logits, weights, chosen = block.gate(x)
            out = block.experts(x, chosen, weights)
            errors.append((out - y).square().sum() / y.square().sum())
            balances.append(load_balancing_loss_func((logits,), EXPERTS, ACTIVE))
        error, balance = torch.stack(errors).mean(), torch.stack([torch.as_tensor(b) for b in balances]).mean()
        torch.autograd.backward(error + BALANCE * balance)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield {"error": round(error.item(), 4), "balance": round(balance.item(), 4)}


@torch.no_grad()
def _calls(base: LlamaForCausalLM, mlps: list[Any], batch: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of every MLP on a batch, each (tokens, width)."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = [
        mlp.register_forward_hook(lambda _, args, out: calls.append((args[0].flatten(0, 1), out.flatten(0, 1))))
        for mlp in mlps
    ]
    try:
        base.model(input_ids=batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def grown(base_folder: Path, folder: Path, rows: np.ndarray, steps: int) -> Path:
    """The folder of the trained mixture (float32, with the tokenizer), made unless it exists."""
    if (folder / "config.json").is_file():
        return folder
    from plumbline.base_model.load import load_tokenizer

    base = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    mixture = upcycled(base)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "training_log.jsonl").open("w") as log:
        for step, losses in enumerate(tqdm(train(mixture, base, rows, steps), total=steps, mininterval=10)):
            if step % 10 == 0 or step + 1 == steps:
                print(json.dumps({"step": step, **losses}), file=log, flush=True)
    load_tokenizer(base_folder).save_pretrained(folder)
    mixture.save_pretrained(folder)
    return folder
