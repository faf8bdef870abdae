"""GPTQ side by side with llm-compressor: `python -m benchmarks.peers [--samples 16 --repeats 1] [--peer FOLDER]`.

Both use the same model, samples, dtype and number of threads: W4A16 in groups of 128, symmetric, damping 0.01, blocks
of 128, columns in order, lm_head in full precision. Every run is a separate process, and the contenders alternate.
Plumbline writes its statistics and reads them back as in production, including histograms and extremes that GPTQ does
not need; llm-compressor runs the script of `plumbline export` on the same token ids. Both write a compressed folder,
which transformers loads for one evaluation: KL to the base model on documents of the report split, with a bootstrap
over documents. No KL is claimed for random models, because random tokens make it meaningless.

llm-compressor runs in its own environment, .plumbline/peers/venv or the one of --peer. Finished measurements are stored
in .plumbline/peers, and an interrupted run resumes there; --fresh starts anew. On a processor without bfloat16 units,
Plumbline multiplies in float32 and llm-compressor does not, which alone gives a factor of 6 or more; --dtype float32
compares the two without it. Time for 128 samples on 2 cores: about 4 minutes for the bundled model, 4 for random-6M, 9
for random-51M, 4 for the sweep.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_subjects import SUBJECTS, Subject, subject
from plumbline.artifact import read_json, sha256_files, sha256_json, write_json

PROJECT = Path(__file__).resolve().parents[1]
WORK = PROJECT / ".plumbline" / "peers"
REQUIREMENTS = ("llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "transformers==5.17.0", "torch==2.13.0")
PEER, OURS = "llm-compressor", "plumbline"
ONE = "w4a16-gptq"
SCHEMES: dict[str, dict[str, Any]] = {
    ONE: {"method": "gptq", "weight_bits": 4, "group_size": 128},
    "w4a16-gptq-g32": {"method": "gptq", "weight_bits": 4, "group_size": 32},
    "w3a16-gptq": {"method": "gptq", "weight_bits": 3, "group_size": 128},
    "w8a16-gptq": {"method": "gptq", "weight_bits": 8},
    "w4a16-rtn": {"method": "rtn", "weight_bits": 4, "group_size": 128},
    "w8a16-rtn": {"method": "rtn", "weight_bits": 8},
    "w8a8-static": {"method": "rtn", "weight_bits": 8, "activations": {}},
    "w8a8-dynamic": {"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}},
}
"""Schemes of the sweep: four of GPTQ with different widths and groups, four that round to nearest."""
SWEPT = "bundled-6M"
AIMS = {"bundled-6M": 10, "random-6M": 10, "random-51M": 5}
SWEEP_AIM = 3
LIMIT = 900
"""Seconds after which a run is stopped."""
RESAMPLES, CONFIDENCE = 2000, 0.95
ASK_VERSIONS = (
    "import json; from importlib.metadata import version; "
    "print(json.dumps({n: version(n) for n in ('llmcompressor', 'compressed-tensors', 'torch', 'transformers')}))"
)


def peer_python(folder: Path | None = None) -> str | None:
    """The Python of an environment with llm-compressor, from `folder`, PLUMBLINE_PEER or .plumbline/peers/venv."""
    named = folder or os.environ.get("PLUMBLINE_PEER") or WORK / "venv"
    python = Path(named) / "bin" / "python"
    return str(python) if python.is_file() else None


def create_environment() -> str:
    """Create an environment for llm-compressor, which pins other versions of Plumbline's dependencies."""
    venv = WORK / "venv"
    print(
        f"installing {', '.join(REQUIREMENTS)} into {venv.relative_to(PROJECT)}; this takes a few minutes", flush=True
    )
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *REQUIREMENTS, "datasets"], check=True)
    return str(venv / "bin" / "python")


