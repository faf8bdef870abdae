"""A scheme whose parts do not go together is refused where it is read, with the reason."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from plumbline.quantized_model.params import SchemeParams

A8 = {"range": "minmax"}
REFUSED = [
    ({"method": "gptq", "weight_bits": 8, "activations": A8, "group_size": 128}, "remove group_size"),
    ({"method": "rtn", "weight_bits": 4, "activations": A8}, "weight_bits: 8"),
    ({"method": "rtn", "damping": 0.1}, "damping acts on method gptq and adaround only"),
    ({"method": "rtn", "block_size": 64}, "block_size acts on method gptq only"),
    ({"method": "adaround", "act_order": True}, "act_order acts on method gptq only"),
    ({"method": "adaround", "propagate": "quantized"}, "propagate acts on method gptq only"),
    ({"method": "rtn", "per_tensor": True, "group_size": 128}, "per_tensor: true with group_size 128: remove one"),
    ({"method": "rtn", "percentile": 99}, "percentile acts with range: percentile only"),
    (
        {"method": "rtn", "range": "percentile", "group_size": 128},
        "only in groups of 1000 weights or more; lower the percentile",
    ),
    (
        {"method": "rtn", "range": "percentile", "percentile": 99, "group_size": 99},
        "only in groups of 100 weights or more",
    ),
    (
        {"method": "rtn", "range": "percentile", "percentile": 99, "group_size": 199, "symmetric": False},
        "only in groups of 200 weights or more",
    ),
    ({"method": "rtn", "range": "percentile", "percentile": 100, "group_size": 128}, "only below 100"),
    ({"method": "rtn", "smoothing": 0.7}, "smoothing acts on transform: smoothquant only"),
    ({"method": "rtn", "transform": "smoothquant"}, "quantizes no activations; add activations"),
    ({"method": "rtn", "weight_bits": 8, "activations": A8, "transform": "awq"}, "write transform: smoothquant"),
    ({"method": "gptq", "transform": "awq", "propagate": "quantized"}, "remove one of them"),
    ({"method": "gptq", "weight_bits": 4, "mixed": {"average_bits": 3.5}}, "weight_bits and mixed"),
    (
        {"method": "gptq", "symmetric": False, "mixed": {"average_bits": 3.5}},
        "packed zero points only where all",
    ),
    ({"method": "gptq", "activations": A8, "mixed": {"average_bits": 3.5}}, "write weight_bits: 8, or"),
    ({"method": "gptq", "mixed": {"average_bits": 5, "widths": [3, 4]}}, "not between the widths"),
    ({"method": "gptq", "mixed": {"average_bits": 3.5, "widths": [4]}}, "two or more different widths"),
    ({"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True, "range": "mse"}}, "remove range, or"),
    ({"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True, "symmetric": False}}, "symmetric in kernels"),
    ({"method": "rtn", "weight_bits": 8, "activations": {"percentile": 99}}, "activations.percentile acts with"),
    ({"method": "rtn", "weight_bits": 5}, "weight_bits"),
    ({"method": "rtn", "range": "hessian"}, "write range: mse, range: imatrix, or method: gptq"),
    ({"method": "gptq", "signed_scale": True, "symmetric": False}, "a zero point places the grid already"),
    ({"method": "gptq", "weight_bits": 8, "activations": A8, "signed_scale": True}, "remove signed_scale"),
    ({"method": "rtn", "weight_bits": 8, "activations": {"range": "hessian"}}, "activations"),
]


@pytest.mark.parametrize(("entry", "fix"), REFUSED)
def test_refused_with_the_fix(entry: dict[str, object], fix: str) -> None:
    with pytest.raises(ValidationError, match=fix):
        SchemeParams.model_validate(entry)


@pytest.mark.parametrize(
    "entry",
    [
        {"method": "rtn", "weight_bits": 8, "activations": A8},
        {"method": "gptq", "weight_bits": 8, "activations": A8},
        {"method": "rtn", "weight_bits": 4, "group_size": 128},
        {"method": "gptq", "weight_bits": 3, "group_size": 128, "damping": 0.05, "block_size": 32},
        {"method": "gptq", "weight_bits": 4},
    ],
)
def test_accepted(entry: dict[str, object]) -> None:
    scheme = SchemeParams.model_validate(entry)
    assert SchemeParams.model_validate(scheme.model_dump()) == scheme


@pytest.mark.parametrize(
    ("entry", "reads"),
    [
        ({"method": "rtn"}, set()),
        ({"method": "gptq"}, {"hessian"}),
        ({"method": "adaround"}, {"hessian"}),
        ({"method": "rtn", "mixed": {"average_bits": 3.5}}, {"hessian"}),
        ({"method": "rtn", "transform": "awq"}, {"hessian", "sums"}),
        ({"method": "rtn", "weight_bits": 8, "activations": {}}, {"ranges"}),
        ({"method": "rtn", "weight_bits": 8, "activations": {"range": "mse"}}, {"ranges", "histogram"}),
        ({"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}}, set()),
    ],
)
def test_what_a_scheme_reads(entry: dict[str, object], reads: set[str]) -> None:
    assert set(SchemeParams.model_validate(entry).reads) == reads


def test_reading_params_does_not_import_torch() -> None:
    code = "import sys, plumbline.quantized_model.params; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
