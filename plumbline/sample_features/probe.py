"""The probe of signatures: statistics of the base model's activations on text that it generates itself.

A probe does not depend on the corpus, so signatures do not change when documents are added.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plumbline.file_mode import follow_umask
from plumbline.sample_features.params import SignatureParams
from plumbline.sample_features.signatures import SignatureSite

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SEED = 0
LENGTH = 512
"""Tokens of a generated text. Attention averages over more tokens in long texts, so with cells from short texts, most
tokens of a long text would be in a few cells."""
TOKENS, TOKENS_PER_CELL = 4096, 16
"""Least number of tokens in total, and per cell."""
CODE = 64
"""Dimensions of the space in which cells are clustered; wider sites are projected to it."""
FLOOR = 0.01
"""Least scale of a channel, as a share of its site's. Otherwise a channel that is constant in the generated text would
dominate all others once it varies."""
IGNORE = ("lm_head",)


@dataclass(frozen=True, eq=False)
class Probe:
    """S sites with W channels in total, K cells per site, r directions, P dimensions of `pooled`."""

    sites: tuple[SignatureSite, ...]
    dtype: str
    """Of the activations: "bfloat16", "float16", or "float32" if they are wider or of several dtypes."""
    mean: NDArray[np.float32]
    """(W,), of the activations on the generated text."""
    scale: NDArray[np.float32]
    """(W,): root mean square about the mean; positive."""
    code: NDArray[np.float32]
    """(W, CODE): per site C, so that a token's place among the cells is C^T D^-1 (x - mean)."""
    centroids: NDArray[np.float32]
    """(S, K, CODE): a token's cell is the nearest of them, the first of equals."""
    directions: NDArray[np.float32]
    """(W, r): per site R of the sketch."""
    pooling: NDArray[np.float32]
    """(W, P): from the joined means of unit length to `pooled`."""

    @property
    def width(self) -> int:
        """Channels of all sites, W."""
        return len(self.mean)


def channels(site: SignatureSite) -> slice:
    """The channels of a site among those of all."""
    return slice(site.start, site.start + site.width)


def make_probe(model: PreTrainedModel, params: SignatureParams) -> Probe:
    """Let the model generate a text and read it, and compute centre, scale and cells of its linear layers' inputs.

    It runs on one thread, so that the number of cores has no effect. The same model, settings and kind of processor
    give the same probe.

    Args:
        model: in evaluation mode; it is not changed.
        params: only `sites`, `cells`, `sketch` and `pooled` are used.

    Raises:
        ValueError: no linear layer that every token reaches, or activations that are not finite.
    """
    import torch

    from plumbline.base_model.one_thread import one_thread

    with torch.no_grad(), one_thread():
        text = own_text(model, max(TOKENS, TOKENS_PER_CELL * params.cells))
        activations = _watched(model, text, _sites_of(model, text[:1], params.sites))
        sites: list[SignatureSite] = []
        for name, seen in activations.items():
            sites.append(SignatureSite(name, seen.shape[1], sites[-1].start + sites[-1].width if sites else 0))
        width = sum(site.width for site in sites)
        mean, scale = np.empty(width, np.float32), np.empty(width, np.float32)
        code = np.zeros((width, CODE), np.float32)
        centroids = np.empty((len(sites), params.cells, CODE), np.float32)
        for number, site in enumerate(sites):
            here = channels(site)
            x: NDArray[np.float64] = activations[site.name].double().cpu().numpy()
            mean[here] = x.mean(axis=0)
            scale[here] = _floored(x.std(axis=0))
            if site.width <= CODE:
                code[here, : site.width] = np.eye(site.width, dtype=np.float32)
            else:
                code[here] = _normal(("code", number), (site.width, CODE)) / math.sqrt(CODE)
            centroids[number] = _cells((x - mean[here]) / scale[here] @ code[here], params.cells)
    dtypes = {str(seen.dtype).removeprefix("torch.") for seen in activations.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= {"bfloat16", "float16"} else "float32"
    directions = _normal(("directions",), (width, params.sketch)) / math.sqrt(params.sketch)
    pooling = _normal(("pooling",), (width, params.pooled)) / math.sqrt(params.pooled)
    return Probe(
        tuple(sites),
        dtype,
        mean,
        scale,
        code,
        centroids,
        directions.astype(np.float32),
        pooling.astype(np.float32),
    )


def own_text(model: PreTrainedModel, tokens: int) -> Tensor:
    """Seeded text of the model at temperature 1: int64 (sequences, LENGTH), at least `tokens` in total.

    Sequences are at most as long as the model's context. A model without a begin-of-text token begins with random
    tokens. The end token is suppressed, as the model has no text after it.
    """
    import torch
    from transformers import GenerationConfig

    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or LENGTH
    length = max(2, min(LENGTH, longest))
    sequences = math.ceil(tokens / length)
    begin = model.generation_config.bos_token_id if model.generation_config is not None else None
    begin = getattr(config, "bos_token_id", None) if begin is None else begin  # not every text part has one
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        starts = torch.randint(vocabulary, (sequences, 1)) if begin is None else torch.full((sequences, 1), begin)
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=length - 1,
            min_new_tokens=length - 1,
            eos_token_id=model.generation_config.eos_token_id if model.generation_config is not None else None,
            pad_token_id=0,  # no sequence ends early, so there is no padding
            remove_invalid_values=True,  # `_watched` reports NaN with site and channel
        )
        starts = starts.to(device)
        text: Tensor = model.generate(  # type: ignore[operator]
            input_ids=starts, attention_mask=torch.ones_like(starts), generation_config=settings
        )
    return text


