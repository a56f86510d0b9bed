"""TRL's trainers on warpup's operators: `from warpup.integrations.trl import GRPOTrainer` in place of TRL's own.

GRPOTrainer, RLOOTrainer, SFTTrainer, DPOTrainer, KTOTrainer and DistillationTrainer (GKD and asynchronous GRPO, which
TRL calls experimental, in `trl_experimental.py`); arguments, configs, data, sampling, losses, metrics and distribution
are TRL's, so every loss type and every option is there, with TRL's own meaning.

What is ours is the output layer, the largest part of a step when the vocabulary is large. TRL takes the log-probs,
entropies and divergences of all these trainers from two functions, which make the logits in tiles, so that neither
library ever holds all of them. Here `linear_logprob` and `linear_divergence` stand in their place: smaller tiles, one
pass over each, and no work for tokens that carry no loss (TRL leaves those out on a GPU only). TRL's own trainers stay
as they are, for use beside these.

Written against trl 1.16; a version whose trainers do not ask for these two functions is an ImportError.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled

from warpup import _op, linear_divergence, linear_logprob
from warpup._op import accumulator
from warpup.logprob.linear_logprob import columns, slice_logits, slices
from warpup.logprob.logit_form import formed
from warpup.logprob.token_logprob import IGNORE_INDEX, SampledTokens, outputs_like, sampled_tokens

try:
    import trl
    from trl.trainer import distillation_trainer, utils
except ImportError as error:
    raise ImportError(f"warpup.integrations.trl needs trl 1.16: {error}") from None


def with_names(function: Callable, **names) -> Callable:
    """A copy of a function of TRL's in which these global names stand for something else. Raises ImportError where it
    does not use one of them."""

    def used(code: types.CodeType) -> set[str]:
        inner = [used(c) for c in code.co_consts if isinstance(c, types.CodeType)]
        return set(code.co_names).union(*inner)

    missing = names.keys() - used(function.__code__)
    if missing:
        raise ImportError(
            f"warpup.integrations.trl is written against trl 1.16: in trl {trl.__version__}, {function.__qualname__} "
            f"does not use {', '.join(sorted(missing))}"
        )
    copy = types.FunctionType(
        function.__code__,
        function.__globals__ | names,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function)


# ---- Log-probs ------------------------------------------------------------------------------------------------------


class _Logprob(torch.autograd.Function):
    """`linear_logprob` with the two metrics of a token that TRL has beside: is it the most likely one, the first of
    equals, and the mean logit."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: SampledTokens, outputs):
        ctx.set_materialize_grads(False)
        rows, vocab = hidden.shape[0], weight.shape[0]
        logp, entropy, _, sum_p2, stats = outputs_like(
            hidden, (rows,), tokens.targets, "entropy" in outputs, False, "log_sum_sq_probs" in outputs
        )
        state = stats.new_empty(rows, 5)
        highest, first, total = torch.full_like(logp, -torch.inf), tokens.targets.new_zeros(rows), logp.new_zeros(rows)
        chunk = columns(hidden, vocab, 0)
        buffer = hidden.new_empty(rows * chunk)
        for begin, end, part in slices(tokens, vocab, chunk):
            z = slice_logits(hidden, weight, bias, begin, end, buffer)
            _op.ops.token_logprob_slice_(z, *part, begin, vocab, state, logp, entropy, None, sum_p2, stats)
            if "is_top1" in outputs:
                top, at = z.max(-1)
                higher = top > highest
                highest, first = torch.where(higher, top, highest), torch.where(higher, at + begin, first)
            if "mean_logits" in outputs:
                total += formed(z.to(accumulator(z)), tokens.scale, tokens.softcap).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, stats, entropy)
        ctx.tokens = tokens
        extras = (
            sum_p2.log() if "log_sum_sq_probs" in outputs else None,
            total / (vocab * tokens.temperature_scalar) if "mean_logits" in outputs else None,
            first == tokens.targets if "is_top1" in outputs else None,
        )
        ctx.mark_non_differentiable(*(e for e in extras if e is not None))
        return logp, entropy, *extras

    @staticmethod
    def backward(ctx, grad_logp, grad_entropy, *_):
        if grad_logp is None and grad_entropy is None:
            return (None,) * 5
        *operands, stats, entropy = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        gradients = _op.ops.linear_logprob_backward(
            *operands, *ctx.tokens, 0, stats, entropy, None, grad_logp, grad_entropy, None, None, needs
        )
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None


