"""The factor of a Hessian that a GPTQ solve needs, computed once for all schemes of a calibration set.

GPTQ (Frantar et al., arXiv 2210.17323) walks through the Cholesky factor of the inverse Hessian. Chee, Cai, Kuleshov
and De Sa (QuIP, arXiv 2307.13304, theorem 6) show that the same codes come from the factor of the Hessian itself,
H = L^T D L with L unit lower triangular: the target of column j is w_j + sum over k < j of (w_k - q_k) L_jk. Nothing is
inverted, which halves the work.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plumbline.quantized_model.solver import factor_backwards

DAMPING_STEP = 2.0
"""Factor by which the damping grows while the Hessian is not positive definite, up to 1, the mean diagonal. The result
is at most twice the smallest sufficient damping."""
MAX_BYTES = 2 << 30
"""Default size limit of `Factors`."""
PERMUTED_ROWS = 64
"""Rows of a Hessian that are permuted at a time."""


@dataclass(frozen=True, eq=False)
class Factor:
    """S + diag(added) = L^T diag(D) L, where the channels of S, and all of these, are in `order`.

    Attributes:
        L: (in, in) float64, lower triangular, ones on the diagonal.
        D: (in,) float64, positive.
        added: (in,) float64: damping * mean on every channel, plus the mean on a dead channel.
        damping: share of the mean diagonal that was added.
        order: (in,) int64, the channel that is solved first, second ...; None: original order.
    """

    L: Tensor
    D: Tensor
    added: Tensor
    damping: float
    order: Tensor | None

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.L, self.D, self.added, self.order) if t is not None)


def factor(S: Tensor, damping: float, act_order: bool = False, device: torch.device | None = None) -> Factor | None:
    """Factor a damped Hessian.

    The mean diagonal is taken over the channels in use. A dead channel gets the mean on its diagonal.

    Args:
        S: (in, in), symmetric, at least one diagonal entry not zero.
        damping: positive; doubles, up to 1, while the decomposition fails.
        act_order: channels in falling order of the diagonal, equal ones by index (GPTQ's `--act-order`).
        device: where to compute; None: where S is.

    Returns:
        The factor; None if S is not finite, or not positive definite at any damping up to 1.
    """
    S = S.to(S.device if device is None else device, torch.float64)
    diagonal = S.diagonal()
    if not bool(torch.isfinite(S.sum())) and not bool(torch.isfinite(S).all()):
        return None
    dead = diagonal == 0
    mean = diagonal[~dead].mean()
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else None
    for share in _dampings(damping):
        added = share * mean + mean * dead
        H = S.clone() if order is None else _permuted(S, order)
        added = added if order is None else added[order]
        H.diagonal().add_(added)
        decomposition = factor_backwards(H)
        if decomposition is not None:
            return Factor(*decomposition, added, share, order)
    return None


def _permuted(S: Tensor, order: Tensor) -> Tensor:
    """S[order][:, order]; on the CPU by NumPy, which is faster than PyTorch, some rows at a time, so that nothing is in
    memory but S and the result."""
    if S.device.type != "cpu":
        return S[order][:, order]
    source, channels = S.numpy(), order.numpy()
    H = np.empty_like(source, order="C")
    for start in range(0, len(H), PERMUTED_ROWS):
        rows = slice(start, start + PERMUTED_ROWS)
        np.take(source[channels[rows]], channels, axis=1, out=H[rows], mode="clip")  # "raise" copies `out`
    return torch.from_numpy(H)


def _dampings(first: float) -> Iterator[float]:
    share = first
    while share < 1:
        yield share
        share *= DAMPING_STEP
    yield max(1.0, first)


class Factors:
    """A cache of Hessian factors, limited in bytes; an entry is valid while its Hessian is alive and unchanged.

    The key is the identity of the tensor S, its version (which PyTorch increments with every change in place) and a
    digest of its diagonal and row sums, never a name: statistics of another set cannot hit. A full cache accepts no new
    entries and evicts none: schemes visit the sites in the same order, so evicting the oldest would never yield a hit.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._entries: dict[tuple[int, float, bool, str], tuple[weakref.ref[Tensor], bytes, Factor]] = {}

    @property
    def bytes(self) -> int:
        """Size of the cached factors."""
        with self._lock:
            return sum(stored.bytes for _, _, stored in self._entries.values())

    def get(
        self, S: Tensor, damping: float, act_order: bool = False, device: torch.device | None = None
    ) -> Factor | None:
        """`factor` of the same arguments, from the cache if possible."""
        key, digest = (id(S), float(damping), act_order, str(device or S.device)), _digest(S)
        with self._lock:
            self._drop_dead_entries()
            entry = self._entries.get(key)
            if entry is not None and entry[0]() is S and entry[1] == digest:
                return entry[2]
            self._entries.pop(key, None)
        computed = factor(S, damping, act_order, device)
        if computed is not None:
            with self._lock:
                if self.bytes + computed.bytes <= self.max_bytes:
                    self._entries[key] = weakref.ref(S), digest, computed
        return computed

    def _drop_dead_entries(self) -> None:
        for key in [key for key, (alive, _, _) in self._entries.items() if alive() is None]:
            del self._entries[key]


def _digest(S: Tensor) -> bytes:
    """Digest of what almost any change to S alters: version, shape, dtype, device, diagonal, row sums."""
    figures = torch.stack((S.diagonal(), S.sum(1))).cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{S._version} {tuple(S.shape)} {S.dtype} {S.device}".encode() + figures).digest()
