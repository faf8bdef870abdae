"""Activation statistics as an importance matrix of llama.cpp: sum of x^2 per input channel, and number of tokens.

The file has the format that `llama-imatrix` writes (llama.cpp, tools/imatrix/imatrix.cpp, `save_imatrix`) and
`llama-quantize` and `llama-imatrix --in-file` read: GGUF with general.type "imatrix", the keys imatrix.datasets,
.chunk_count and .chunk_size, and per weight the float32 tensors `<weight>.in_sum2`, (matrices, width) in numpy's order
of dimensions, and `<weight>.counts`, (matrices, 1): one matrix, or one per expert of a tensor that holds all experts of
a block. An expert that no token reached has zeros and the count 0, and llama-quantize weighs its channels alike. In
llama.cpp a chunk is a full context; here it has the length of the longest
sample. As in llama.cpp, the number of chunks follows from the number of tokens. Checked with llama.cpp's own loader,
compiled (common/imatrix-loader.cpp with ggml 0.25.3 of llama-cpp-python 0.3.36), and with the reader of gguf 0.19.

llama.cpp reorders the output rows of q and k of a Llama, but no input channels, so this file needs no reordering. It
transposes the weights of GPT-2, which transformers stores as (in, out); its input channels are those of the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.activation_stats import store
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.artifact import read_json
from plumbline.base_model.inputs import NO_INPUT
from plumbline.export.tensor_names import EXPERT, Place, architecture_of, blocks_of, llama_cpp_places

TENSOR_NAME = 63
"""Longest name of a tensor in bytes (GGML_MAX_NAME, 64, includes the terminating zero)."""


def write_imatrix(stats: Path, model: Path, model_digest: str, choice: str, out: Path) -> dict[str, Any]:
    """Write stored statistics as an importance matrix, which contains no path and no host name.

    Args:
        stats: an activation_stats artifact.
        model: folder of the base model, whose config.json names its architecture.
        model_digest: digest of that folder; the statistics must be of this model.
        choice: name of the calibration choice.
        out: the file to write.

    Returns:
        tensors (weights covered), tokens, architecture, unreached (experts' weights that no token reached).

    Raises:
        FileExistsError: `out` exists.
        ModuleNotFoundError: the package gguf is not installed.
        ValueError: the statistics are of another model, llama.cpp has no known name for the architecture or a layer,
            or no token reached a layer.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; name a new file")
    collected = store.load(stats)
    if collected.base_model_digest != model_digest:
        raise ValueError(
            f"the statistics of {choice} were collected with another model ({collected.base_model_digest[:12]}, "
            f"model.name in params.yaml has {model_digest[:12]}); run `plumbline run --only activation_stats`"
        )
    unreached = [layer for layer in collected.unreached if EXPERT.fullmatch(layer)]
    if missing := sorted(set(collected.unreached) - set(unreached)):
        raise ValueError(
            f"no token of {choice} reached {missing[0]} ({len(missing)} layers in all): an imatrix without them would "
            "leave them unweighted; choose a larger or more varied set"
        )
    config = read_json(model / "config.json")
    architecture = architecture_of(config)
    # Statistics of outputs (statistics.outputs), keys and values say nothing about the columns of a weight.
    layers = [layer for site in collected.sites.values() for layer in site.members if not layer.endswith(NO_INPUT)]
    places = llama_cpp_places([*layers, *unreached], architecture, blocks_of(config))
    sums = importance(collected, places)
    header = read_json(stats / store.HEADER)
    _write(sums, _metadata(collected, header["calibration_set"], choice), out)
    tokens = int(collected.sample_tokens.sum())
    return {"tensors": len(sums), "tokens": tokens, "architecture": architecture, "unreached": len(unreached)}


def importance(
    stats: ActivationStats, places: Mapping[str, tuple[Place, ...]]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Per weight, sorted by its name in llama.cpp: (sums of x^2 (matrices, width), numbers of tokens (matrices, 1)).

    Args:
        places: layer -> places of its weights; layers of the statistics that are not named are left out.
    """
    sites = {layer: site for site in stats.sites.values() for layer in site.members if layer in places}
    matrices: dict[str, dict[int, str]] = {}
    for layer, there in places.items():
        for place in there:
            matrices.setdefault(place.weight, {})[place.expert or 0] = layer
    entries = {}
    for weight, layers in sorted(matrices.items()):
        width = next((len(sites[layer].sum_sq) for layer in layers.values() if layer in sites), None)
        if width is None:
            continue  # no token reached any of its experts
        sums = np.zeros((max(layers) + 1, width), np.float32)
        counts = np.zeros((max(layers) + 1, 1), np.float32)
        for number, layer in layers.items():
            if layer in sites:
                sums[number], counts[number] = sites[layer].sum_sq.numpy(), sites[layer].tokens
        entries[weight] = (sums, counts)
    return entries


def _metadata(stats: ActivationStats, set_digest: str, choice: str) -> dict[str, Any]:
    lengths = stats.sample_tokens
    chunk_size = int(lengths.max())
    return {
        "general.type": "imatrix",
        "imatrix.datasets": [f"plumbline calibration set {choice}, sha256 {set_digest}"],
        "imatrix.chunk_count": max(1, int(lengths.sum()) // chunk_size),
        "imatrix.chunk_size": chunk_size,
        "plumbline.calibration_set": set_digest,
        "plumbline.base_model": stats.base_model_digest,
        "plumbline.samples": len(stats.sample_ids),
    }


def _write(
    sums: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]], metadata: dict[str, Any], out: Path
) -> None:
    import gguf

    # Drop the writer's first key, general.architecture: an imatrix has none, and no reader in llama.cpp needs it.
    writer = gguf.GGUFWriter(None, "")
    writer.kv_data[0].clear()
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    for name, (in_sum2, counts) in sums.items():
        for tensor, values in (("in_sum2", in_sum2), ("counts", counts)):
            full = f"{name}.{tensor}"
            if len(full.encode()) > TENSOR_NAME:
                raise ValueError(f"tensor name {full!r} is longer than the {TENSOR_NAME} bytes that llama.cpp reads")
            writer.add_tensor(full, values)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer.write_header_to_file(path=out)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