class Results:
    """Finished measurements in a JSON file: key -> figures."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        """Resumes from `file` if its settings are the same."""
        self.file, self.settings = file, dict(settings)
        stored = read_json(file) if file.is_file() else {}
        self.figures: dict[str, Any] = stored["found"] if stored.get("settings") == self.settings else {}

    def get(self, key: str, measure: Any) -> Any:
        """The figures under `key`, measured now if they are missing."""
        if key not in self.figures:
            started = time.perf_counter()
            print(f"  {key} ...", end="", flush=True)
            self.figures[key] = measure()
            print(f" {time.perf_counter() - started:.0f} s", flush=True)
            write_json(self.file, {"settings": self.settings, "found": self.figures})
        return self.figures[key]


def run(command: Sequence[str], threads: int) -> dict[str, Any]:
    """Run a contender's process and parse the last line it prints as JSON.

    Raises:
        RuntimeError: the process failed; the message holds the end of stderr.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


class Contest:
    """The two contenders on one subject; models and exports are written to `folder`."""

    def __init__(self, python: str, about: Subject, threads: int, folder: Path) -> None:
        self.python, self.about, self.threads, self.folder = python, about, threads, folder

    def model(self, contender: str, scheme: str) -> Path:
        """The folder of a contender's quantized model."""
        return self.folder / contender / scheme

    def ours(self, schemes: Sequence[str]) -> dict[str, Any]:
        out = _empty(self.folder / OURS)
        entries = json.dumps({name: SCHEMES[name] for name in schemes})
        command = [sys.executable, "-m", "benchmarks.peer_plumbline", str(self.about.samples), str(self.about.model)]
        return run([*command, str(out), entries, "--threads", str(self.threads)], self.threads)

    def peer(self, scheme: str) -> dict[str, Any]:
        from plumbline.export.llm_compressor import hand_over
        from plumbline.quantized_model.params import SchemeParams

        exported = _empty(self.folder / "handed-over" / scheme)
        hand_over(self.about.samples, scheme, SchemeParams.model_validate(SCHEMES[scheme]), exported)
        command = [
            self.python,
            "-m",
            "benchmarks.peer_llm_compressor",
            str(exported),
            str(self.about.model),
            str(_empty(self.model(PEER, scheme))),
        ]
        figures = run([*command, "--threads", str(self.threads), "--watch"], self.threads)
        return {**figures, "passes": self._passes(figures.pop("seen"))}

    def _passes(self, seen: Mapping[str, Any]) -> int:
        """How many times llm-compressor read the samples of the set, each whole, in order.

        Raises:
            RuntimeError: it read something else.
        """
        from plumbline.calibration_set.reader import read_calibration_set

        table = read_calibration_set(self.about.samples, ["sample_id", "n_tokens"])
        names, lengths = table["sample_id"].to_pylist(), [[1, n] for n in table["n_tokens"].to_pylist()]
        passes = len(seen["embedding"]) // len(names)
        if seen["embedding"] != names * passes or seen["first_linear"] != lengths * passes:
            raise RuntimeError(f"{self.about.name}: llm-compressor saw other samples than those of the set")
        return passes

    def quality(self) -> dict[str, Any]:
        """KL and perplexity of both models, and the difference of KL with its interval over documents."""
        with contextlib.redirect_stderr(io.StringIO()):  # compressed-tensors' progress bars cannot be disabled
            return evaluate(self.about, {name: self.model(name, ONE) for name in (PEER, OURS)})


