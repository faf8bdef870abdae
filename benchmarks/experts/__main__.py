"""Which tokens the statistics of experts should hold: `python -m benchmarks.experts`.

Grows a mixture of experts from the bundled model (grow.py), says what its routing is worth, and compares GPTQ of the
experts under every `statistics.experts` and `expert_floor` with rounding to nearest: by the KL divergence to the
mixture on held-out documents, on the same random calibration sets. docs/experts.md discusses the table. Stopped and
started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.experts.grow import grown
from benchmarks.experts.routing import description
from benchmarks.experts.study import Plan, lines, measure, read
from benchmarks.experts.texts import windows
from plumbline.base_model.folder import BUNDLED

WORK = Path(__file__).resolve().parents[2] / ".plumbline" / "experts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5, help="random calibration sets of each size (5)")
    parser.add_argument("--samples", nargs="+", type=int, default=[8, 32], help="sizes of calibration sets (8 32)")
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3], help="widths (4 3)")
    parser.add_argument("--steps", type=int, default=40, help="training steps of the mixture (40)")
    parser.add_argument("--pool", type=int, default=1024, help="windows to train on and to draw sets from (1024)")
    parser.add_argument("--held-out", type=int, default=32, help="windows to judge by, of as many documents (32)")
    parser.add_argument("--work", type=Path, default=WORK, help="where all is kept")
    arguments = parser.parse_args()
    if arguments.draws < 2:
        parser.error("--draws: two or more, since the spread of draws is part of every interval")
    pool = windows("pool", arguments.pool, arguments.work)
    held_out = windows("report", arguments.held_out, arguments.work, per_document=1)
    folder = grown(BUNDLED, arguments.work / f"mixture-{arguments.steps}", pool.ids, arguments.steps)
    plan = Plan(sorted(arguments.samples), arguments.draws, arguments.bits)
    work = arguments.work / f"cells-{arguments.steps}-{arguments.pool}-{arguments.held_out}"
    work.mkdir(exist_ok=True)
    measure(folder, pool, held_out, plan, work)
    print("\n".join([*description(folder, held_out), "", *lines(read(plan, work))]))


if __name__ == "__main__":
    main()
