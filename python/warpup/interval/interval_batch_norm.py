"""interval_batch_norm and interval_relu: boxes through batch normalization and ReLU, with the sums that the warm-up's
regularizers are made of.

Center, radius and the clean operand go through the affine map, the ReLU and the sums in one pass, and back in another.
Contract, numerics and bytes moved: csrc/interval/interval_batch_norm.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup._op import accumulator
from warpup._transforms import once_differentiable, transformed, vmap_rule
from warpup.interval.box_sums import box_sums, reference_box_sums
from warpup.interval.sound import check_subnormals

SOURCES = {"clean": 2, "midpoint": 0, "frozen": -1}  # whose statistics a batch is normalised by
STEEP = 16  # |bias| over |weight| up to which a division by the weight costs no digits that count


def reference_interval_relu(center, radius, *, clean=None, sums=False, sound=False):
    """`interval_relu` in plain torch, without what `sound` adds."""
    lower, upper = (center - radius).relu(), (center + radius).relu()
    found = ((lower + upper) / 2, (upper - lower) / 2)
    found += () if clean is None else (clean.relu(),)
    return (*found, reference_box_sums(center, radius)) if sums else found


def reference_interval_batch_norm(
    center: Tensor, radius: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None = None,
    bias: Tensor | None = None, *, clean: Tensor | None = None, training=False, momentum=0.1, eps=1e-5,
    statistics="clean", relu=False, sums=False, sound=False,
):  # fmt: skip
    """`interval_batch_norm` in plain torch, without what `sound` adds."""
    if training and statistics != "frozen":
        source = center if clean is None or statistics == "midpoint" else clean
        dims = [d for d in range(source.dim()) if d != 1]
        var, mean = torch.var_mean(source, dims, correction=0)
        _update(running_mean, running_var, mean, var, source.numel() // source.shape[1], momentum)
    else:
        mean, var = running_mean, running_var
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = (1, -1, *(1,) * (center.dim() - 2))
    scale, shift = scale.view(shape), shift.view(shape)
    c, r = center * scale + shift, radius * scale.abs()
    clean = None if clean is None else clean * scale + shift
    if relu:
        return reference_interval_relu(c, r, clean=clean, sums=sums)
    found = (c, r) if clean is None else (c, r, clean)
    return (*found, reference_box_sums(c, r)) if sums else found


@torch.no_grad()
def _update(running_mean, running_var, mean, var, n, momentum) -> None:
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((var * (n / max(n - 1, 1))).to(running_var), momentum)


@_op.fake("interval_batch_norm")
def _(center, radius, clean, mean, var, weight, bias, source, eps, relu, sums, sound):
    shape, options = center.shape, {"dtype": accumulator(center), "device": center.device}
    channels = (shape[1] if source >= 0 else 0,)
    found = (center.new_empty(s) for s in (shape, shape, shape if clean is not None else 0))
    statistics = (torch.empty(channels, **options) for _ in range(2))
    return *found, *statistics, center.new_empty(8 if sums else 0, dtype=torch.float64)


@_op.fake("interval_batch_norm_backward")
def _(grad_center, grad_radius, grad_clean, center, radius, clean, from_outputs, mean, *rest):
    shape, channels = center.shape, (center.shape[1] if mean is not None else 0,)
    found = (center.new_empty(s) for s in (shape, shape, shape if clean is not None else 0))
    return *found, *(center.new_empty(channels, dtype=accumulator(center)) for _ in range(2))


class IntervalBatchNorm(torch.autograd.Function):
    """On [outer, channels, inner]. `keep_outputs`: the ReLU's results are kept for the backward, not its inputs: the
    next layer keeps them anyway. That choice is why `_autograd.differentiable` does not make this class."""

    @staticmethod
    def forward(center, radius, clean, mean, var, weight, bias, keep_outputs, source, eps, relu, sums, sound):
        return _op.ops.interval_batch_norm(
            center, radius, clean, mean, var, weight, bias, source, eps, relu, sums, sound
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        center, radius, clean, mean, var, weight, bias, ctx.outputs, ctx.source, ctx.eps, ctx.relu, ctx.sums, _ = inputs
        out_center, out_radius, out_clean, own_mean, own_var, totals = output
        ctx.mark_non_differentiable(own_mean, own_var, *((out_clean,) if clean is None else ()))
        ctx.mark_non_differentiable(*(() if ctx.sums else (totals,)))
        ctx.set_materialize_grads(False)
        mean, var = (mean, var) if ctx.source < 0 else (own_mean, own_var)
        box = (out_center, out_radius) if ctx.outputs else (center, radius)
        ctx.save_for_backward(*box, clean, mean, var, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad_center, grad_radius, grad_clean, _mean, _var, grad_sums):
        center, radius, clean, mean, var, weight, bias = saved
        grads = (grad_center, grad_radius, None if clean is None else grad_clean)
        grads = (None if g is None else g.contiguous() for g in grads)
        g = grad_sums if ctx.sums else None  # hc += a0 + [l > 0](a1 + a2 c) + [u < 0](a3 + a4 c), hr += a5
        added = None if g is None else torch.stack([g[1], g[3], 2 * g[4], g[6], 2 * g[7], g[0]])
        c, r, x, w, b = _op.ops.interval_batch_norm_backward(
            *grads, center, radius, clean, ctx.outputs, mean, var, weight, bias, ctx.source, ctx.eps, ctx.relu, added
        )
        needs, none = ctx.needs_input_grad, (None,) * 6
        x = None if clean is None else x
        return c, r, x, None, None, w if needs[5] else None, b if needs[6] else None, *none


IntervalBatchNorm.vmap = staticmethod(vmap_rule(IntervalBatchNorm.apply))
_backward = "interval_batch_norm_backward"
torch.library.register_vmap(f"warpup::{_backward}", vmap_rule(getattr(torch.ops.warpup, _backward)))


def _run(
    op: str, center, radius, clean, mean, var, weight, bias, source, eps, relu, sums, sound, running_mean=None,
    running_var=None, momentum=0.0,
):  # fmt: skip
    """Checks what both functions share, brings the operands to [outer, channels, inner], and back; a batch's own
    statistics go into the running ones."""
    if sound:
        check_subnormals()
    for name, t in (("radius", radius), ("clean", clean)):
        if t is not None and (t.shape, t.dtype, t.device) != (center.shape, center.dtype, center.device):
            raise ValueError(
                f"{op}: {name} must be {center.dtype} {tuple(center.shape)} on {center.device} like center, got "
                f"{t.dtype} {tuple(t.shape)} on {t.device}"
            )
    affine = source >= 0 or mean is not None
    last = center.dim() == 4 and center.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    shape = center.shape

    def flat(t):
        if t is None:
            return None
        t = t.contiguous(memory_format=memory_format)
        if not affine:
            return (t.permute(0, 2, 3, 1) if last else t).reshape(1, 1, -1)
        if last:
            return t.permute(0, 2, 3, 1).reshape(-1, shape[1], 1)
        inner = 1
        for d in shape[2:]:
            inner = inner * d
        return t.reshape(shape[0], shape[1], inner)

    def back(t):
        if last:
            return t.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)
        return t.view(shape)

    operands = [flat(t) for t in (center, radius, clean)]
    parameters = (mean, var, weight, bias)
    options = (source, eps, relu, sums, sound)
    asked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*operands, weight, bias))
    if asked or transformed():
        keep = relu and not sums and source != 0 and center.dtype == accumulator(center) and _flat(weight, bias)
        c, r, x, own_mean, own_var, totals = IntervalBatchNorm.apply(*operands, *parameters, keep, *options)
    else:
        c, r, x, own_mean, own_var, totals = _op.ops.interval_batch_norm(*operands, *parameters, *options)
    if source >= 0:
        _update(running_mean, running_var, own_mean, own_var, center.numel() // shape[1], momentum)
    found = (back(c), back(r)) + (() if clean is None else (back(x),))
    return (*found, box_sums(totals, center)) if sums else found


def _flat(weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether (y - bias) / weight gives back what was normalised with all its digits; on a GPU and in a compiled graph
    the answer would cost a synchronisation: no."""
    if weight is None:
        return bias is None
    if not weight.is_cpu or torch.compiler.is_compiling() or transformed() or weight.numel() == 0:
        return False
    least = float(weight.detach().abs().min())
    return least > 0 and (bias is None or float(bias.detach().abs().max()) <= STEEP * least)


