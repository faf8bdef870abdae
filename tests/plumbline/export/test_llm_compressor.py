"""The folder for llm-compressor. That it is read as it should be is shown in tests/integration/test_peer.py."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch.utils.data import DataLoader
from transformers import default_data_collator

from plumbline.artifact import sha256_file
from plumbline.export.llm_compressor import hand_over
from plumbline.quantized_model.params import SchemeParams

GPTQ = SchemeParams(method="gptq", weight_bits=4, group_size=128)


def test_the_samples_are_those_of_the_set_in_order_and_nothing_else(
    calibration_set: Path, samples: list[np.ndarray], tmp_path: Path
) -> None:
    about = hand_over(calibration_set, "w4a16-gptq", GPTQ, tmp_path / "out")
    found = datasets.load_from_disk(str(tmp_path / "out" / "samples"))
    assert found.column_names == ["input_ids", "attention_mask"]
    assert [row["input_ids"] for row in found] == [ids.tolist() for ids in samples]
    assert [row["attention_mask"] for row in found] == [[1] * len(ids) for ids in samples]
    assert about["samples"] == 6 and about["tokens"] == 7 + 512 + 33 + 600 + 1 + 64
    assert (about["shortest"], about["longest"]) == (1, 600)


def test_the_loader_of_the_script_gives_batches_of_one_whole_sample(
    calibration_set: Path, samples: list[np.ndarray], tmp_path: Path
) -> None:
    hand_over(calibration_set, "w4a16-gptq", GPTQ, tmp_path / "out")
    call = loader_call(tmp_path / "out" / "quantize.py")
    assert call == "DataLoader(dataset, batch_size=1, shuffle=False, collate_fn=default_data_collator)"
    dataset = datasets.load_from_disk(str(tmp_path / "out" / "samples"))
    batches = list(DataLoader(dataset, batch_size=1, shuffle=False, collate_fn=default_data_collator))
    for batch, ids in zip(batches, samples, strict=True):
        assert batch["input_ids"].dtype == torch.int64
        assert batch["input_ids"].tolist() == [ids.tolist()]
        assert batch["attention_mask"].tolist() == [[1] * len(ids)]


def loader_call(script: Path) -> str:
    """The one call of DataLoader in a script."""
    calls = [
        node
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "DataLoader"
    ]
    (call,) = calls
    return ast.unparse(call)


def test_the_script_holds_the_digest_that_its_samples_have(calibration_set: Path, tmp_path: Path) -> None:
    hand_over(calibration_set, "w4a16-gptq", GPTQ, tmp_path / "out")
    script = (tmp_path / "out" / "quantize.py").read_text()
    digest, fingerprint = (re.search(rf'{name} = "([0-9a-f]+)"', script)[1] for name in ("DIGEST", "FINGERPRINT"))
    rows = datasets.load_from_disk(str(tmp_path / "out" / "samples"))["input_ids"]
    names = [hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest() for ids in rows]
    text = json.dumps([names, fingerprint], separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    assert digest == json.loads((calibration_set / "manifest.json").read_text())["digest"]


def test_the_same_set_gives_the_same_bytes_wherever_it_goes(calibration_set: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        hand_over(calibration_set, "w4a16-gptq", GPTQ, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append({str(path.relative_to(tmp_path / name)): sha256_file(path) for path in files})
        assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]
    assert digests[0] == digests[1] and len(digests[0]) == 6
    shutil.rmtree(tmp_path / "one")


def test_recipe_and_readme_say_the_scheme(calibration_set: Path, tmp_path: Path) -> None:
    hand_over(calibration_set, "w4a16-gptq", GPTQ, tmp_path / "out")
    (stage,) = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text()).values()
    assert list(stage["quantization_modifiers"]) == ["GPTQModifier"]
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "w4a16-gptq" in readme and "6 samples with 1217 tokens (1 to 600 each)" in readme
    assert "reads each sample once" in readme and "{" not in readme
    hand_over(calibration_set, "w4a16-rtn", SchemeParams(method="rtn"), tmp_path / "rtn")
    assert "needs no samples" in (tmp_path / "rtn" / "README.md").read_text()


def test_what_lies_there_is_not_overwritten(calibration_set: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is not empty"):
        hand_over(calibration_set, "w4a16-gptq", GPTQ, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_altered_set_is_refused(calibration_set: Path, tmp_path: Path) -> None:
    file = calibration_set / "samples.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(ValueError, match="one of the two was altered"):
        hand_over(calibration_set, "w4a16-gptq", GPTQ, tmp_path / "out")
    assert not (tmp_path / "out").exists()