def evaluate(about: Subject, models: Mapping[str, Path]) -> dict[str, Any]:
    """Figures per model, and the difference in KL, second minus first, in nats per token, with its interval."""
    from plumbline.base_model.load import load_model
    from plumbline.calibration_report.bootstrap import bootstrap_ratio, strata_of
    from plumbline.calibration_report.verdict import FEWEST_DOCUMENTS
    from plumbline.evaluation.base_logits import BaseLogits
    from plumbline.evaluation.held_out import batches
    from plumbline.evaluation.measure import measure
    from plumbline.evaluation.metrics import figures

    work = list(batches(about.held_out, 4096))
    base = BaseLogits(lambda: load_model(about.model, "cpu"), work, 2**31)
    documents = sorted(set(zip(about.held_out.domains, about.held_out.doc_ids, strict=True)))
    row = {document: index for index, document in enumerate(documents)}
    document_of_sample = np.array(
        [row[key] for key in zip(about.held_out.domains, about.held_out.doc_ids, strict=True)]
    )
    results: dict[str, Any] = {}
    kl: list[np.ndarray] = []
    tokens = np.zeros(0)
    for name, folder in models.items():
        measured, sample_of_token = measure(base, load_model(folder, "cpu"), work)
        document_of_token = document_of_sample[sample_of_token]
        kl.append(np.bincount(document_of_token, weights=measured.kl, minlength=len(documents)))
        tokens = np.bincount(document_of_token, minlength=len(documents)).astype(float)
        results[name] = figures(measured)
    strata = strata_of([domain for domain, _ in documents], FEWEST_DOCUMENTS)
    (difference,) = bootstrap_ratio((kl[1] - kl[0])[None], tokens, strata, RESAMPLES, 0)
    half = difference.half_width(CONFIDENCE)
    return {**results, "difference": difference.estimate, "half": half, "documents": len(documents)}


def _code() -> str:
    """A digest of Plumbline's sources, so that figures of other code are not reused."""
    files = [path for path in (PROJECT / "plumbline").rglob("*") if path.suffix in (".py", ".c", ".h")]
    return sha256_json(sha256_files(PROJECT, [str(path.relative_to(PROJECT)) for path in files]))


def _quiet() -> None:
    """Disable progress bars and advice of libraries."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median, with the range of several values."""
    middle = f"{_short(statistics.median(values))}{unit}"
    return middle if len(values) < 2 else f"{middle} ({_short(min(values))}–{_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


COLUMNS = {
    "work": ("without load", 1.0),
    "process": ("whole process", 1.0),
    "cpu": ("CPU", 1.0),
    "bytes": ("peak MiB", 2**20),
}


