"""AutoRound: its own default objective (SignRound), on a CPU, with the recipe's settings.

It saves what its format "fake" gives: the dequantized weights, in the model's dtype, which transformers loads as they
are.
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
    tuned.quantize_and_save(str(temporary), format="fake")
    (written,) = {path.parent for path in temporary.rglob("config.json")}
    written.rename(task.out)
    shutil.rmtree(temporary, ignore_errors=True)
    return {"versions": {name: version(name) for name in ("auto-round", "torch", "transformers")}}


if __name__ == "__main__":
    contend(load, quantize)
