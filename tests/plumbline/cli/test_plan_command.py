"""`plumbline plan`: from a config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import GPT2Config, LlamaConfig

from plumbline.cli.main import main


def planned(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config.json of a Llama with the widths of a published model of 8 B weights; no weights beside it."""
    sizes: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    LlamaConfig(**sizes, **heads, dtype="bfloat16").save_pretrained(tmp_path)
    return tmp_path / "config.json"


def test_a_scheme_is_planned_without_weights(config: Path) -> None:
    result = planned(str(config), "--scheme", "w4a16-gptq")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].endswith(": LlamaForCausalLM, bfloat16")
    # 32 layers of 4096 × (2 × 4096 + 2 × 1024) + 3 × 4096 × 14336 weights with 4 + 16 / 128 bits, embedding and head
    assert lines[2] == ("w4a16-gptq: 86.9 % of 8.03 B weights quantized, 5.68 bits per weight, 5.70 GB (base 16.06 GB)")
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["mlp"][1:8] == ["5.64", "B", "70.2", "%", "100.0", "%", "2.91"]
    assert rows["head"][5:7] == ["0.0", "%"]
    assert "the scheme's ignore: lm_head (lm_head.weight)" in result.output


def test_a_folder_does_as_well_and_the_grid_is_the_default(config: Path) -> None:
    result = planned(str(config.parent))
    assert [line.split(":")[0] for line in result.output.splitlines() if " weights quantized, " in line] == [
        "w8a8-minmax",
        "w4a16-rtn",
        "w4a16-gptq",
        "w3a16-gptq",
    ]


def test_without_a_model_it_is_that_of_the_workspace() -> None:
    assert planned("--scheme", "w4a16-rtn").output.startswith("llama-stdlib-6m: LlamaForCausalLM, ")


def test_a_quantized_checkpoint_is_named(config: Path) -> None:
    entries = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(entries))
    assert (
        "The checkpoint itself is fp8; sizes are those of its weights in full precision."
        in planned(str(config), "--scheme", "w4a16-rtn").output
    )


def test_what_a_scheme_refuses_is_said(tmp_path: Path) -> None:
    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    result = planned(str(tmp_path), "--scheme", "w4a16-rtn")
    assert result.exit_code == 0
    assert "w4a16-rtn: refused: no Linear to quantize in GPT2LMHeadModel" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "w5"], "no scheme 'w5' in params.yaml; there: w8a8-minmax,"),
        ([str(Path(__file__))], "expected a folder, or a file named config.json"),
        ([str(Path(__file__).parent)], "no config.json"),
    ],
)
def test_errors_say_what_to_do(arguments: list[str], message: str) -> None:
    result = planned(*arguments)
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output
