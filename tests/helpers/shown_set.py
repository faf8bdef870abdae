"""A small workspace with two calibration sets of texts and chats, some of them hostile, for what shows samples."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.params import StatisticsParams
from plumbline.calibration_choice.build import build_calibration_choice
from plumbline.calibration_set.build import build_calibration_set
from plumbline.calibration_set.pool import Sources
from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from tests.helpers.checkpoint import checkpoint
from tests.helpers.paths import PROJECT
from tests.helpers.tiny_models import random_llama
from tests.helpers.tokenizer import make_tokenizer

HOSTILE = ("<script>document.title='run'</script>", "<img src=x onerror=document.title=1>")
"""Texts that a browser would act on; each fits into one sample."""
CORPUS = {"sources": {"own": {"kind": "directory", "path": "texts"}}, "max_rejected": 1.0}
TOKENIZE = {"max_length": 48, "min_tokens": 4, "splits": {"tuning": 0.1, "report": 0.1}}
CHOICES = {
    "random-12": {"strategy": "random", "n": 12, "seed": 0},
    "first-9": {"strategy": "first_n", "n": 9, "seed": 0},
}


def write_workspace(root: Path) -> Path:
    """Sources, corpus, samples, the sets of `CHOICES`, and statistics of the first of them alone."""
    (root / "texts/prose").mkdir(parents=True)
    (root / "texts/talk").mkdir()
    for number in range(12):
        text = f"Page {number}: {(*HOSTILE, 'plain words')[number % 3]}"
        (root / f"texts/prose/{number:02}.txt").write_text(text, encoding="utf-8")
    (root / "texts/prose/short.txt").write_text("ab", encoding="utf-8")  # too short for a sample
    lines = ["{not json", "[1, 2]"]
    for number in range(14):
        turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"Yes {number}."}]
        lines.append(json.dumps({"messages": turns * (3 if number % 4 == 0 else 1)}))
    (root / "texts/talk/chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    make_tokenizer().save_pretrained(root / "base")
    sizes = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64}
    random_llama(**sizes).save_pretrained(root / "base")

    params = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    grid = {"calibrations": list(CHOICES), "schemes": ["w4a16-gptq"]}
    params |= {"model": {"name": "base"}, "corpus": CORPUS, "tokenize": TOKENIZE, "calibrations": CHOICES, "grid": grid}
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    data = root / "data"
    for name in ("raw_corpus", "tokenized_samples"):
        (data / name).mkdir(parents=True)
    base = checkpoint("base", root)
    build_raw_corpus(CorpusParams.model_validate(CORPUS), root, data / "raw_corpus")
    policy = TokenizeParams.model_validate({**TOKENIZE, "workers": 1})
    build_tokenized_samples(policy, base, data / "raw_corpus", data / "tokenized_samples")
    for name, choice in CHOICES.items():
        for asset in ("calibration_choice", "calibration_set"):
            (data / asset / name).mkdir(parents=True)
        build_calibration_choice(name, choice, data / "calibration_choice" / name)
        sources = Sources(data / "tokenized_samples", None, base)
        build_calibration_set(data / "calibration_choice" / name, sources, data / "calibration_set" / name)
    first = next(iter(CHOICES))
    (data / "activation_stats" / first).mkdir(parents=True)
    statistics = StatisticsParams(hessian=False)
    build_activation_stats(statistics, base, data / "calibration_set" / first, data / "activation_stats" / first)
    return root
