"""The forward pass over a calibration set, with a running total at the input of every linear layer.

Samples are run one at a time. What a sample contributes depends only on that sample and the model, so shards add up to
a single pass bit by bit. There is no padding that could reach a statistic, and every activation row belongs to one
sample. On a CPU batches of 8 x 512 tokens were no faster (6 M parameters, bfloat16, one core of an EPYC: 2.5 s for
64 samples either way; with all statistics 6.6 s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.totals import Masks, Sample, Totals, in_order
from plumbline.base_model.as_quantized import called_as_quantized
from plumbline.base_model.bfloat16 import wide_products
from plumbline.base_model.cache import caching_modules
from plumbline.base_model.inputs import LinearInputs, network_of, output_layers, watched_layers
from plumbline.base_model.threads import settle_threads


@torch.no_grad()
def collect(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    settings: StatisticsParams,
    *,
    base_model_digest: str,
    fingerprint: str,
    progress: Callable[[int], object] | None = None,
    masks: Masks | None = None,
) -> ActivationStats:
    """Run the full-precision model over the samples and return the statistics of every distinct layer input.

    Layers are Linear, Conv1D, Conv2d and each expert of a mixture; see plumbline/base_model/inputs.py.

    The order of `samples` does not matter: they are read in order of their id, which fixes the order of every sum. The
    vocabulary logits are computed only if a layer after the decoder is observed.

    Args:
        model: in evaluation mode; weights and hooks are left as they were.
        samples: (sample id, token ids) with unique ids.
        settings: `ignore` names modules: a full name, its end after a dot, or a regular expression after "re:".
        progress: called after each sample with its number of tokens.
        masks: the tokens that count, for samples in which not all do.

    Raises:
        ValueError: no samples; an id that occurs twice; a sample that is empty, is longer than the model reads or holds
            an unknown token; no layer to observe; an activation that is not finite or not a 16- or 32-bit float;
            layers that share an input for one sample and not for another.
    """
    settle_threads()
    totals = Totals(in_order(model, samples), settings, base_model_digest, fingerprint, masks)
    layers, outputs = watched_layers(model, settings.ignore), output_layers(model, settings.outputs)
    network, device = network_of(model, {**layers, **outputs}), next(model.parameters()).device
    caching = caching_modules(model) if settings.cache else {}
    inputs = LinearInputs(layers, totals.add, outputs, settings.expert_tokens, caching)
    with wide_products(model), called_as_quantized(model), inputs.hooked():
        for sample_id, ids in totals.samples():
            inputs.begin(sample_id, len(ids))
            network(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
            if progress is not None:
                progress(len(ids))
    return totals.result(inputs.members(), layers)