class LinearLogprob:
    """In the place of TRL's `ChunkedLogProbFunction`: the same arguments and results."""

    @staticmethod
    def apply(hidden, weight, bias, targets, temperature, _chunk_size, softcap=None, scale=1.0, outputs=()):
        """hidden (N, H), weight (V, H), bias (V,) or None, targets (N,) int64; all of `outputs` that are asked for, of
        (log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1), each (N,), else None."""
        hidden, weight, bias = _operands(hidden, weight, bias)
        tokens = sampled_tokens(
            "linear_logprob", len(weight), targets, temperature, IGNORE_INDEX, scale=scale, softcap=softcap
        )
        with torch.autocast(hidden.device.type, enabled=False):
            return _Logprob.apply(hidden, weight, bias, tokens, outputs)


def _operands(hidden: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """All, tensors or None, in the dtype of the product: autocast's, else that of the hidden states."""
    kind = hidden.device.type
    to = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return tuple(t if t is None else t.to(to) for t in (hidden, *others))


def _always(device: torch.device) -> bool:
    return True


_add_head = with_names(utils.add_fused_lm_head, _ChunkedLogProbFunction=LinearLogprob, _use_triton=_always)


@functools.wraps(utils.add_fused_lm_head)
def add_head(model, *arguments, **options) -> None:
    """TRL's `add_fused_lm_head`, on `linear_logprob`: `model(..., labels=labels, fused_lm_head=True)` gives log-probs.
    Raises ValueError under DeepSpeed's ZeRO stage 3."""
    refuse_zero3()
    _add_head(model, *arguments, **options)


def refuse_zero3() -> None:
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "warpup's output layer needs its weight in the backward pass, and DeepSpeed's ZeRO stage 3 has taken it "
            "away by then: use stage 2, FSDP2, or TRL's own trainer"
        )


class GRPOTrainer(trl.GRPOTrainer):
    """TRL's GRPOTrainer with log-probs and entropies from `linear_logprob`."""

    __init__ = with_names(trl.GRPOTrainer.__init__, add_fused_lm_head=add_head)


class RLOOTrainer(trl.RLOOTrainer):
    """TRL's RLOOTrainer with log-probs and entropies from `linear_logprob`."""

    __init__ = with_names(trl.RLOOTrainer.__init__, add_fused_lm_head=add_head)


class SFTTrainer(trl.SFTTrainer):
    """TRL's SFTTrainer with log-probs from `linear_logprob`."""

    __init__ = with_names(trl.SFTTrainer.__init__, add_fused_lm_head=add_head)


class DPOTrainer(trl.DPOTrainer):
    """TRL's DPOTrainer with log-probs from `linear_logprob`."""

    __init__ = with_names(trl.DPOTrainer.__init__, add_fused_lm_head=add_head)


class KTOTrainer(trl.KTOTrainer):
    """TRL's KTOTrainer with log-probs from `linear_logprob`."""

    __init__ = with_names(trl.KTOTrainer.__init__, add_fused_lm_head=add_head)


# ---- Distillation ---------------------------------------------------------------------------------------------------


class LinearDivergence:
    """In the place of TRL's `ChunkedDivergenceFunction`: the same arguments and results."""

    @staticmethod
    def apply(
        hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, beta, temperature=1.0,
        scale=1.0, softcap=None, teacher_scale=1.0, teacher_softcap=None,
    ):  # fmt: skip
        """The divergence of each token (N,), and the student's entropy there, without a gradient."""
        hidden, weight, bias = _operands(hidden, weight, bias)
        _, *teacher = _operands(hidden, teacher_hidden, teacher_weight, teacher_bias)
        form = {"temperature": temperature, "scale": scale, "softcap": softcap}
        kind = {0.0: "forward", 1.0: "reverse"}.get(beta, "jsd")
        value = linear_divergence(
            hidden, weight, *teacher[:2], bias=bias, teacher_bias=teacher[2], kind=kind,
            beta=beta if kind == "jsd" else None, teacher_scale=teacher_scale, teacher_softcap=teacher_softcap, **form,
        )  # fmt: skip
        with torch.no_grad():
            anything = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
            _, entropy = linear_logprob(hidden, weight, anything, bias=bias, entropy=True, **form)
        return value, entropy


class DistillationTrainer(trl.DistillationTrainer):
    """TRL's DistillationTrainer with the divergence from `linear_divergence`."""

    _compute_loss = with_names(
        trl.DistillationTrainer._compute_loss,
        _chunked_divergence_loss=with_names(
            distillation_trainer._chunked_divergence_loss,
            ChunkedDivergenceFunction=LinearDivergence,
            _use_triton=_always,
        ),
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        refuse_zero3()