@explained
def interval_relu(
    center: Tensor, radius: Tensor, *, clean: Tensor | None = None, sums: bool = False, sound: bool = False
) -> tuple:
    """ReLU of a box, and of a clean operand beside it: with l = center - radius and u = center + radius, the box
    [max(l, 0), max(u, 0)].

    One pass forward, one backward; kept for the backward are center, radius and clean.

    Args:
        center: any shape, float32, bfloat16, float16 or float64.
        radius: of the same shape and dtype, >= 0.
        clean: of the same shape and dtype; goes through ReLU by itself.
        sums: also return the `BoxSums` of the box before the ReLU.
        sound: the result holds the ReLU of every real number of [center - radius, center + radius]. A box that is
            positive or negative goes through without a rounding (c - r > 0 just where c > r); of one that has 0 inside
            the result is [0, 2 h] with h = center = radius at least (c + r)/2: fl((c + r)/2) is below by u = eps/2 at
            most, and h is made larger by eps and the least normal number, then rounded up to the result's dtype.

    Returns:
        (center, radius[, clean][, BoxSums]). BoxSums is in float32 (float64 for float64), summed up in float64.

    Raises:
        ValueError: a shape, dtype or device does not fit, or (on a CPU) a radius is below 0. On a GPU, where checking
            would synchronise, the bounds are taken as they are. NaN stays NaN.

    Source: Gowal et al. 2018 (arXiv 1810.12715); the sums, Shi et al. 2021 (arXiv 2103.17268).
    """
    return _run("interval_relu", center, radius, clean, None, None, None, None, -1, 0.0, True, sums, sound)


