"""A model's output layer taken apart from its body, so that losses come straight from hidden states.

The logits of a batch are by far its largest tensor (8,192 tokens times 150,000 words are 5 GB in float32), and a loss
needs one number of each row. `Head` asks the body for hidden states of completion tokens alone and hands them, with the
output layer's weight, to `linear_logprob` and `linear_policy_loss`, which make the logits a slice at a time.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from types import SimpleNamespace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from warpup import KeptTokens, linear_logprob, replay_logprob
from warpup._evaluating import evaluating
from warpup._op import accumulator
from warpup.logprob.logit_form import formed
from warpup.logprob.token_logprob import token_mask
from warpup.policy.kinds import PolicyOptions
from warpup.policy.linear_policy_loss import linear_policy_loss_of
from warpup.policy.policy_loss import policy_loss_of

from .batch import Batch
from .fsdp import callable_body, is_sharded, whole
from .shared_prompts import can_share, hidden_of_shared

ROWS = 256  # rows of logits alive at once, where whole rows are made
# A product with a kept row of the weight takes 25 times as long as one among all (a CPU core, H = 576), so of larger
# shares of the vocabulary than this, whole rows are cheaper.
FEW = 0.04
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # what configs call a soft cap


class Head:
    """The output layer of a causal language model of transformers, with or without adapters of peft.

    How logits come of hidden states is not taken on trust: the model is run once on a few tokens, with numbers of known
    size in the place of what the layer returns, and its logits show what it does to them. `form` says what was found:

        linear   hidden @ weight.T + bias, times a scale (`logit_scale` of Cohere, Granite and others), perhaps under a
                 soft cap, cap * tanh(logits / cap) (Gemma 2): never made whole
        opaque   anything else, such as an adapter on the output layer: the model's own logits, as a whole, with a
                 warning

    `shares` says whether a batch's completions of one prompt may share its run through the body (`shared_prompts.py`).
    """

    def __init__(self, model):
        self.model = model
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.body: Any = getattr(causal, causal.base_model_prefix, None)
        self.call_body = callable_body(model, self.body)
        self.layer = causal.get_output_embeddings()
        config = model.config.get_text_config()
        self.cap: float | None = next((float(c) for c in (getattr(config, name, None) for name in CAPS) if c), None)
        self.scale, self.form, self.shares = 1.0, "opaque", False
        if self.body is not None and self.body is not causal and type(self.layer) is nn.Linear:
            with whole(model):
                self._compare()
        if self.form == "opaque":
            warnings.warn(
                f"{type(causal).__name__}: what makes its logits is not a linear layer, a scale and a soft cap, so the "
                "logits of a whole batch are made; lower max_tokens if memory is short",
                stacklevel=2,
            )

    @torch.no_grad()
    def _compare(self) -> None:
        vocab, device = self.layer.weight.shape[0], self.layer.weight.device
        ramp = torch.linspace(-80, 80, vocab, device=device).expand(2, 4, vocab)
        seen: list[Tensor] = []

        def ramped(layer, inputs, output):
            seen.append(inputs[0])
            return ramp

        hook = self.layer.register_forward_hook(ramped)
        try:
            with evaluating(self.model):
                ids = torch.arange(8, device=device).view(2, 4) % vocab
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
                logits = self.model(**inputs).logits.float()
                hidden = self.call_body(**inputs).last_hidden_state
                # Shared or not would be one pass or two: ranks with other batches would not keep step.
                shares = not is_sharded(self.model) and can_share(self.model, self.body)
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].shape != hidden.shape or not torch.allclose(seen[0], hidden, 1e-2, 1e-3):
            return
        uncapped = self.cap * torch.atanh((logits / self.cap).clamp(-0.999, 0.999)) if self.cap else logits
        small = ramp.abs() < (self.cap or 80)  # where a cap has not swallowed the digits
        scale = float((uncapped * ramp)[small].sum() / ramp[small].square().sum())
        if scale > 0 and torch.allclose(formed(ramp, scale, self.cap), logits, 1e-4, 1e-3):
            self.scale = 1.0 if abs(scale - 1) < 1e-4 else scale
            self.form, self.shares = "linear", shares

    def hidden(self, batch: Batch) -> Tensor:
        """(N, H): the hidden states that predict the batch's completion tokens; of an opaque head logits (N, V)."""
        if batch.prompts is not None:
            return hidden_of_shared(self.body, self.model.config, batch)[batch.mask]
        inputs = batch.arguments
        if self.form != "opaque":
            return self.call_body(**inputs).last_hidden_state[batch.mask]
        first = int(batch.mask.any(dim=0).to(torch.int8).argmax())  # no logits of columns that are prompts only
        keep = "logits_to_keep" in inspect.signature(type(self.model).forward).parameters
        if keep:
            inputs["logits_to_keep"] = batch.inputs.shape[1] - first
        logits = self.model(**inputs).logits
        return (logits if keep else logits[:, first:])[batch.mask[:, first:]]

    @property
    def finish(self) -> dict[str, Any]:
        """What a linear head does to the product of hidden states and weight, as the fused losses take it."""
        return {"bias": self.layer.bias, "scale": self.scale, "softcap": self.cap}

    def fixed(self) -> Head:
        """The same with the output layer's weights of now, without gradients: what a `Snapshot` puts back stays."""
        found = copy.copy(self)
        if self.form != "opaque":
            weight, bias = (None if p is None else p.detach() for p in (self.layer.weight, self.layer.bias))
            if is_sharded(self.model):  # in the memory of the root, where others will be
                weight, bias = (None if p is None else p.clone() for p in (weight, bias))
            found.layer = SimpleNamespace(weight=weight, bias=bias)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) logits as the model makes them, as a whole."""
        if self.form == "opaque":
            return hidden
        return formed(linear(hidden, self.layer.weight, self.layer.bias), self.scale, self.cap)

    @overload
    def logprob(
        self, hidden: Tensor, targets: Tensor, temperature: float = ..., *, entropy: Literal[False] = ...,
        sum_p2: Literal[False] = ..., **replay: Any,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def logprob(
        self, hidden: Tensor, targets: Tensor, temperature: float = ..., *, entropy: bool = ..., sum_p2: bool = ...,
        **replay: Any,
    ) -> Tensor | tuple[Tensor, ...]: ...  # fmt: skip

    def logprob(
        self, hidden: Tensor, targets: Tensor, temperature: float = 1.0, *, entropy: bool = False, sum_p2: bool = False,
        **replay: Any,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        """Log-probs (N,) of the targets (N,) from `hidden`; if asked for the entropies and the sums of the squared
        probabilities. replay: `delta` (N,) and `token_set` of a schedule, `kept` of filters, with which no logits but
        those of the kept tokens are made; `penalties` and `seen`."""
        asked = {"entropy": entropy, "sum_p2": sum_p2}
        if self._takes_rows(targets, replay):
            return self._by_rows(hidden, targets, temperature, asked, replay)
        if self.form == "opaque":
            return replay_logprob(hidden, targets, temperature=temperature, **asked, **replay)
        return linear_logprob(
            hidden, self.layer.weight, targets, temperature=temperature, **self.finish, **asked, **replay
        )

    def _takes_rows(self, targets: Tensor, replay: dict[str, Any]) -> bool:
        """Whether whole rows of logits are made: under penalties, and else where that costs the least."""
        kept = replay.get("kept")
        if "penalties" in replay or kept is None or self.form == "opaque":
            return "penalties" in replay
        return len(kept.token_ids) > FEW * len(targets) * self.layer.weight.shape[0]

    def drawn(
        self,
        hidden: Tensor,
        begin: int,
        *,
        delta: Tensor | None = None,
        token_set: Any = None,
        kept: KeptTokens | None = None,
        penalties: Any = None,
        seen: Any = None,
    ) -> tuple[Tensor, KeptTokens | None]:
        """Whole logits (R, V) as tokens were drawn from them, under a schedule and penalties, and what of them filters
        had left; hidden (R, H), of the tokens from `begin` on."""
        logits, end = self.logits(hidden), begin + len(hidden)
        if delta is not None:
            logits = logits.to(accumulator(logits))
            on = token_mask("Head.drawn", logits.shape[1], token_set, logits.device)
            logits = torch.where(on, logits + delta[begin:end, None], logits)
        if penalties is not None:
            logits = penalties.apply(logits.to(accumulator(logits)), *seen.masks(begin, end, logits.shape[1]))
        return logits, None if kept is None else kept.select(torch.arange(begin, end, device=logits.device))

    def _by_rows(self, hidden: Tensor, targets: Tensor, temperature: float, asked: dict, replay: dict):
        """`logprob` from whole logits, ROWS at a time, and again backward."""

        def of_rows(h: Tensor, begin: int):
            logits, kept = self.drawn(h, begin, **replay)
            return replay_logprob(logits, targets[begin : begin + len(h)], temperature=temperature, kept=kept, **asked)

        parts = [checkpoint(of_rows, h, n * ROWS, use_reentrant=False) for n, h in enumerate(hidden.split(ROWS))]
        return tuple(map(torch.cat, zip(*parts, strict=True))) if any(asked.values()) else torch.cat(parts)

    def policy_loss(
        self,
        options: PolicyOptions,
        hidden: Tensor,
        targets: Tensor,
        old_logp: Tensor,
        advantages: Tensor,
        cu_seqlens: Tensor,
        temperature: float = 1.0,
        *,
        replay: dict[str, Any] | None = None,
        **tensors: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`warpup.policy_loss` of packed completions (N,), from the hidden states (N, H) before them."""
        replay, mask = replay or {}, torch.ones_like(targets, dtype=torch.bool)
        if self.form == "linear" and not self._takes_rows(targets, replay):
            others: dict[str, Any] = {**self.finish, **tensors}
            return linear_policy_loss_of(
                options, hidden, self.layer.weight, targets, old_logp, advantages, mask, temperature=temperature,
                cu_seqlens=cu_seqlens, logit_delta=replay.get("delta", 0.0), token_set=replay.get("token_set"),
                kept=replay.get("kept"), **others,
            )  # fmt: skip
        wants = options.entropy_coef != 0
        found = self.logprob(hidden, targets, temperature, entropy=wants, **replay)
        logp, entropy = found if isinstance(found, tuple) else (found, None)
        return policy_loss_of(
            options, logp, old_logp, advantages, mask, entropy=entropy, cu_seqlens=cu_seqlens, **tensors
        )

    def nll(self, hidden: Tensor, targets: Tensor, denominator: float, weights: Tensor | None = None) -> Tensor:
        """The sum of -log p of the targets (N,), each times its weight (N,), over a denominator: supervised
        fine-tuning."""
        # A policy loss with ratio 1 and the weights as advantages is this sum, and of all ways the one with the fewest
        # products.
        one = torch.ones(len(targets), device=targets.device)
        weights = one if weights is None else weights
        ends = torch.tensor([0, len(targets)], device=targets.device)
        options = PolicyOptions(kind="gpg", normalizer=("token", denominator))
        return self.policy_loss(options, hidden, targets, torch.zeros_like(one), weights, ends)[0]
