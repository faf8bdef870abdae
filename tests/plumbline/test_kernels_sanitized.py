"""The C code of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer, by the drivers in tests/kernels."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from plumbline.kernels import PACKAGE

DRIVERS = Path(__file__).resolve().parents[1] / "kernels"
SOURCES = [
    "activation_stats/kernel.c",
    "quantized_model/solver.c",
    "quantized_model/descent.c",
    "quantized_model/range_search.c",
]
SANITIZED = ["-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, whose sanitizers check the kernels"),
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_kernel_stays_within_its_buffers_and_the_language(source: str, tmp_path: Path) -> None:
    kernel, program = PACKAGE / source, tmp_path / "driver"
    flags = [*SANITIZED, "-fno-omit-frame-pointer", "-ffp-contract=off", "-fopenmp"]
    files = [str(DRIVERS / kernel.name), str(kernel)]
    built = subprocess.run(["gcc", *flags, "-o", str(program), *files, "-lm"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
