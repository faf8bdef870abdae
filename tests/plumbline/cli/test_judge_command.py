"""`plumbline judge`: models of several quantizers against their base model, without a workspace."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import LlamaForCausalLM

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.cli.main import main
from tests.helpers.quantized_checkpoints import set_quantization
from tests.helpers.small_chain import MODEL, chain


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, ours quantized to 4 bits (compressed-tensors), and the base model with noise."""
    root = chain(tmp_path_factory.mktemp("judge") / "chain", "random")
    shutil.copytree(root / MODEL, root / "four-bits")
    shutil.copytree(root / "base", root / "noisy")
    model = LlamaForCausalLM.from_pretrained(root / "base", dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(root / "noisy")
    return root


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one: no workspace around."""
    monkeypatch.delenv("PLUMBLINE_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judge(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["judge", *map(str, arguments)], env={"COLUMNS": "80"})


def common(root: Path) -> list[Any]:
    return ["--base", root / "base", "--texts", root / "texts", "--device", "cpu"]


def test_several_make_a_table_a_page_and_files(root: Path, elsewhere: Path) -> None:
    folders = [root / "four-bits", root / "noisy"]
    result = judge(*folders, *common(root), "--page", "pages/p.html", "--out", "out")
    assert result.exit_code == 0, result.output
    assert "Against base, on 40 documents" in result.output
    assert "noisy is farther from the base model than four-bits" in " ".join(result.output.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
    content = json.loads((elsewhere / "out/judgement.json").read_text())
    assert content["against"] == "four-bits" and [m["method"] for m in content["models"]] == [
        "compressed-tensors",
        "not quantized",
    ]
    table = pq.read_table(elsewhere / "out/documents.parquet")
    assert table.num_rows == 80 and set(table["model"].to_pylist()) == {"four-bits", "noisy"}
    html = (elsewhere / "pages/p.html").read_text(encoding="utf-8")
    assert content["headline"] in html and "http" not in html and content["base_model"]["digest"][:16] in html


def test_kept_answers_give_the_same_figures_without_the_base_model(
    root: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [root / "four-bits", *common(root), "--json", "--tokens", 500, "--reference-logits", "kept.safetensors"]
    first = judge(*arguments)
    assert first.exit_code == 0, first.output
    monkeypatch.setattr(BaseCheckpoint, "load", lambda self: pytest.fail("the base model was loaded"))
    again = judge(*arguments)
    assert json.loads(again.stdout) == json.loads(first.stdout)
    changed = judge(*arguments, "--max-length", 20)
    assert changed.exit_code == 1 and "holds the answers of another tokenizer" in changed.output


def test_against_names_the_checkpoint_to_compare_with(root: Path, elsewhere: Path) -> None:
    result = judge(root / "noisy", *common(root), "--against", root / "four-bits", "--json")
    content = json.loads(result.stdout)
    assert content["against"] == "four-bits" and len(content["models"]) == 2
    alone = json.loads(judge(root / "base", *common(root), "--json").stdout)
    assert alone["against"] is None and alone["headline"] == "base gives the base model's probabilities, bit for bit."


def test_two_of_one_name_are_told_apart(root: Path, elsewhere: Path) -> None:
    shutil.copytree(root / "four-bits", elsewhere / "other/four-bits")
    content = json.loads(judge(root / "four-bits", "other/four-bits", *common(root), "--json").stdout)
    assert [model["name"] for model in content["models"]] == ["chain/four-bits", "other/four-bits"]
    assert "give the same divergence on every document" in content["headline"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("gptq", "transformers reads gptq with the packages? .*gptqmodel"),
        ("auto-round", "with the package auto-round, which is not installed; `pip install auto-round`"),
        ("modelopt", "no reader for quant_method 'modelopt'; Model-Optimizer's unified checkpoints are read by vLLM"),
        ("homemade", "no reader for quant_method 'homemade'; export it as compressed-tensors"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_work(
    root: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, method: str, message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(BaseCheckpoint, "load", lambda self: pytest.fail("the base model was loaded"))
    shutil.copytree(root / "base", "quantized")
    set_quantization(elsewhere / "quantized", {"quant_method": method})
    result = judge("quantized", *common(root))
    assert result.exit_code == 1
    assert re.search(message, result.output), result.output


def test_bad_arguments_are_sentences(root: Path, elsewhere: Path) -> None:
    (elsewhere / "empty").mkdir()
    (elsewhere / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (elsewhere / "two" / name).write_bytes(b"GGUF")
    for folder, message in (
        ("none", "none does not exist"),
        ("empty", "no config.json and no .gguf file"),
        ("two", "holds 2 .gguf files; name the one that is meant"),
    ):
        result = judge(folder, *common(root))
        assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
    texts = ["--texts", root / "texts"]
    assert "--revision with the 40 hex digits" in judge(root / "noisy", "--base", "org/name", *texts).output
    quantized = judge(root / "noisy", "--base", root / "four-bits", *texts)
    assert quantized.exit_code == 1 and "or --dequantize" in quantized.output
    long = judge(root / "noisy", *common(root), "--max-length", 65)
    assert "--max-length: found 65, but the base model reads at most 64" in long.output


def test_a_gguf_file_is_dequantized(root: Path, elsewhere: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers loads GGUF with accelerate")
    from tests.helpers.gguf_file import write_gguf

    write_gguf(root / "base", elsewhere / "base-f32.gguf")
    content = json.loads(judge("base-f32.gguf", *common(root), "--json").stdout)
    [model] = content["models"]
    assert model["method"] == "gguf" and model["name"] == "base-f32" and model["kl_mean"] < 1e-3
