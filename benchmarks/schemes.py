"""Time, size and quality of each scheme of params.yaml on the bundled model: `python -m benchmarks.schemes`.

Statistics of one calibration set are collected once and used for every scheme: seconds to quantize, bits per weight,
and KL divergence from the base model on held-out documents. Models are simulated, which gives the logits of the
exported ones bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import click
import torch

from benchmarks.peers.subjects import BUNDLED_NAME, subject
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.load import load_model
from plumbline.calibration_set.reader import read_calibration_set
from plumbline.evaluation.base_logits import BaseLogits
from plumbline.evaluation.held_out import batches
from plumbline.evaluation.measure import measure
from plumbline.evaluation.metrics import figures
from plumbline.params import load_params
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.grid import QuantizedWeight
from plumbline.quantized_model.simulate import simulate

PROJECT = Path(__file__).resolve().parents[1]


def bits_per_weight(weights: Mapping[str, QuantizedWeight]) -> float:
    """Bits of codes, scales (16 bits) and zero points per quantized weight."""
    numel = sum(weight.codes.numel() for weight in weights.values())
    codes = sum(weight.bits * weight.codes.numel() for weight in weights.values())
    scales = sum((16 + (0 if w.zero_point is None else w.bits)) * w.scale.numel() for w in weights.values())
    return (codes + scales) / numel


@click.command()
@click.option("--samples", default=64, show_default=True, help="Samples of the calibration set.")
@click.option("--length", default=512, show_default=True, help="Tokens per sample.")
@click.option("--only", multiple=True, metavar="SCHEME", help="Run only this scheme (repeatable).")
def main(samples: int, length: int, only: tuple[str, ...]) -> None:
    """Print a row per scheme."""
    about = subject(BUNDLED_NAME, samples, length, PROJECT / ".plumbline" / "schemes")
    model = load_model(about.model, "cpu")
    rows = read_calibration_set(about.samples, ["sample_id", "input_ids"]).to_pylist()
    ids = [(row["sample_id"], row["input_ids"]) for row in rows]
    stats = collect(model, ids, StatisticsParams(), base_model_digest="", fingerprint="")
    work = list(batches(about.held_out, 4096))
    base, factors = BaseLogits(lambda: model, work, 2**31), Factors()
    schemes = load_params(PROJECT).schemes
    print(f"{len(ids)} samples of {length} tokens; KL on {sum(map(len, about.held_out.tokens))} held-out tokens\n")
    print("| scheme | KL, nats | perplexity | top-1 | bits per weight | seconds |\n|---|---:|---:|---:|---:|---:|")
    for name in only or schemes:
        started = time.perf_counter()
        quantized = apply_scheme(model, stats, schemes[name], lambda: (ids, None), factors)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            results = figures(measure(base, simulate(model, quantized, schemes[name]), work)[0])
        bits = bits_per_weight({key: layer.weight for key, layer in quantized.layers.items()})
        print(
            f"| `{name}` | {results['kl_mean']:.5f} | {results['perplexity_quantized']:.3f} | "
            f"{100 * results['top1_agreement']:.1f} % | {bits:.2f} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
