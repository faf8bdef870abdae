"""The base model's answers in one file, to be compared with any number of checkpoints without the base model.

The file holds all logits in the dtype in which the model gave them. Less would not do: KL in both directions needs the
whole vocabulary, and the most probable k tokens with one number for the rest would give a lower bound. It is written
and read a batch at a time. Beside the logits there are the outputs of the layers for some samples.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from plumbline.base_model.tensor_reader import CODES
from plumbline.divergence import BasePrediction, predict
from plumbline.evaluation.held_out import HeldOut, HeldOutBatch, batches, predicted_logits

LAYER_TOKENS = 2048
"""Tokens of the samples whose layer outputs are compared."""
FORMAT = "plumbline reference logits 1"


@dataclass(frozen=True)
class ReferenceKey:
    """What the answers depend on."""

    base_model: str
    """Digest of its weights and configuration."""
    tokenizer: str
    """Fingerprint of the tokenization."""
    texts: str
    """Digest of the samples in order."""

    def as_dict(self) -> dict[str, str]:
        """By the words of a message."""
        return {"base model": self.base_model, "tokenizer": self.tokenizer, "texts": self.texts}


def of_layers(held_out: HeldOut) -> HeldOut:
    """The samples whose layer outputs are compared: by lowest sample id, `LAYER_TOKENS` tokens together."""
    rows: list[int] = []
    count = 0
    for row in np.argsort(np.array(held_out.sample_ids), kind="stable").tolist():
        if count >= LAYER_TOKENS:
            break
        rows.append(row)
        count += len(held_out.tokens[row])
    rows.sort()
    return HeldOut(
        [held_out.sample_ids[row] for row in rows],
        [held_out.doc_ids[row] for row in rows],
        [held_out.domains[row] for row in rows],
        [held_out.tokens[row] for row in rows],
        {},
    )


class Reference:
    """A file of answers, open for reading."""

    def __init__(self, path: Path, key: ReferenceKey, held_out: HeldOut, batch_tokens: int) -> None:
        """Open the file, which must hold the answers of this base model to these texts.

        Raises:
            ValueError: it is no such file, or it is of another base model, tokenizer or text; names which.
        """
        self.path = path
        self.work: Sequence[HeldOutBatch] = list(batches(held_out, batch_tokens))
        self.layer_work: Sequence[HeldOutBatch] = list(batches(of_layers(held_out), batch_tokens))
        about = _about(path)
        for what, digest in key.as_dict().items():
            if about["key"].get(what) != digest:
                raise ValueError(
                    f"{path}: it holds the answers of another {what} (digest {str(about['key'].get(what))[:12]}, here "
                    f"{digest[:12]}); name another file, or delete this one to have it written anew"
                )
        self.layers: int = about["layers"]

    def prediction(self, index: int, device: torch.device) -> BasePrediction:
        """The base model's prediction of batch `index` of `work`."""
        with safe_open(self.path, framework="pt") as file:
            parts = [file.get_tensor(f"logits.{row}") for row in self.work[index].rows.tolist()]
        return predict(torch.cat(parts).to(device), self.work[index].targets.to(device))

    def hidden(self, index: int) -> list[Tensor]:
        """Layer outputs per sample of batch `index` of `layer_work`, each (layers, tokens, width)."""
        with safe_open(self.path, framework="pt") as file:
            return [file.get_tensor(f"hidden.{row}") for row in self.layer_work[index].rows.tolist()]


def _about(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("plumbline", "{}"))
    except Exception as error:  # safetensors has an error type of its own
        raise ValueError(f"{path}: not a file of reference logits ({error}); name another, or delete it") from error
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: a safetensors file, but not of reference logits; name another")
    return dict(about)


