"""Products of boxes that hold in floating point: the radius is enlarged by what rounding can have done.

Claim. For every real x, W with |x - c| <= r, |W - Wc| <= Wr, the result (C, R) of `sound_product` has
|W x + b - C| <= R, element by element, as real numbers (whoever forms C - R rounds once more).

Proof. Arithmetic is fl(x op y) = (x op y)(1 + d), |d| <= u, plus at most t (the least normal number) for a product
that underflows: float32 for 16-bit inputs, whose values it has exactly, and for float32; float64 for float64. A sum of
n products, in any order, with or without fused operations, then satisfies |fl - exact| <= g_n sum |products| + 2 n t
with g_n = n u / (1 - n u) (Higham 2002, chapter 3).
1. n = K + 1 for C: |C - (Wc c + b)| <= g_{K+1} (|Wc| |c| + |b|) + 2 (K + 1) t.
   |W x - Wc c| <= |Wc| r + Wr (|c| + r). So R must be at least
     E = |Wc| (r + g_{K+1} |c|) + Wr (|c| + r) + g_{K+1} |b| + 2 (K + 1) t.
2. With N = K, or 2 K where there is a Wr, v = (N + 8) u <= 1/8 and g = v / (1 - 2 v), rounded up:
     a = fl(|c| + r),  e = fl(g a + t),  z = fl(r + e),  y = fl(a + e),  P = fl(|Wc| z + Wr y).
   z >= (1 + q) r + q |c| and y >= (1 + q)(|c| + r) with q = v' / (1 - 2 v'), v' = (N + 2) u: the roundings in z and y
   cost at most 3 u g + 2 u, and g - q >= 6 u; the t makes good what underflows in g a.
3. P is a sum of N products: P >= (1 - g_N)(|Wc| z + Wr y) - 2 N t, and (1 - g_N)(1 + q) >= 1, (1 - g_N) q >= g_{K+1}.
   So E <= P + g_{K+1} |b| + (4 N + 2) t.
4. R = fl((P + (g |b| + (4 N + 8) t)) (1 + 8 u)): the factor covers the five roundings in it.
5. To 16 bits: C loses |C - C16|, which float32 has exactly; R = (R + that)(1 + 4 u), then times (1 + eps16), plus the
   least normal number, is rounded to nearest, which loses at most eps16 / 2.
Where C is not finite, or P is not, R is infinite: the bounds are NaN or infinite, never wrong.

It needs products as such: no TF32, no bfloat16 inside of float32 products (`check_arithmetic` looks), no flushed
denormals (`check_subnormals`), no fast matrix multiplication (Strassen), which no BLAS in use has; and no
autocast, which is turned off here.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup._op import accumulator

GRAIN = 32768  # elements that torch gives a thread at least


def check_subnormals() -> None:
    """ValueError if this thread, or one of torch's, rounds numbers below the least normal one to 0.

    `torch.set_flush_denormal` sets a mode of the thread that calls it. Torch's threads have that of the thread that
    first needed them, and keep it when the caller's is switched back.
    """
    if torch.compiler.is_compiling():
        return
    count = GRAIN * torch.get_num_threads()  # so many that each thread gets some
    if sys.float_info.min / 2 == 0 or bool((torch.full((count,), torch.finfo(torch.float32).tiny) / 2 == 0).any()):
        raise ValueError(
            "sound bounds need numbers below the least normal one, which torch.set_flush_denormal(True) makes 0 of: "
            "call torch.set_flush_denormal(False); threads that torch started under the flag keep it, so if this goes "
            "on, never set it in this process"
        )


def check_arithmetic() -> None:
    """ValueError if the arithmetic is not as the proof needs it: subnormal numbers, and float32 products of full
    precision, by either of torch's ways to ask for less."""
    check_subnormals()
    for backend in ("cuda", "mkldnn"):  # each tells what holds for it, whatever was set: for all, for it, the old way
        found = getattr(getattr(getattr(torch.backends, backend, None), "matmul", None), "fp32_precision", "none")
        if found not in ("none", "ieee"):
            raise ValueError(
                f"sound bounds need float32 products of full precision, torch.backends.{backend}.matmul.fp32_precision "
                f"is {found!r}: set it to 'ieee' (or call torch.set_float32_matmul_precision('highest'))"
            )
    try:
        found = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set in the other way, which was looked at
        return
    if found != "highest":
        raise ValueError(
            "sound bounds need float32 products of full precision; call torch.set_float32_matmul_precision('highest'), "
            f"now it is {found!r}"
        )


def growth(terms: int, dtype: torch.dtype) -> float:
    """g of the proof, rounded up to `dtype`."""
    eps = torch.finfo(dtype).eps
    v = (terms + 8) * eps / 2
    if v > 0.125:
        raise ValueError(f"sound bounds hold for up to {int(0.25 / eps) - 8} terms in {dtype}, got {terms}")
    return v / (1 - 2 * v) * (1 + 4 * eps)


def sound_product(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, weight_radius: Tensor | None, wide: bool
) -> tuple[Tensor, Tensor]:
    """center and radius of a box around W x + b; `wide`: not rounded to 16 bits. See the module's proof."""
    check_arithmetic()
    dtype, acc = center.dtype, accumulator(center)
    terms = center.shape[-1] * (1 if weight_radius is None else 2)
    eps, tiny, g = torch.finfo(acc).eps, torch.finfo(acc).tiny, growth(terms, acc)
    with torch.autocast(center.device.type, enabled=False):
        c, r, w = (t.to(acc) for t in (center, radius, weight))
        b = None if bias is None else bias.to(acc)
        middle = F.linear(c, w, b)
        a = c.abs() + r
        e = a * g + tiny
        p = F.linear(r + e, w.abs())
        if weight_radius is not None:
            p += F.linear(a + e, weight_radius.to(acc))
        rest = (4 * terms + 8) * tiny
        p = (p + (rest if b is None else b.abs() * g + rest)) * (1 + 4 * eps)
        if wide or dtype == acc:
            rounded = middle
        else:
            rounded, own = middle.to(dtype), torch.finfo(dtype)
            p = (p + (middle - rounded.to(acc)).abs()) * (1 + 2 * eps)
            p = p * (1 + own.eps) + own.tiny
        p = torch.where(rounded.isfinite(), p, torch.inf)
        return rounded, p if wide else p.to(dtype)
