"""The folder of the base model: its place, its contents and its digest. Nothing here imports PyTorch."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_file, sha256_json
from plumbline.base_model.params import ModelParams

BUNDLED = Path(__file__).parent / "llama-stdlib-6m"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER = ("tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "*.jinja")
MODELOPT = "hf_quant_config.json"
"""Where NVIDIA's Model-Optimizer describes its quantization."""
DEQUANTIZED = ("fp8", "mxfp4", "compressed-tensors")
"""The `quant_method`s whose weights can be dequantized while they are loaded (dequantize.py)."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def model_folder(params: ModelParams, root: Path) -> Path:
    """The folder of the base model: a local one, or the snapshot of a hub commit (downloaded once to the hub's cache).

    Args:
        params: `name` is a folder (absolute, or relative to `root`) or a hub id.
        root: the workspace.

    Raises:
        FileNotFoundError: the folder does not exist, or has no config.json.
        ValueError: a hub id without the commit that pins it.
        OSError: the hub cannot be reached, or does not have the commit.
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
        revision = "none" if params.revision is None else repr(params.revision)
        raise ValueError(
            f"model.revision in params.yaml: found {revision}, expected the 40 hex digits of a commit. {name!r} is no "
            f"folder here, so it is a hub id, and a branch or tag would let the model change under the same "
            f"parameters; the commits are listed at https://huggingface.co/{name}/commits"
        )
    import huggingface_hub

    code = ["*.py"] if params.trust_remote_code else []
    patterns = [*WEIGHTS, "*.json", *TOKENIZER, "README.md", *code]  # the card names the licence
    try:
        snapshot = Path(huggingface_hub.snapshot_download(name, revision=params.revision, allow_patterns=patterns))
    except OSError as error:  # every error of the hub's client is an OSError
        raise OSError(
            f"model {name!r} at {params.revision} did not come from the hub ({type(error).__name__}: {error}). Check "
            "name, revision and network, log in with `hf auth login` if it is gated, or give a local folder"
        ) from error
    _config(snapshot)
    return snapshot


def base_model_digest(folder: Path) -> str:
    """SHA-256 (hex) over name and SHA-256 of every file that decides an activation.

    These are config.json, generation_config.json, the safetensors with their index, and the model's own code. A file is
    read once per process while its size and modification time stay the same.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: no safetensors.
    """
    require_weights(folder)
    return sha256_json({name: _sha256(*_identity(folder / name)) for name in weight_files(folder)})


def weight_files(folder: Path) -> list[str]:
    """Names of the files that decide an activation, sorted."""
    return _matching(folder, *WEIGHTS, "*.py", "config.json", "generation_config.json")


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the files that decide a token, sorted."""
    return _matching(folder, *TOKENIZER, "*.py", "added_tokens.json")


def _matching(folder: Path, *patterns: str) -> list[str]:
    return sorted({path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def local_folder(params: ModelParams, root: Path) -> Path | None:
    """The folder of a base model that is not on the hub, whether or not it holds one; None: it is on the hub."""
    place = root / params.name
    return place if place.is_dir() else BUNDLED if params.name == BUNDLED.name else None


def require_weights(folder: Path) -> None:
    """Refuse a folder without a model.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: no safetensors.
    """
    _config(folder)
    _weights(folder)


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """How config.json says that the weights are quantized; None if they are not.

    Raises:
        ValueError: config.json is no JSON object, or says it in no mapping.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder.name}/config.json: not a JSON object ({error}); fetch it again") from error
    for part in parts:  # a multimodal model may say it of its text part alone
        for key in ("quantization_config", "compression_config"):
            if not part.get(key):
                continue
            if not isinstance(part[key], dict):
                raise ValueError(
                    f"{folder.name}/config.json: {key} is {part[key]!r:.60}, expected a mapping; restore the "
                    "config.json that belongs to the weights"
                )
            return dict(part[key])
    if (folder / MODELOPT).is_file():
        return {"quant_method": "modelopt"}
    return None


def require_full_precision(folder: Path, dequantize: bool) -> None:
    """Refuse quantized weights as a base model, unless params.yaml asks for their dequantized values.

    Raises:
        ValueError: the weights are quantized and `dequantize` is false, or transformers does not dequantize their kind;
            or they are not quantized and `dequantize` is true.
    """
    quantization = quantization_of(folder)
    if quantization is None:
        if dequantize:
            raise ValueError(
                f"model.dequantize in params.yaml: found true, but config.json of {folder.name} has no "
                "quantization_config: its weights are not quantized; take the line out"
            )
        return
    method = str(quantization.get("quant_method") or "unnamed")
    problem = f"{folder.name}: its weights are quantized (quantization_config in config.json: {method})"
    if method not in DEQUANTIZED:
        raise ValueError(
            f"{problem}, and only {', '.join(DEQUANTIZED)} can be dequantized here; give model.name the model in full "
            "precision"
        )
    if not dequantize:
        raise ValueError(
            f"{problem}. Statistics and rounding need the weights in full precision: give model.name that model. Where "
            "there is none, say `model: {dequantize: true}` in params.yaml: the weights are then the dequantized ones, "
            "with the rounding errors that they have, and every artifact says so"
        )


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
