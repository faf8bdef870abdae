"""The weight that undoes the error of the layers before it, which GPTQ then rounds.

A Linear reads x in the base model and x~ behind quantized layers. It ought to output W x, plus r, the error that the
residual stream already has where this Linear adds to it (x_res - x~_res; else 0). Least squares over the tokens,

    sum |W x + r - Q x~|^2 = tr((Q - W*) H (Q - W*)^T) + const,   H = sum x~ x~^T,
    W* = W + C H^-1,   C = sum e x~^T,   e = W (x - x~) + r,

so rounding W* by GPTQ with H minimizes the true error. Qronos (Zhang et al., arXiv 2505.11695) and GPTAQ (Li et al.,
arXiv 2504.02692) minimize the same sum without r; QEP (Arai and Ichikawa, arXiv 2504.09629) has W* and scales C by a
strength in [0, 1], because all of C fits the noise of few samples. H is damped as in GPTQ. With x~ = x and r = 0, C is
exactly 0 and W* is W bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plumbline.activation_stats.kernel import HessianSums
from plumbline.quantized_model.factors import Factor


@dataclass(frozen=True, eq=False)
class CrossMoments:
    """What the correction reads about one site.

    Attributes:
        hessian: (in, in) float64, H.
        cross: (errors, in) float64, the sum of d x~^T; d is x - x~ where `of_input`, else e of the stacked members.
        of_input: whether d is the error of the input.
    """

    hessian: Tensor
    cross: Tensor
    of_input: bool


class CrossSums:
    """Sums H and the cross moments of a site in one product: those of the joint vector (x~, d)."""

    def __init__(self, width: int, errors: int, device: torch.device, of_input: bool) -> None:
        self.width, self.of_input = width, of_input
        self.joint = HessianSums(width + errors, torch.float32, device)

    def add(self, x: Tensor, d: Tensor, weight: float = 1.0) -> None:
        """Add the tokens of a sample: x~ (tokens, in) and d (tokens, errors)."""
        self.joint.add(torch.cat((x.float(), d.float()), 1), weight)

    def result(self) -> CrossMoments:
        """The sums; nothing can be added afterwards."""
        joint, n = self.joint.result(), self.width
        return CrossMoments(joint[:n, :n].contiguous(), joint[n:, :n].contiguous(), self.of_input)


def corrected(W: Tensor, moments: CrossMoments, F: Factor, strength: float) -> Tensor:
    """W* = W + strength * C (H + added)^-1.

    Args:
        W: (out, in), the stacked members of the site.
        moments: of the site.
        F: factor of the damped H, on the device of W.
        strength: in [0, 1].

    Returns:
        (out, in), float64; equal to W where C is 0.
    """
    target = W.to(torch.float64)
    C = moments.cross.to(W.device)
    if moments.of_input:
        C = target @ C
    order = slice(None) if F.order is None else F.order
    # (S + added) = L^T diag(D) L, in the factor's order: solve L^T (D (L z)) = c for every row c of C.
    z = torch.linalg.solve_triangular(F.L.t(), C[:, order].t(), upper=True)
    z = torch.linalg.solve_triangular(F.L, z / F.D.unsqueeze(1), upper=False, unitriangular=True)
    step = torch.empty_like(C)
    step[:, order] = z.t()
    return target.add_(step, alpha=strength)
