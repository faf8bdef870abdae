"""From params.yaml to the model: which folder, what digest, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plumbline.artifact import sha256_file, sha256_json
from plumbline.base_model import load
from plumbline.base_model.folder import base_model_digest, model_folder
from plumbline.base_model.params import ModelParams

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(8)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def test_a_folder_is_found_by_path_absolute_or_relative_to_the_project(folder: Path) -> None:
    assert model_folder(ModelParams(name="tiny"), folder.parent) == folder
    assert model_folder(ModelParams(name=str(folder)), Path("/nowhere")) == folder


@pytest.mark.parametrize("name", ["models/missing/deeper", "/missing", "tiny/missing", "./missing"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(folder: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder '.*missing.*'; give an existing folder or a hub id"):
        model_folder(ModelParams(name=name), folder.parent)


@pytest.mark.parametrize(("revision", "found"), [(None, "none"), ("main", "'main'"), (COMMIT[:8], "'01234567'")])
def test_a_hub_id_needs_the_commit_that_pins_it(tmp_path: Path, revision: str | None, found: str) -> None:
    with pytest.raises(ValueError, match=rf"model.revision in params.yaml: found {found}, expected the 40 hex digits"):
        model_folder(ModelParams(name="org/model", revision=revision), tmp_path)


def test_of_a_hub_repository_only_safe_files_are_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def snapshot(name: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((f"{name}@{revision}", allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    params = ModelParams(name="org/model", revision=COMMIT)
    assert model_folder(params, tmp_path) == folder
    model_folder(params.model_copy(update={"trust_remote_code": True}), tmp_path)
    (name, patterns), (_, trusting) = asked
    assert name == f"org/model@{COMMIT}"

    def fetched(file: str, patterns: list[str]) -> bool:
        return any(Path(file).match(pattern) for pattern in patterns)

    for file in ("model-00001-of-2.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.model",
                 "merges.txt", "vocab.json", "chat_template.jinja", "README.md"):  # fmt: skip
        assert fetched(file, patterns), file
    for file in ("pytorch_model.bin", "consolidated.pth", "model.gguf", "modeling_x.py"):
        assert not fetched(file, patterns), file
    assert fetched("modeling_x.py", trusting)


def test_what_the_hub_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        OSError, match=r"'org/model' at 0123.* did not come from the hub \(OSError: no route\).*hf auth"
    ):
        model_folder(ModelParams(name="org/model", revision=COMMIT), tmp_path)


def test_the_digest_is_that_of_the_files_that_decide_an_activation(folder: Path) -> None:
    names = ("config.json", "generation_config.json", "model.safetensors")
    digest = base_model_digest(folder)
    assert digest == sha256_json({name: sha256_file(folder / name) for name in names})
    (folder / "README.md").write_text("anything")
    (folder / "tokenizer_config.json").write_text("{}")
    assert base_model_digest(folder) == digest
    seen = {digest}
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        seen.add(base_model_digest(folder))
    (folder / "modeling_own.py").write_text("pass")
    seen.add(base_model_digest(folder))
    (folder / "model-2.safetensors").write_bytes(b"")
    seen.add(base_model_digest(folder))
    assert len(seen) == 6


def test_unchanged_weights_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = base_model_digest(folder)
    monkeypatch.setattr("plumbline.base_model.folder.sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    assert base_model_digest(folder) == digest


def test_the_model_comes_in_its_own_dtype_ready_to_read(folder: Path) -> None:
    model = load.load_model(folder, "cpu")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    stored = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(model.get_submodule("model.layers.0.mlp.up_proj").weight, stored)


def test_the_tokenizer(folder: Path) -> None:
    assert load.load_tokenizer(folder)("w3 w5")["input_ids"] == [3, 5]
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="tiny: no tokenizer"):
        load.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "data"), [("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("tokenizer_config.json", "[]")]
)
def test_a_damaged_tokenizer_is_refused_with_its_folder(folder: Path, file: str, data: str) -> None:
    (folder / file).write_text(data)
    with pytest.raises(ValueError, match="tiny: transformers cannot load the tokenizer"):
        load.load_tokenizer(folder)


def test_one_model_stays_loaded_until_it_changes(folder: Path) -> None:
    model = load.loaded_model(folder, "cpu")
    assert load.loaded_model(folder, "cpu") is model
    assert load.loaded_model(folder.parent / "." / "tiny", "cpu") is model
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"].fill_(1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    changed = load.loaded_model(folder, "cpu")
    assert changed is not model
    assert changed.get_submodule("model.layers.0.mlp.up_proj").weight.eq(1).all()
    assert load._loaded.cache_info().maxsize == 1


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for use in (load.load_model, base_model_digest):
        with pytest.raises(ValueError, match=r"found pickled weights \(pytorch_model.bin\).*save_pretrained"):
            use(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"no \*.safetensors"):
        load.load_model(folder)


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 weights .* first 'model\.layers\.0\.mlp\.up_proj\.weight'"):
        load.load_model(folder)


def test_a_folder_that_is_no_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    for use in (load.load_model, base_model_digest):
        with pytest.raises(FileNotFoundError, match=r"tiny: no config\.json"):
            use(folder)
        with pytest.raises(FileNotFoundError, match="no folder"):
            use(folder / "deeper")
    with pytest.raises(FileNotFoundError, match=r"tiny: no config\.json"):
        model_folder(ModelParams(name="tiny"), folder.parent)


def test_a_gpu_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="found 'cuda', but PyTorch sees no GPU"):
        load.load_model(folder, "cuda")
