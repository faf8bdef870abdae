"""The numbers that the codes of a weight stand for: integers, or floating-point numbers of 8 and 4 bits.

A code is an int8 that counts the numbers of the set in ascending order, with code 0 for zero. So neighbours in value
are neighbours in code, whatever the set, and a solver moves along a grid by adding one.

E4M3 is `torch.float8_e4m3fn` (Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433): codes -126 to 126,
largest number 448. E2M1 is the FP4 of the OCP Microscaling specification 1.0 (section 5.3.3): codes -7 to 7 for
0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Numbers:
    """A set of numbers that codes stand for.

    Attributes:
        first, last: smallest and largest code.
        mantissa: bits of the mantissa of a floating-point number; None: integers, which are their own codes.
        exponent: of the smallest normal floating-point number.
    """

    first: int
    last: int
    mantissa: int | None = None
    exponent: int = 0

    @property
    def largest(self) -> float:
        """The number of the largest code."""
        return float(self.values(torch.tensor(float(self.last))))

    def nearest(self, x: Tensor) -> Tensor:
        """Codes of the numbers nearest to x, ties to the even code, clipped to the ends; a float tensor like x."""
        if self.mantissa is None:
            return x.round().clamp_(self.first, self.last)
        magnitude = x.abs().clamp_(max=self.largest)
        # The step between numbers in the binade of |x|: 2^(e - m); frexp's exponent is one more than the IEEE one.
        e = torch.frexp(magnitude.clamp(min=2.0**self.exponent)).exponent - 1
        codes = torch.ldexp(magnitude, self.mantissa - e).round_().add_((e - self.exponent) << self.mantissa)
        return codes.copysign_(x)

    def round_(self, x: Tensor) -> Tensor:
        """Replace x by the nearest numbers of the set, `values(nearest(x))`, in place; for searches."""
        if self.mantissa is None:
            return x.round_().clamp_(self.first, self.last)
        x.clamp_(-self.largest, self.largest)
        if self is E4M3:
            return x.copy_(x.to(torch.float8_e4m3fn))
        magnitude = x.abs()
        step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
        return x.div_(step).round_().mul_(step)

    def values(self, codes: Tensor) -> Tensor:
        """The numbers of codes, exact, in the dtype of `codes` (a float one)."""
        if self.mantissa is None:
            return codes
        k = codes.abs().to(torch.int32)
        # Codes of 2^m and more are normal: a binade holds 2^m of them.
        binade = (k >> self.mantissa).sub_(1).clamp_(min=0)
        steps = (k - (binade << self.mantissa)).to(codes.dtype)
        return torch.ldexp(steps, binade + (self.exponent - self.mantissa)).copysign_(codes)


@cache
def integers(bits: int) -> Numbers:
    """Signed integers: -8 to 7 for 4 bits."""
    return Numbers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest integer of a signed width: (-8, 7) for 4 bits."""
    return integers(bits).first, integers(bits).last


E4M3 = Numbers(-126, 126, mantissa=3, exponent=-6)
E2M1 = Numbers(-7, 7, mantissa=1, exponent=0)