def times_table(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """The lines of a table: both contenders per subject and the ratio of their medians."""
    lines = [f"{'':<11}{'seconds':<15}" + "".join(f"{title:>17}" for title, _ in COLUMNS.values())]
    for name, runs in results.items():
        for contender in (PEER, OURS):
            cells = [spread([run[key] / unit for run in runs[contender]]) for key, (_, unit) in COLUMNS.items()]
            lines.append(f"{name if contender == PEER else '':<11}{contender:<15}" + "".join(f"{c:>17}" for c in cells))
        ratios = [f"{_ratio(runs, key):.1f}x" for key in COLUMNS]
        ratios[0] = f"{ratios[0]}, aim {AIMS[name]}x"
        lines.append(f"{'':<11}{'ratio':<15}" + "".join(f"{r:>17}" for r in ratios))
    return lines


def _ratio(runs: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> float:
    peer, ours = (statistics.median(run[key] for run in runs[name]) for name in (PEER, OURS))
    return float(peer / ours)


def quality_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of a table: KL and perplexity of both contenders, and the difference with its interval and verdict."""
    lines = [f"{'':<12}{'':<16}{'KL, nats':>12}{'perplexity':>12}{'base':>9}{'top-1':>8}"]
    for name, figures in results.items():
        for contender in (PEER, OURS):
            f = figures[contender]
            cells = f"{f['kl_mean']:>12.5f}{f['perplexity_quantized']:>12.3f}{f['perplexity_base']:>9.3f}"
            lines.append(f"{name if contender == PEER else '':<12}{contender:<16}{cells}{f['top1_agreement']:>8.3f}")
        d, half = figures["difference"], figures["half"]
        word = "better" if d + half < 0 else "worse" if d - half > 0 else "no difference"
        claim = word if name == SWEPT else "random tokens: no claim"
        interval = f"± {half:.5f} ({CONFIDENCE:.0%}, {figures['documents']} documents)"
        lines.append(f"{'':<12}{'difference':<16}{d:>+12.5f} {interval}: {claim}")
    return lines


def sweep_table(results: Mapping[str, Any], single_runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The lines of a table: seconds of eight schemes relative to those of one, for both contenders."""
    peer, parts = results[PEER], results[OURS]["parts"]
    lines = [f"{'':<22}{PEER:>16}{OURS:>14}   seconds without load"]
    lines.append(f"{'statistics':<22}{'':>16}{parts['statistics']:>14.1f}")
    lines += [f"{name:<22}{peer[name]['work']:>16.1f}{parts[name]:>14.1f}" for name in SCHEMES]
    whole = {PEER: sum(run["work"] for run in peer.values()), OURS: results[OURS]["work"]}
    single = {name: statistics.median(run["work"] for run in single_runs[name]) for name in (PEER, OURS)}
    lines.append(f"{'all eight':<22}{whole[PEER]:>16.1f}{whole[OURS]:>14.1f}")
    times = {name: whole[name] / single[name] for name in whole}
    lines.append(f"{'against one':<22}{times[PEER]:>15.1f}x{times[OURS]:>13.1f}x   aim {SWEEP_AIM}x")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample (512)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the models (bfloat16)")
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, choices=SUBJECTS, metavar="NAME")
    parser.add_argument("--no-sweep", action="store_true", help="skip the eight schemes")
    parser.add_argument("--peer", type=Path, help="an environment with llm-compressor")
    parser.add_argument("--fresh", action="store_true", help="discard finished measurements")
    arguments = parser.parse_args()
    _quiet()
    started = time.perf_counter()
    python = peer_python(arguments.peer) or create_environment()
    versions = run([python, "-c", ASK_VERSIONS], arguments.threads)
    settings = {
        "samples": arguments.samples,
        "length": arguments.length,
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "peer": versions,
        "code": _code(),
    }
    WORK.mkdir(parents=True, exist_ok=True)
    file = WORK / f"results-{arguments.samples}x{arguments.length}-{arguments.dtype}.json"
    if arguments.fresh:
        file.unlink(missing_ok=True)
    results = Results(file, settings)
    times, quality, sweep = {}, {}, None
    for name in arguments.subjects:
        about = subject(name, arguments.samples, arguments.length, WORK, arguments.dtype)
        contest = Contest(python, about, arguments.threads, WORK / name)
        runs: dict[str, list[Any]] = {PEER: [], OURS: []}
        for turn in range(arguments.repeats):
            runs[PEER].append(results.get(f"{name}: {PEER}, turn {turn + 1}", lambda c=contest: c.peer(ONE)))
            runs[OURS].append(results.get(f"{name}: {OURS}, turn {turn + 1}", lambda c=contest: c.ours([ONE])))
        times[name] = runs
        quality[name] = results.get(f"{name}: KL", contest.quality)
        if name == SWEPT and not arguments.no_sweep:
            peers = {s: results.get(f"{name}: {PEER}, {s}", lambda c=contest, s=s: c.peer(s)) for s in SCHEMES}
            ours = results.get(f"{name}: {OURS}, eight schemes", lambda c=contest: c.ours(list(SCHEMES)))
            sweep = {PEER: peers, OURS: ours}
    size = f"{arguments.samples} x {arguments.length} tokens, {arguments.threads} threads"
    print(f"\nGPTQ W4A16 g128, {arguments.dtype}, {size}")
    print(", ".join(f"{key} {value}" for key, value in versions.items()))
    passes = {figures["passes"] for runs in times.values() for figures in runs[PEER]}.pop()
    print(f"llm-compressor's forward passes saw the samples of the set, each whole and in order, {passes} times\n")
    tables = [times_table(times), quality_table(quality)]
    if sweep is not None:
        tables.append(sweep_table(sweep, times[SWEPT]))
    print("\n\n".join("\n".join(lines) for lines in tables))
    print(f"\nthis command took {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
