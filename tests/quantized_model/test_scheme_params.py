"""A scheme whose parts do not go together is refused where it is read, with the reason."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from assets.quantized_model.params import SchemeParams

A8 = {"range": "minmax"}
REFUSED = [
    ({"method": "gptq", "weight_bits": 8, "activations": A8, "group_size": 128}, "remove group_size"),
    ({"method": "rtn", "weight_bits": 4, "activations": A8}, "weight_bits: 8"),
    ({"method": "rtn", "damping": 0.1}, "damping acts on method gptq and adaround only"),
    ({"method": "rtn", "block_size": 64}, "block_size acts on method gptq only"),
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


def test_reading_params_does_not_import_torch() -> None:
    code = "import sys, assets.quantized_model.params; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
