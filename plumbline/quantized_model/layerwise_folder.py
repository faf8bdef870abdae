"""The folder of a model that was quantized layer by layer, from its parts on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from plumbline.activation_stats.pieces import Pieces
from plumbline.base_model.matrices import Matrix
from plumbline.file_mode import follow_umask
from plumbline.quantized_model.export import MAX_SHARD_SIZE, describe, kept_tensors
from plumbline.quantized_model.folding import transform_notes
from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.kv_cache import cache_tensors, recorded_cache
from plumbline.quantized_model.kv_cache_layers import cached_attention
from plumbline.quantized_model.layerwise_check import require_loads_layerwise
from plumbline.quantized_model.layerwise_model import LayerwiseModel
from plumbline.quantized_model.layerwise_parts import COMPUTED, computed_by
from plumbline.quantized_model.outcome import Outcome
from plumbline.quantized_model.quantization_config import ConfigTarget
from plumbline.quantized_model.weight_shards import write_shards


def write_folder(
    whole: LayerwiseModel, ids: Sequence[int], pieces: Pieces, out: Path, trust_remote_code: bool
) -> Outcome:
    """Write the folder from the parts, and load it again.

    Args:
        ids: tokens of the sample for which the parts were simulated.

    Raises:
        ValueError: what was written does not load as it was simulated.
    """
    model, matrices, scheme, device = whole.model, whole.work.matrices, whole.scheme, whole.streamed.device
    facts = [pieces.facts(part) or {} for part in whole.parts]
    rows = _in_order(facts, matrices)
    order = [*kept_tensors(model, matrices, {}), *(key for row in rows for key in row["keys"])]
    record = {name: own for fact in facts for name, own in fact["cache"].items()}
    wanted = {} if scheme.kv_cache is None else cached_attention(model, scheme.kv_cache)
    cache = recorded_cache({name: record[name] for name in wanted}, model.dtype, device)
    order += list(cache_tensors(model, cache))
    model.save_pretrained(out, state_dict={}, save_original_format=False)
    write_shards(pieces, whole.parts, order, out, MAX_SHARD_SIZE, model.num_parameters())
    follow_umask(out.glob("*.safetensors"))
    targets = [_target(whole, row) for row in rows]
    describe(whole.names, targets, scheme, whole.work.dense, whole.streamed.folder, out)
    hidden = {part: partial(pieces.tensor, computed_by(part), COMPUTED) for part in whole.parts}
    loads = require_loads_layerwise(out, ids, hidden, str(device), trust_remote_code)
    records = {name: entry for fact in facts for name, entry in fact["layers"].items()}
    layers = {name: records[name] for name in matrices}
    files = sorted(path.name for path in out.glob("*.safetensors"))
    return Outcome(files, layers, _notes(whole, facts), whole.work.left, cache, loads)


def _notes(whole: LayerwiseModel, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The notes of the model, from the facts of all parts."""
    if whole.scheme.propagate == "quantized":
        *layers, gain = [fact["propagate"] for fact in facts]
        uncorrected = {name: reason for part in layers for name, reason in part.items()}
        return whole.notes | {"propagate": gain | ({"uncorrected": uncorrected} if uncorrected else {})}
    if whole.scheme.transform is None:
        return whole.notes
    parts = [fact["transform"] for fact in facts]
    sites = {name: site for own, _ in parts for name, site in own["sites"].items()}
    unfolded = {name: reason for _, missing in parts for name, reason in missing.items()}
    remarks = whole.notes.get("remarks", [])
    return whole.notes | transform_notes(whole.scheme.transform, {**parts[0][0], "sites": sites}, unfolded, remarks)


def _target(whole: LayerwiseModel, row: Mapping[str, Any]) -> ConfigTarget:
    grid = dict(row["grid"])
    grid["block"] = None if grid["block"] is None else tuple(grid["block"])
    activations = None if row["expert"] else whole.work.schemes[row["name"]].activations
    return ConfigTarget(row["name"], Grid(**grid), activations, row["expert"])


def _in_order(facts: Sequence[Mapping[str, Any]], matrices: Mapping[str, Matrix]) -> list[dict[str, Any]]:
    """The targets of all parts in the order of `export`: Linears, then experts, each in the model's order."""
    places = {name: number for number, name in enumerate(matrices)}
    linears = [row for fact in facts for row in fact["targets"] if not row["expert"]]
    mixtures = [fact for fact in facts if any(row["expert"] for row in fact["targets"])]
    mixtures.sort(key=lambda fact: min(places[n] for n in fact["layers"] if matrices[n].expert is not None))
    experts = [row for fact in mixtures for row in fact["targets"] if row["expert"]]
    return [*sorted(linears, key=lambda row: places[row["name"]]), *experts]
