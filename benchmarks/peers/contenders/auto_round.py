"""AutoRound: its own default objective (SignRound), on a CPU, with the recipe's settings.

It tunes in bfloat16 (`amp`). Then its format "fake" replaces every tensor of a float32 model by the base model's
(0.16.1: "Restored ... to their original FP32 values"). So `out` gets the dequantized weights of the model in memory.
"""

from benchmarks.peers.contenders.process import Task, contend  # isort: skip

import shutil
from importlib.metadata import version
from typing import Any


def load(task: Task) -> Any:
    """The model in the dtype it is stored in, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(task.model, dtype="auto")
    return model, AutoTokenizer.from_pretrained(task.model)


def quantize(loaded: Any, task: Task) -> dict[str, Any]:
    """Quantize on the samples, which must be of one length: AutoRound drops shorter ones."""
    from auto_round import AutoRound
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    model, tokenizer = loaded
    rows: Any = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in task.ids()]
    lengths = {len(row["input_ids"]) for row in rows}
    if len(lengths) != 1:
        raise SystemExit(f"AutoRound needs samples of one length, not of {sorted(lengths)} tokens")
    settings = {"batch_size": 8, **task.recipe}
    samples: Any = DataLoader(rows, batch_size=settings["batch_size"], collate_fn=default_data_collator)
    tuned = AutoRound(
        model,
        tokenizer,
        dataset=samples,
        nsamples=len(rows),
        seqlen=lengths.pop(),
        device_map="cpu",
        **settings,
    )
    temporary = task.out.with_name(f"{task.out.name}-saved")
    quantized, _ = tuned.quantize_and_save(str(temporary), format="fake")
    shutil.rmtree(temporary, ignore_errors=True)
    base, _ = load(task)
    put_weights(base, quantized)
    base.save_pretrained(task.out)
    tokenizer.save_pretrained(task.out)
    return {"versions": {name: version(name) for name in ("auto-round", "torch", "transformers")}}


def put_weights(base: Any, quantized: Any) -> None:
    """Replace the weights of the Linear layers within blocks by those of the quantized model, in the base's dtype."""
    import torch

    with torch.no_grad():
        for name, layer in base.named_modules():
            if isinstance(layer, torch.nn.Linear) and "layers." in name:
                layer.weight.copy_(quantized.get_submodule(name).weight)


if __name__ == "__main__":
    contend(load, quantize)