def write_reference(
    path: Path,
    key: ReferenceKey,
    held_out: HeldOut,
    batch_tokens: int,
    model: Any,
    advance: Callable[[int], Any] = lambda tokens: None,
) -> None:
    """Run the base model over the texts and write its answers; a file appears only once it is whole.

    Args:
        advance: called with the tokens done.

    Raises:
        ValueError: the disk has too little room, which is known before the second batch; or a logit is not finite.
    """
    work, layer_work = list(batches(held_out, batch_tokens)), list(batches(of_layers(held_out), batch_tokens))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    chunks = _chunks(model, work, layer_work, advance)
    try:
        first_name, first = next(chunks)
        shapes = _shapes(model, held_out, work, layer_work, first)
        header = _header(shapes, key)
        size = sum(end - start for start, end in (entry["data_offsets"] for entry in _tensors(header)))
        if (free := shutil.disk_usage(path.parent).free) < size:
            raise ValueError(
                f"{path}: the base model's logits need {size / 1e9:.1f} GB ({len(held_out.sample_ids)} samples, "
                f"{first.shape[-1]} tokens in the vocabulary), {free / 1e9:.1f} GB are free there; name a "
                "--reference-logits file on a larger disk, or lower --tokens"
            )
        with draft.open("wb") as file:
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            file.write(len(text).to_bytes(8, "little") + text)
            for expected, (name, tensor) in zip(shapes, chain([(first_name, first)], chunks), strict=True):
                assert name == expected and list(tensor.shape) == shapes[name][1], name
                file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _chunks(
    model: Any, work: Sequence[HeldOutBatch], layer_work: Sequence[HeldOutBatch], advance: Callable[[int], Any]
) -> Iterator[tuple[str, Tensor]]:
    """Name and content of every tensor, batch by batch."""
    for batch in work:
        logits = predicted_logits(model, batch)
        if not bool(torch.isfinite(logits).all()):
            raise ValueError(
                "the base model gives logits that are not finite (inf or NaN); a float16 model that overflows needs "
                "bfloat16 or float32"
            )
        counts = batch.predicted.sum(1).tolist()
        for row, part in zip(batch.rows.tolist(), torch.split(logits, counts), strict=True):
            yield f"logits.{row}", part
        advance(int(batch.predicted.sum()))
    for batch in layer_work:
        for row, outputs in zip(batch.rows.tolist(), layer_outputs(model, batch), strict=True):
            yield f"hidden.{row}", outputs


def layer_outputs(model: Any, batch: HeldOutBatch) -> list[Tensor]:
    """Output of every layer per sample, each (layers, tokens, width) in the model's dtype; the last is normalized."""
    with torch.inference_mode():
        answer = model(input_ids=batch.input_ids.to(model.device), use_cache=False, output_hidden_states=True)
    states = torch.stack([state.cpu() for state in answer.hidden_states[1:]], 1)
    lengths = (batch.predicted.sum(1) + 1).tolist()
    return [states[row, :, :length] for row, length in enumerate(lengths)]


def _shapes(
    model: Any, held_out: HeldOut, work: Sequence[HeldOutBatch], layer_work: Sequence[HeldOutBatch], first: Tensor
) -> dict[str, tuple[str, list[int]]]:
    """dtype and shape of every tensor, in the order of `_chunks`."""
    lengths = [len(ids) for ids in held_out.tokens]
    logits = {
        f"logits.{row}": (CODES[first.dtype], [lengths[row] - 1, first.shape[-1]])
        for batch in work
        for row in batch.rows.tolist()
    }
    if not layer_work:
        return logits
    probe = layer_work[-1]
    outputs = layer_outputs(model, probe)[0]
    layers, width = outputs.shape[0], outputs.shape[-1]
    inner = {
        f"hidden.{row}": (CODES[outputs.dtype], [layers, int(count) + 1, width])
        for batch in layer_work
        for row, count in zip(batch.rows.tolist(), batch.predicted.sum(1).tolist(), strict=True)
    }
    return logits | inner


def _header(shapes: Mapping[str, tuple[str, list[int]]], key: ReferenceKey) -> dict[str, Any]:
    widths = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}
    layers = next((shape[0] for name, (_, shape) in shapes.items() if name.startswith("hidden.")), 0)
    about = {"format": FORMAT, "key": key.as_dict(), "layers": layers}
    header: dict[str, Any] = {"__metadata__": {"plumbline": json.dumps(about, sort_keys=True)}}
    end = 0
    for name, (code, shape) in shapes.items():
        start, end = end, end + int(np.prod(shape)) * widths[code]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    return header


def _tensors(header: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry for name, entry in header.items() if name != "__metadata__"]
