"""The linear algebra of GPTQ in float64: in solver.c if it is compiled and the processor supports it, else in PyTorch.

Both give the same bits for the columns of a leaf. Matrix products differ in the last bits of a sum, which changes a
code only if a weight is within about 1e-13 of the midpoint between two; no test or measurement has met one. On one
thread (see `one_thread` and `in_parallel` in plumbline/base_model) each implementation is deterministic.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from plumbline import kernels
from plumbline.quantized_model.numbers import Numbers

VERSION = 2
"""Interface version of solver.c."""
BLOCK = 128
"""Rows and columns of the diagonal blocks that LAPACK factors or inverts; the rest is matrix products."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled `solver.c`, None if it is not available; logs once which implementation is used."""
    loaded = kernels.load("quantized_model/solver.c", VERSION)
    if loaded is None:
        return None
    address, number, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
    loaded.plumbline_solver_columns.argtypes = [
        *(number, number, address, integer, address, address, number),
        *(address, address, address, real, real, integer, integer, address, address),
    ]
    loaded.plumbline_solver_columns.restype = None
    loaded.plumbline_solver_product.argtypes = [
        *(number, number, number, address, number, number, address, number, address, number, real, integer)
    ]
    return loaded


@cache
def wide_library() -> ctypes.CDLL | None:
    """`library()` if the processor has the instructions for its matrix product, else None."""
    loaded = library()
    return loaded if loaded is not None and loaded.plumbline_solver_wide() else None


def add_product(C: Tensor, A: Tensor, B: Tensor, sign: float = 1.0, lower: bool = False) -> None:
    """C += sign * A B in place, float64; the rows of C and B are contiguous.

    Args:
        lower: C may be left unchanged above the diagonal.
    """
    if not C.numel() or not A.numel():
        return
    loaded = wide_library() if C.device.type == "cpu" else None
    if loaded is None:
        step = 2 * BLOCK if lower else len(C)
        for start in range(0, len(C), step):
            stop, width = start + step, start + step if lower else C.shape[1]
            C[start:stop, :width].addmm_(A[start:stop], B[:, :width], alpha=sign)
        return
    failed = loaded.plumbline_solver_product(
        *(*C.shape, len(B), A.data_ptr(), *A.stride(), B.data_ptr(), B.stride(0), C.data_ptr(), C.stride(0)),
        *(sign, lower),
    )
    if failed:
        raise MemoryError("out of memory for the buffers of a matrix product")


def factor_backwards(H: Tensor) -> tuple[Tensor, Tensor] | None:
    """H = L^T diag(D) L with L unit lower triangular: the Cholesky decomposition from the last channel to the first.

    Args:
        H: (n, n) float64, symmetric, contiguous; overwritten.

    Returns:
        (L, D), L in the memory of H; None where H is not positive definite.
    """
    n = len(H)
    D = torch.empty(n, dtype=H.dtype, device=H.device)
    for b in reversed(range(0, n, BLOCK)):
        e = min(b + BLOCK, n)
        # LAPACK factors from the first row on and reads the lower triangle, so the block is flipped.
        flipped, info = torch.linalg.cholesky_ex(H[b:e, b:e].t().flip(0, 1))
        if int(info) != 0:
            return None
        R = flipped.flip(0, 1)  # upper, H_bb = R R^T
        root = R.diagonal()
        D[b:e] = root.square()
        P = torch.zeros(e - b, b, dtype=H.dtype, device=H.device)
        identity = torch.eye(e - b, dtype=H.dtype, device=H.device)
        add_product(P, torch.linalg.solve_triangular(R, identity, upper=True), H[b:e, :b])
        add_product(H[:b, :b], P.t(), P, -1.0, lower=True)
        H[b:e, :b] = P.div_(root.unsqueeze(1))
        H[b:e, b:e] = R.t() / root.unsqueeze(1)
        H[b:e, e:] = 0
    return H, D


def solve_lower(L: Tensor, Z: Tensor) -> Tensor:
    """L^-1 Z for unit lower triangular L (n, n) and Z (n, rows), float64; Z is overwritten."""
    X = torch.zeros_like(Z)
    for b in range(0, len(L), BLOCK):
        e = min(b + BLOCK, len(L))
        add_product(Z[b:e], L[b:e, :b], X[:b], -1.0)
        identity = torch.eye(e - b, dtype=L.dtype, device=L.device)
        inverse = torch.linalg.solve_triangular(L[b:e, b:e], identity, upper=False, unitriangular=True)
        add_product(X[b:e], inverse, Z[b:e])
    return X


def solves_columns(W: Tensor, leaf: int) -> bool:
    """Whether `solve_columns` supports leaves of `leaf` columns of this weight."""
    if W.device.type != "cpu" or W.dtype not in (torch.bfloat16, torch.float32):
        return False
    loaded = library()
    return loaded is not None and leaf <= loaded.plumbline_solver_leaf()


def solve_columns(
    W: Tensor,
    B: Tensor,
    L: Tensor,
    group: Tensor,
    s: Tensor,
    z: Tensor | None,
    numbers: Numbers,
    codes: Tensor,
    R: Tensor,
) -> None:
    """The compiled `gptq._one_by_one`.

    W, B, codes, R (columns, rows), s, z (groups, rows) and the rows of L must be contiguous.
    """
    loaded = library()
    assert loaded is not None
    m = -1 if numbers.mantissa is None else numbers.mantissa
    loaded.plumbline_solver_columns(
        *(W.shape[1], W.shape[0], W.data_ptr(), W.dtype == torch.bfloat16, B.data_ptr(), L.data_ptr(), L.stride(0)),
        *(
            group.data_ptr(),
            s.data_ptr(),
            None if z is None else z.data_ptr(),
            numbers.first,
            numbers.last,
            m,
            numbers.exponent,
        ),
        *(codes.data_ptr(), R.data_ptr()),
    )
