"""Models with routed experts in training: the balance losses of their routers, and how the experts are loaded.

A router is a module of the class name `...TopKRouter` whose forward gives (logits (T, E), weights (T, k), indices
(T, k)), as those of transformers 5 do. A model without one is left as it is.
"""

from __future__ import annotations

from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor

from warpup.ops.moe_balance import moe_balance_loss
from warpup.ops.moe_route import moe_route


class Experts:
    """The routers of a model over one optimizer step.

    coefficient: weight of the balance loss (see `moe_balance_loss`; the mean over layers, 1 where experts are loaded
    alike); None: what the model's config says, `router_aux_loss_coef` times k, since transformers' loss is k times
    ours. P is that of a softmax, also where the model's own scores are others.
    """

    def __init__(self, model, coefficient: float | None = None):
        self.routers = [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]
        if coefficient is None:
            of = lambda name: getattr(model.config, name, None) or 0.0  # noqa: E731
            coefficient = of("router_aux_loss_coef") * of("num_experts_per_tok")
        self.coefficient = coefficient
        self.counts: list[Tensor] = []  # of each layer, over the step
        self.balance = 0.0

    @contextmanager
    def watch(self, attention: Tensor):
        """While open, what the routers decide for the tokens (B, T) that `attention` holds is kept."""
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.mask = attention.bool().view(-1)
        hooks = [router.register_forward_hook(lambda *call: self.seen.append(call[2])) for router in self.routers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, share: float) -> Tensor | float:
        """`share` (of the step's tokens) times the balance loss of the forward that was watched, with gradient."""
        if not self.routers:
            return 0.0
        routes = [
            moe_route(logits, indices.shape[-1], replay_indices=indices, token_mask=self.mask)
            for logits, _, indices, *_ in self.seen
        ]
        self.seen = []
        counts = [route.counts for route in routes]
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)] if self.counts else counts
        balance = torch.stack([moe_balance_loss(route) for route in routes]).mean()
        self.balance += share * float(balance.detach())
        return self.coefficient * share * balance

    def numbers(self) -> dict[str, float]:
        """Of the step: the balance loss, and the load of the most and the least loaded expert, 1 if all are alike, a
        mean over layers."""
        if not self.counts:
            return {}
        load = [layer * (len(layer) / max(1, int(layer.sum()))) for layer in self.counts]
        return {
            "balance_loss": self.balance,
            "load_max": fmean(float(layer.max()) for layer in load),
            "load_min": fmean(float(layer.min()) for layer in load),
        }
