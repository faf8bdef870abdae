"""From `model:` in params.yaml to a folder, its digest, and the model and tokenizer in it."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from plumbline.artifact import sha256_file, sha256_json
from plumbline.base_model.bfloat16 import with_wide_products
from plumbline.base_model.params import ModelParams
from plumbline.base_model.threads import settle_threads

Device = Literal["auto", "cpu", "cuda"]

BUNDLED = Path(__file__).parent / "llama-stdlib-6m"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER = ("tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "*.jinja")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def model_folder(params: ModelParams, root: Path) -> Path:
    """The folder of the base model: a local one, or the snapshot of a hub commit (downloaded once, to the hub's cache).

    Args:
        params: `name` is a folder (absolute, or relative to `root`) or else a hub id.
        root: the project.

    Raises:
        FileNotFoundError: the folder does not exist, or has no config.json.
        ValueError: a hub id without the commit that pins it.
        OSError: the hub cannot be reached, or does not have it.
    """
    name, local = params.name, root / params.name
    if local.is_dir():
        _config(local)
        return local
    if name == BUNDLED.name:
        return BUNDLED
    if not HUB_ID.fullmatch(name) or (root / name.split("/")[0]).is_dir():
        raise FileNotFoundError(f"model.name in params.yaml: no folder {name!r}; give an existing folder or a hub id")
    if params.revision is None or not COMMIT.fullmatch(params.revision):
        found = "none" if params.revision is None else repr(params.revision)
        raise ValueError(
            f"model.revision in params.yaml: found {found}, expected the 40 hex digits of a commit. {name!r} is no "
            f"folder here, so it is a hub id, and a branch or tag would let the model change under the same "
            f"parameters; the commits are listed at https://huggingface.co/{name}/commits"
        )
    code = ["*.py"] if params.trust_remote_code else []
    try:
        found = snapshot_download(
            name, revision=params.revision, allow_patterns=[*WEIGHTS, "*.json", *TOKENIZER, *code]
        )
    except OSError as error:  # every error of the hub's client is one
        raise OSError(
            f"model {name!r} at {params.revision} did not come from the hub ({type(error).__name__}: {error}). Check "
            "name, revision and network, log in with `hf auth login` if it is gated, or give a local folder"
        ) from error
    _config(Path(found))
    return Path(found)


def base_model_digest(folder: Path) -> str:
    """SHA-256 (hex) over name and SHA-256 of every file that decides an activation.

    config.json, generation_config.json, the safetensors with their index, and code that the model brings. Files are
    read once per process as long as size and time of change stay the same.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: no safetensors.
    """
    require_weights(folder)
    names = {path.name for pattern in (*WEIGHTS, "*.py") for path in folder.glob(pattern)}
    names |= {name for name in ("config.json", "generation_config.json") if (folder / name).is_file()}
    return sha256_json({name: _sha256(*_identity(folder / name)) for name in sorted(names)})


def load_model(folder: Path, device: Device = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal LM in the dtype it is stored in, in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: no safetensors (pickled weights run code when they are opened), a weight is missing, or "cuda" was
            asked for and there is none.
    """
    require_weights(folder)
    settle_threads()
    target = torch_device(device)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    require_complete(folder, info["missing_keys"])
    model.requires_grad_(False)
    return with_wide_products(model.eval().to(target))


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        FileNotFoundError: the folder has none.
    """
    if not any(True for pattern in ("tokenizer*", "*.model", "vocab.*") for _ in folder.glob(pattern)):
        raise FileNotFoundError(
            f"{folder.name}: no tokenizer (tokenizer.json, tokenizer.model or vocab.*); copy the model's own there"
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)


def loaded_model(folder: Path, device: Device = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """`load_model`, but the last model stays loaded, so that the partitions of one run share it.

    One model at a time: another folder, changed weights or another device push it out. It belongs to every caller:
    leave weights, mode and hooks as they were.
    """
    return _loaded(folder.resolve(), base_model_digest(folder), torch_device(device), trust_remote_code)


@lru_cache(maxsize=1)
def _loaded(folder: Path, digest: str, device: Device, trust_remote_code: bool) -> PreTrainedModel:
    return load_model(folder, device, trust_remote_code)


def require_complete(folder: Path, missing: Collection[str]) -> None:
    """Refuse a checkpoint that lacks weights, in place of which transformers would go on with random numbers.

    Raises:
        ValueError: any is missing.
    """
    if missing:
        raise ValueError(
            f"{folder.name}: the safetensors lack {len(missing)} weights that config.json calls for, first "
            f"{min(missing)!r}; the download is incomplete, or config.json belongs to another model"
        )


def require_weights(folder: Path) -> None:
    """Refuse a folder without a model.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: no safetensors.
    """
    _config(folder)
    _weights(folder)


def torch_device(device: Device) -> Device:
    """ "cpu" or "cuda" for `model.device` in params.yaml.

    Raises:
        ValueError: "cuda" where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device in params.yaml: found 'cuda', but PyTorch sees no GPU; say 'auto' or 'cpu'")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _config(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; give model.name in params.yaml an existing one")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder.name}: no config.json; expected a Hugging Face folder as save_pretrained writes it"
        )


def _weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"{folder.name}: found pickled weights ({pickled[0]}), which run code when they are opened; expected "
            "safetensors. Where you trust the file, convert it once: load it with from_pretrained, save_pretrained(...)"
        )
    raise ValueError(f"{folder.name}: no *.safetensors; the download is incomplete, or this is not a model")


def _identity(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)
