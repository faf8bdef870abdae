"""Every number format under every solver: `python -m benchmarks.formats`.

    python -m benchmarks.formats [--model FOLDER --texts FILE] [--stories FOLDER --stories-texts FILE] [--peer]

KL to the base model on held-out documents, with intervals over documents, of the bundled model, of a mixture of
experts grown from it, and of stories260K and SmolLM2-135M where they are named; all in bfloat16. One pass of
statistics per model serves all formats; models are simulated, which gives the logits of the exported ones (within a
measured bound for FP4 and MX). With --peer, llm-compressor quantizes the bundled model with its preset of the same
format on the same samples, in its own environment (benchmarks/peers makes it), and transformers loads what it wrote.
Finished cells are kept in .plumbline/formats. docs/formats.md discusses the tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.formats.arms import FORMATS, GPTQ, RTN, SOLVERS
from benchmarks.formats.matrix import Matrix
from benchmarks.formats.models import NAMES, subjects
from benchmarks.peers.__main__ import quiet
from benchmarks.peers.subjects import BUNDLED_NAME

WORK = Path(__file__).resolve().parents[2] / ".plumbline" / "formats"


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2, from benchmarks/smollm2.py")
    parser.add_argument("--texts", type=Path, help="its text: articles in WikiText's form")
    parser.add_argument("--stories", type=Path, help="folder of stories260K")
    parser.add_argument("--stories-texts", type=Path, help="its text")
    parser.add_argument("--models", nargs="+", choices=NAMES, metavar="NAME", help=f"these alone: {', '.join(NAMES)}")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), metavar="NAME")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=SOLVERS, metavar="NAME")
    parser.add_argument("--peer", nargs="*", choices=(RTN, GPTQ), metavar="SOLVER", help="llm-compressor, too (rtn)")
    parser.add_argument("--samples", type=int, default=8, help="of the bundled model, 512 tokens each (8)")
    parser.add_argument("--documents", type=int, default=24, help="judged per domain of the bundled model (24)")
    parser.add_argument("--tokens", type=int, default=64, help="of a judged document (64)")
    parser.add_argument("--pool", type=int, default=256, help="windows that the mixture learns from (256)")
    parser.add_argument("--steps", type=int, default=20, help="training steps of the mixture (20)")
    arguments = parser.parse_args()
    for model, texts in (("model", "texts"), ("stories", "stories_texts")):
        if (getattr(arguments, model) is None) != (getattr(arguments, texts) is None):
            parser.error(f"--{model} and --{texts.replace('_', '-')} go together: name both, or neither")
    return arguments


def main() -> None:
    arguments = command_line()
    quiet()
    WORK.mkdir(parents=True, exist_ok=True)
    peers = () if arguments.peer is None else arguments.peer or (RTN,)
    for about in subjects(arguments, WORK):
        matrix = Matrix(about, WORK)
        for line in matrix.lines(arguments.formats, arguments.solvers, peers if about.name == BUNDLED_NAME else ()):
            print(line, flush=True)


if __name__ == "__main__":
    main()