@explained
def interval_batch_norm(
    center: Tensor,
    radius: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    clean: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    statistics: str = "clean",
    relu: bool = False,
    sums: bool = False,
    sound: bool = False,
) -> tuple:
    """Batch normalisation of a box, and of a clean operand beside it, then ReLU if asked: one pass.

    `s = weight / sqrt(var + eps)`, `center' = s (center - mean) + bias`, `radius' = |s| radius`, clean as center. In
    training mean and (biased) var are the clean operand's and not constants: the gradients of all three operands reach
    it through them. The backward is one pass, and one more over the clean operand. With a ReLU and without sums it
    keeps the ReLU's results, which the next layer keeps anyway, and the clean input (float32 and float64, on a CPU,
    while |bias| is at most 16 times the smallest |weight|); else the inputs.

    Args:
        center: (N, C, ...) float32, bfloat16, float16 or float64. Four dimensions may be channels_last, and stay so.
        radius, clean: of the same shape and dtype, radius >= 0.
        running_mean, running_var: (C,), updated in training as `torch.nn.functional.batch_norm` does; read otherwise.
        weight, bias: (C,); None: 1, 0.
        training: use the batch's statistics. momentum: of their running means. eps: added to the variance.
        statistics: whose, in training: `clean` (the operand of that name, needed), `midpoint` (the box's center) or
            `frozen` (the running ones, not updated).
        relu: also a ReLU, as `interval_relu`.
        sums: also return the `BoxSums` of the box before the ReLU.
        sound: the box holds the exact result for every real number of the given one; not with the batch's statistics,
            which are numbers of the very pass. With u = eps/2: s and bias - mean s, computed in float64 and rounded,
            are off by 8 u |s| and 8 u M at most, M = |bias| + |mean s|; the center's two operations by 2.1 u (|s c| +
            M); the radius' own by u |s| r. The radius grows by 32 u (|s| (|c| + r) + M) and four times the least normal
            number, which covers those, the roundings of that sum and underflow.

    Returns:
        (center, radius[, clean][, BoxSums]), in center's dtype; BoxSums in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype, device or name does not fit, statistics are missing, `sound` in training, or (on a
            CPU) a radius is below 0. NaN stays NaN.

    Source: Shi et al. 2021 (arXiv 2103.17268).
    """
    op = "interval_batch_norm"
    if statistics not in SOURCES:
        raise ValueError(f"{op}: statistics must be one of {', '.join(SOURCES)}; got {statistics!r}")
    if center.dim() < 2:
        raise ValueError(f"{op}: center must have shape (N, C, ...), got {tuple(center.shape)}")
    if statistics == "midpoint" and not training:
        raise ValueError(
            f"{op}: statistics 'midpoint' are a batch's, but training=False takes the running ones: leave it out"
        )
    source = SOURCES[statistics] if training else -1
    acc, channels = accumulator(center), center.shape[1:2]
    for name, t in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)):
        if t is not None and (t.shape, t.device) != (channels, center.device):
            raise ValueError(
                f"{op}: {name} must have shape {tuple(channels)} on {center.device}, got {tuple(t.shape)} on {t.device}"
            )
    if (running_mean is None) != (running_var is None) or (source < 0 and running_mean is None):
        raise ValueError(f"{op}: running_mean and running_var go together, and without batch statistics are needed")
    if source == 2 and clean is None:
        raise ValueError(f"{op}: statistics 'clean' need the clean operand in training; got clean=None")
    if source >= 0 and sound:
        raise ValueError(f"{op}: sound needs frozen statistics, got training=True with statistics={statistics!r}")
    if source >= 0 and center.numel() == 0:
        raise ValueError(f"{op}: an empty batch has no statistics, got shape {tuple(center.shape)}")
    weight, bias = (None if t is None else t.to(acc).contiguous() for t in (weight, bias))
    mean = None if source >= 0 or running_mean is None else running_mean.to(acc)
    var = None if source >= 0 or running_var is None else running_var.to(acc)
    options = (source, eps, relu, sums, sound, running_mean, running_var, momentum)
    return _run(op, center, radius, clean, mean, var, weight, bias, *options)