def save_probe(probe: Probe, path: Path) -> None:
    """Write a probe as safetensors; its bytes depend on the probe alone."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(getattr(probe, name)) for name in _ARRAYS}
    about = json.dumps({"dtype": probe.dtype, "sites": [asdict(site) for site in probe.sites]}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, metadata={"probe": about})  # one key, as several would be written in any order
    follow_umask([path])


def load_probe(path: Path) -> Probe:
    """Read what `save_probe` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["probe"])
        arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    return Probe(tuple(SignatureSite(**site) for site in about["sites"]), about["dtype"], **arrays)


_ARRAYS = ("mean", "scale", "code", "centroids", "directions", "pooling")


def _sites_of(model: PreTrainedModel, text: Tensor, most: int) -> list[str]:
    """At most `most` sites that every token reaches exactly once, spread evenly over the forward pass.

    Experts that a router sends only some tokens to are left out, as their cells would not sum to the tokens.
    """
    from plumbline.base_model.inputs import LinearInputs, linear_layers, network_of

    tokens = text.numel()
    reached: dict[str, list[int]] = {}
    layers = linear_layers(model, IGNORE)
    inputs = LinearInputs(layers, lambda site, x, _: reached.setdefault(site, []).append(x.numel() // x.shape[-1]))
    with inputs.hooked():
        inputs.begin("the model's own text")
        network_of(model, layers)(input_ids=text, use_cache=False)
    names = [site for site in inputs.members() if reached[site] == [tokens]]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no linear layer that every token reaches, so there is nothing to measure; set "
            "`features.signatures: null` in params.yaml and use strategies that need none"
        )
    at = np.unique(np.linspace(0, len(names) - 1, num=min(most, len(names))).round().astype(np.int64))
    return [names[place] for place in at]


def _watched(model: PreTrainedModel, text: Tensor, sites: list[str]) -> dict[str, Tensor]:
    """The activations (tokens, width) at the sites, in order."""
    from plumbline.base_model.inputs import LinearInputs, network_of, require_finite

    layers = {name: model.get_submodule(name) for name in sites}
    seen: dict[str, Tensor] = {}
    inputs = LinearInputs(layers, lambda site, x, _: seen.update({site: x.reshape(-1, x.shape[-1]).clone()}))
    with inputs.hooked():
        inputs.begin("the model's own text")
        network_of(model, layers)(input_ids=text, use_cache=False)
    for site, x in seen.items():
        require_finite(site, "of the model's own text", x.abs().amax(dim=0))
    return {name: seen[name] for name in sites}


def _floored(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = math.sqrt(float(np.square(scale).mean()))
    return np.maximum(scale, FLOOR * whole) if whole > 0 else np.ones_like(scale)


def _cells(z: NDArray[np.float64], cells: int) -> NDArray[np.float32]:
    """Centroids of a k-means, float32 (cells, CODE)."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # with fewer distinct tokens than cells, some cells stay empty
        warnings.simplefilter("ignore", ConvergenceWarning)
        clustering = KMeans(n_clusters=cells, n_init=1, max_iter=100, random_state=SEED).fit(z)
    centres: NDArray[np.float32] = clustering.cluster_centers_.astype(np.float32)
    return centres


def _normal(purpose: tuple[Any, ...], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Standard normal numbers, float32, from a separate random stream per purpose."""
    seed = [SEED, *(int.from_bytes(str(part).encode(), "big") for part in purpose)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).standard_normal(shape).astype(np.float32)
