"""What each part of a rounder is worth, on real models: `python -m benchmarks.rounders [MODELS] [--out FILE]`.

    python -m benchmarks.rounders --smollm2 FOLDER --texts FILE --stories FOLDER --stories-texts FILE

Statistics of one calibration set are collected once per model. Every row changes one thing against the row that it
names; KL, likelihood and top-1 are of held-out documents, and the difference is paired over these documents. The rows
follow the defaults of `SchemeParams`. Models: the bundled one, and SmolLM2-135M and stories260K where they are named
(benchmarks/smollm2.py makes the first; texts are WikiText's validation split and TinyStories). Models are simulated,
which gives the logits of the exported ones bit for bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.articles import NAME as REAL
from benchmarks.peers.articles import STORIES, Articles, subject_of_articles
from benchmarks.peers.evaluation import Judge, Sums, interval, verdict
from benchmarks.peers.subjects import BUNDLED_NAME, Subject, subject
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.load import load_model
from plumbline.calibration_set.reader import read_calibration_set
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.simulate import simulate

WORK = Path(__file__).resolve().parents[1] / ".plumbline" / "rounders"
OLD = {"act_order": False, "range": "minmax", "signed_scale": False}
DEFAULT = "default"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("", {"method": "rtn"}),
    "GPTQ as of 2022": ("rtn", OLD),
    "+ act_order": ("GPTQ as of 2022", OLD | {"act_order": True}),
    "+ range: mse": ("+ act_order", OLD | {"act_order": True, "range": "mse"}),
    "+ range: hessian": ("+ act_order", OLD | {"act_order": True, "range": "hessian"}),
    "+ signed_scale": ("+ act_order", OLD | {"act_order": True, "signed_scale": True}),
    DEFAULT: ("+ act_order", {}),
    "damping: 0.05": (DEFAULT, {"damping": 0.05}),
    "adaround": (DEFAULT, {"method": "adaround"}),
    "propagate, correction: 0": (DEFAULT, {"propagate": "quantized", "correction": 0}),
    "propagate": (DEFAULT, {"propagate": "quantized"}),
    "propagate, correction: 1": ("propagate", {"propagate": "quantized", "correction": 1}),
}
"""Name of a row -> the row that it is compared with, and its entry beside method, bits and group size."""


def subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    """The models that are named."""
    wanted = arguments.models or (STORIES, BUNDLED_NAME, REAL)
    if arguments.stories and STORIES in wanted:
        yield subject_of_articles(
            Articles(arguments.stories, arguments.stories_texts, 64, 128, 48, 128, STORIES, 32), WORK
        )
    if BUNDLED_NAME in wanted:
        yield subject(BUNDLED_NAME, arguments.samples, 512, WORK, "float32")
    if arguments.smollm2 and REAL in wanted:
        yield subject_of_articles(Articles(arguments.smollm2, arguments.texts), WORK)


def table(about: Subject, bits: int, only: list[str] | None) -> Iterator[str]:
    """The lines of a Markdown table, as they are measured."""
    torch.manual_seed(0)
    model = load_model(about.model, "cpu")
    rows = read_calibration_set(about.samples, ["sample_id", "input_ids"]).to_pylist()
    samples = [(row["sample_id"], row["input_ids"]) for row in rows]
    stats = collect(model, samples, StatisticsParams(), base_model_digest="", fingerprint="")
    judge, factors, measured = Judge(about), Factors(), dict[str, Sums]()
    yield f"\n## {about.name}, {bits} bits, groups of {about.group_size}\n"
    yield "| rounder | KL, nats | ΔNLL, nats | top-1, % | CPU seconds | KL less that of |"
    yield "|---|---:|---:|---:|---:|---|"
    for name, (other, changes) in ROWS.items():
        if only and name not in only:
            continue
        entry = {"method": "gptq", "weight_bits": bits, "group_size": about.group_size, **changes}
        scheme = SchemeParams.model_validate(entry)
        cpu = time.process_time()
        quantized = apply_scheme(model, stats, scheme, lambda: (samples, None), factors)
        cpu = time.process_time() - cpu
        with torch.no_grad():
            measured[name] = judge.sums_of(simulate(model, quantized, scheme))
        yield line(name, measured[name], other, measured, cpu)


def line(name: str, sums: Sums, other: str, measured: Mapping[str, Sums], cpu: float) -> str:
    """A row: mean and half of its 95 % interval, and the paired difference to the row it is compared with."""
    (kl, half), (nll, _), (top1, _) = (interval(sums, figure) for figure in ("kl", "nll", "top1"))
    difference = ""
    if other in measured:
        estimate, width = interval(sums, "kl", measured[other])
        difference = f"{other}: {estimate:+.4f} ± {width:.4f}, {verdict(estimate, width)}"
    return f"| {name} | {kl:.4f} ± {half:.4f} | {nll:+.4f} | {100 * top1:.1f} | {cpu:.0f} | {difference} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2, from benchmarks/smollm2.py")
    parser.add_argument("--texts", type=Path, help="its text: articles in WikiText's form")
    parser.add_argument("--stories", type=Path, help="folder of stories260K")
    parser.add_argument("--stories-texts", type=Path, help="its text")
    parser.add_argument("--samples", type=int, default=64, help="of the bundled model, 512 tokens each (64)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"these alone: {STORIES}, {BUNDLED_NAME}, {REAL}")
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows alone")
    parser.add_argument("--out", type=Path, help="write the tables to this file, too")
    arguments = parser.parse_args()
    for model, texts in (("smollm2", "texts"), ("stories", "stories_texts")):
        if (getattr(arguments, model) is None) != (getattr(arguments, texts) is None):
            parser.error(f"--{model} and --{texts.replace('_', '-')} go together: name both, or neither")
    lines: list[str] = []
    for about in subjects(arguments):
        for bits in arguments.bits:
            for text in table(about, bits, arguments.only):
                print(text, flush=True)
                lines.append(text)
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
