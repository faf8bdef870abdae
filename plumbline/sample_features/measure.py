"""Signatures of samples, by one forward pass each, without padding and logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.base_model.inputs import LinearInputs, network_of, require_finite, require_readable
from plumbline.histogram import bucket, n_buckets
from plumbline.sample_features.probe import CODE, Probe, channels
from plumbline.sample_features.signatures import MANTISSA_BITS, Signatures, SignatureSite

Sample = tuple[str, Sequence[int] | NDArray[np.int32]]
"""(sample id, token ids)."""


class Signature(NamedTuple):
    """The signature of one sample; shapes as in `Signatures` without N."""

    sample_id: str
    tokens: int
    pooled: NDArray[np.float32]
    cells: NDArray[np.int32]
    absmax: NDArray[np.float32]
    sketch: NDArray[np.float32]


def measure(
    model: PreTrainedModel,
    samples: Iterable[Sample],
    probe: Probe,
    progress: Callable[[int], object] | None = None,
) -> Signatures:
    """The signatures of `samples`, in their order; each depends on its sample, the model and the probe alone.

    Args:
        model: in evaluation mode; weights and hooks are not changed.
        progress: called after each sample with its number of tokens.

    Raises:
        ValueError: a sample is empty, longer than the model's context or has an unknown token; an activation is not
            finite; a site is not reached once by every token, as it was when the probe was made.
    """
    return stacked(list(measured(model, samples, probe, progress=progress)), probe)


def stacked(signatures: Sequence[Signature], probe: Probe) -> Signatures:
    """Stack signatures of single samples."""
    (sites, cells, _), r, p = probe.centroids.shape, probe.directions.shape[1], probe.pooling.shape[1]

    def stack(name: str, shape: tuple[int, ...], dtype: type) -> Any:
        out: NDArray[Any] = np.empty((len(signatures), *shape), dtype)
        for row, signature in enumerate(signatures):
            out[row] = getattr(signature, name)
        return out

    return Signatures(
        tuple(signature.sample_id for signature in signatures),
        probe.sites,
        stack("tokens", (), np.int64),
        stack("pooled", (p,), np.float32),
        stack("cells", (sites, cells), np.int32),
        stack("absmax", (probe.width,), np.float32),
        stack("sketch", (sites, r, r), np.float32),
    )


@torch.no_grad()
def measured(
    model: PreTrainedModel,
    samples: Iterable[Sample],
    probe: Probe,
    counters: Callable[[str], Counter | None] = lambda _: None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Signature]:
    """Yield the signatures of `measure`, one sample at a time.

    Args:
        counters: sample id -> a counter of its activations, or None.
    """
    layers = {site.name: model.get_submodule(site.name) for site in probe.sites}
    network, device = network_of(model, layers), next(model.parameters()).device
    watcher = _Watcher(probe, device)
    inputs = LinearInputs(layers, watcher.visit)
    for sample_id, tokens in samples:
        ids = [int(token) for token in tokens]
        require_readable(model, sample_id, ids)
        watcher.begin(sample_id, len(ids), counters(sample_id))
        inputs.begin(sample_id)
        with inputs.hooked():  # per sample, as a caller of this generator may use the model in between
            network(input_ids=torch.tensor([ids], device=device), use_cache=False)
        yield watcher.signature()
        if progress is not None:
            progress(len(ids))


class Counter:
    """Counts of |x| in buckets, channel by channel; see `Magnitudes`."""

    def __init__(self, probe: Probe, device: torch.device) -> None:
        self.width, self.tokens = probe.width, 0
        self.buckets = (n_buckets(MANTISSA_BITS) + 1) // 2
        self.counts = torch.zeros(self.width * self.buckets, dtype=torch.int32, device=device)
        self.one = torch.ones(1, dtype=torch.int32, device=device)

    def add(self, site: SignatureSite, x: Tensor) -> None:
        """Count the activations (tokens, width) of one site."""
        keys = bucket(x.abs(), MANTISSA_BITS).T.to(torch.int32)  # channel by channel, for the CPU cache
        starts = torch.arange(site.start, site.start + site.width, dtype=torch.int32, device=x.device) * self.buckets
        keys = keys.contiguous() + (starts - (self.buckets - 1))[:, None]
        self.counts.index_add_(0, keys.view(-1), self.one.expand(keys.numel()))

    def result(self) -> NDArray[np.int32]:
        """(W, buckets): counts, the bucket of zero first."""
        counts: NDArray[np.int32] = self.counts.view(self.width, self.buckets).cpu().numpy()
        return counts


class _Watcher:
    """Reduces the activations of one sample, site after site."""

    def __init__(self, probe: Probe, device: torch.device) -> None:
        self.probe = probe
        self.number = {site.name: number for number, site in enumerate(probe.sites)}
        self.both: list[Tensor] = []
        self.offsets: list[Tensor] = []
        for site in probe.sites:
            here = channels(site)
            scale = probe.scale[here].astype(np.float64)[:, None]
            both = np.concatenate([probe.code[here], probe.directions[here]], axis=1) / scale
            offset = probe.mean[here].astype(np.float64) @ both[:, :CODE]
            self.both.append(torch.from_numpy(both.astype(np.float32)).to(device))
            self.offsets.append(torch.from_numpy(offset.astype(np.float32)).to(device))
        self.centroids = torch.from_numpy(probe.centroids).to(device)
        self.half = self.centroids.double().square().sum(dim=2).div(2).float()
        self.pooling = probe.pooling.astype(np.float64)

    def begin(self, sample_id: str, tokens: int, counter: Counter | None) -> None:
        self.sample_id, self.tokens, self.counter = sample_id, tokens, counter
        self.measurements: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def visit(self, name: str, x: Tensor, positions: Tensor | None) -> None:
        number = self.number[name]
        x = x.reshape(-1, x.shape[-1])
        if number in self.measurements or len(x) != self.tokens:
            raise self._unlike(name)
        if self.counter is not None:
            self.counter.add(self.probe.sites[number], x)
        wide = x.float()
        absmax = torch.maximum(-x.amin(dim=0), x.amax(dim=0)).float()
        both = wide @ self.both[number]
        z = both[:, :CODE] - self.offsets[number]
        # |z - c|^2 / 2 without the term common to all cells
        cell = torch.addmm(self.half[number], z, self.centroids[number].T, alpha=-1).argmin(dim=1)
        y = both[:, CODE:].double()
        self.measurements[number] = (
            wide.mean(dim=0),
            absmax,
            torch.bincount(cell, minlength=self.centroids.shape[1]),
            y.T @ y,
        )

    def _unlike(self, site: str) -> ValueError:
        return ValueError(
            f"site {site!r}: not every token of sample {self.sample_id} came by once, as in the model's own text; this "
            "model routes tokens, set `features.signatures: null` in params.yaml"
        )

    def signature(self) -> Signature:
        for number, site in enumerate(self.probe.sites):
            if number not in self.measurements:
                raise self._unlike(site.name)
        measurements = [self.measurements[number] for number in range(len(self.probe.sites))]
        for site, (_, peak, _, _) in zip(self.probe.sites, measurements, strict=True):
            require_finite(site.name, self.sample_id, peak)
        means = [mean.double().cpu().numpy() for mean, _, _, _ in measurements]
        units = [mean / (np.linalg.norm(mean) or 1.0) for mean in means]
        upper = torch.stack([moments for _, _, _, moments in measurements]).float().triu()
        sketch = upper + upper.triu(1).transpose(1, 2)  # exactly symmetric
        return Signature(
            self.sample_id,
            self.tokens,
            (np.concatenate(units) @ self.pooling).astype(np.float32),
            torch.stack([cells for _, _, cells, _ in measurements]).int().cpu().numpy(),
            torch.cat([peak for _, peak, _, _ in measurements]).cpu().numpy(),
            sketch.cpu().numpy(),
        )
