"""A copy that save_pretrained rewrote is verified; one in which a number differs is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.provenance import audit
from tests.helpers.small_chain import MODEL, link, states


@pytest.fixture(scope="module")
def saved(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model loaded and saved again by transformers; its record was left behind."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = tmp_path_factory.mktemp("resaved") / "model"
    AutoModelForCausalLM.from_pretrained(pristine / MODEL).save_pretrained(place)
    AutoTokenizer.from_pretrained(pristine / MODEL).save_pretrained(place)
    return place


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_copy_without_its_record_is_verified_with_a_note(copy: Path, pristine: Path) -> None:
    assert (copy / "config.json").read_bytes() != (pristine / MODEL / "config.json").read_bytes()
    assert not (copy / "calibration.json").exists()
    result = audit(copy, pristine)
    assert states(result) == {}
    meaning = link(result, "model folder").meaning
    assert meaning.startswith(f"{MODEL}, saved again (config.json") and "every deciding field are the same" in meaning
    assert f"that of {MODEL} has the SHA-256" in link(result, "record").meaning
    names = {link.name for link in result.links}
    assert {"texts", "dvc.lock", "documents"} <= names


def test_with_its_record_and_from_the_cache_alone(copy: Path, workspace: Path) -> None:
    shutil.copy(workspace / MODEL / "calibration.json", copy)
    assert states(audit(copy, workspace)) == {}
    shutil.rmtree(workspace / MODEL)
    result = audit(copy, workspace)
    assert states(result) == {} and link(result, "model folder").meaning.startswith("DVC's cache, saved again")


def test_other_files_with_the_same_tensors(copy: Path, pristine: Path) -> None:
    """As another shard size gives."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: tensors[name] for name in part}, copy / f"model-0000{number}-of-00002.safetensors")
    result = audit(copy, pristine)
    assert states(result) == {}
    assert "the same tensors, byte for byte" in link(result, "weights").meaning


def json_of(name: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return change


def scheme(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 16
    (folder / "config.json").write_text(json.dumps(content))


def tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + torch.tensor(0.01, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")


def dtype(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, folder / "model.safetensors"
    )


CHANGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a field of the model": (json_of("config.json", rms_norm_eps=1e-3), "model folder", "rms_norm_eps"),
    "a field that was absent": (json_of("config.json", attention_bias=True), "model folder", "attention_bias"),
    "a field of no model": (json_of("config.json", evil=1), "model folder", "evil"),
    "code": (json_of("config.json", auto_map={"AutoModel": "a/b--c.D"}), "model folder", "auto_map"),
    "the scheme": (scheme, "model folder", "config_groups"),
    "sampling": (json_of("generation_config.json", temperature=2.0, do_sample=True), "model folder", "temperature"),
    "sampling removed": (
        lambda f: (f / "generation_config.json").unlink(),
        "model folder",
        "generation_config.json is gone",
    ),
    "a tensor": (tensor, "weights", "model.safetensors has other bytes"),
    "wider tensors": (dtype, "weights", "model.safetensors has other bytes"),
    "weights of another kind": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "weights", "is not on record"),
    "a note": (lambda f: (f / "notes.txt").write_text("x"), "model folder", "notes.txt was added"),
    "the template": (lambda f: (f / "chat_template.jinja").write_text("{{ 1 }}"), "tokenizer", "chat_template differ"),
    "no weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "weights",
        "model.safetensors has other bytes",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_decides_a_number_is_not_rewritten(what: str, copy: Path, pristine: Path) -> None:
    change, broken, says = CHANGES[what]
    change(copy)
    result = audit(copy, pristine)
    assert states(result).get(broken) == "tampered", states(result)
    assert says in link(result, broken).meaning


def test_harmless_fields_and_prose(copy: Path, pristine: Path) -> None:
    json_of("config.json", transformers_version="9.9", _name_or_path="/srv/x")(copy)
    (copy / "README.md").write_text("served by us")
    assert states(audit(copy, pristine)) == {}


def test_in_place_of_the_recorded_folder_it_is_tampered(copy: Path, workspace: Path) -> None:
    """dvc.lock records that folder's bytes."""
    shutil.rmtree(workspace / MODEL)
    shutil.copytree(copy, workspace / MODEL)
    assert states(audit(workspace / MODEL, workspace))["model folder"] == "tampered"
