"""Models with routed experts in training: the balance losses of their routers, and how the experts are loaded.

What is watched: modules whose forward takes (hidden, indices (T, k), weights), as the experts of transformers 5 do,
and the router or gate beside each, whose result has logits (T, E). A model without experts is left as it is.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from warpup.moe.moe_balance_loss import moe_balance_loss
from warpup.moe.moe_route import moe_route

from .. import ranks
from ..errors import TrainError
from .batch import Batch

INDICES = ("top_k_index", "router_indices")  # what experts call them
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # in configs
warned: WeakSet[nn.Module] = WeakSet()  # models of whose unwatched experts a warning was given


class Routers:
    """The routers of a model over one optimizer step.

    coefficient: weight of the balance loss (see `moe_balance_loss`; the mean over layers, 1 where experts are loaded
    alike); None: what the model's config says, `router_aux_loss_coef` times k, since transformers' loss is k times
    ours. P is that of a softmax, also where the model's own scores are others.

    Experts that cannot be watched, and routers whose logits cannot, are named in one warning for a model.
    """

    def __init__(self, model, coefficient: float | None = None):
        self.model, self.coefficient = model, coefficient
        self.layers = layers_of(model)
        self.counts: list[Tensor] = []  # of each layer, over the step
        self.whole: list[Tensor] = []  # the same, known before the step's first loss
        self.balance = 0.0

    def survey(self, batches: Sequence[Batch], forward: Callable[[Batch], Any]) -> None:
        """Count the load of a step that goes through the model in several pieces, before the first one's loss: that of
        a piece would depend on how the step is cut. One forward of all pieces more, where there is a loss at all."""
        if (len(batches) == 1 and ranks.size() == 1) or not self.layers or not self._weight(1):
            return
        with torch.no_grad():
            for batch in batches:
                with self.watch(batch.attended):
                    forward(batch)
                self.loss(0.0)
        self.whole, self.counts = self._of_all_ranks(), []

    def _of_all_ranks(self) -> list[Tensor]:
        """The counts of each layer over all ranks, some of which may have had no rows."""
        every = [[layer.cpu() for layer in self.counts]] if ranks.size() > 1 else []
        found = [counts for each in ranks.gathered(every) for counts in each if counts]
        if not found:
            return self.counts
        device = self.model.device
        return [torch.stack(layer).sum(0).to(device) for layer in zip(*found, strict=True)]

    def _weight(self, k: int) -> float:
        if self.coefficient is not None:
            return self.coefficient
        return k * (getattr(self.model.config, "router_aux_loss_coef", None) or 0.0)

    @contextmanager
    def watch(self, attention: Tensor):
        """While open, what the routers decide for the tokens (B, T) that `attention` holds is kept."""
        self.seen: list[tuple[Tensor | None, Tensor, int]] = []  # of each layer logits, indices, E
        self.mask = attention.bool().view(-1)
        hooks = []
        for routers, experts in self.layers:
            latest: list[Tensor] = []
            for router in routers:
                hooks.append(router.register_forward_hook(logits_to(latest, experts.num_experts)))
            hooks.append(experts.register_forward_pre_hook(self._chosen(latest), with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._warn()

    def _chosen(self, latest: list[Tensor]):
        def hook(experts, arguments, named):
            indices = arguments[1] if len(arguments) > 1 else next(named[name] for name in INDICES if name in named)
            if len(indices) == len(self.mask):
                fit = [z for z in latest if len(z) == len(indices)]
                self.seen.append((fit[-1] if fit else None, indices, experts.num_experts))
            latest.clear()

        return hook

    def _warn(self) -> None:
        """Warns, once for a model, of what its forward has not shown."""
        known = {experts for _, experts in self.layers}
        other = [m for name, m in self.model.named_modules() if f".{name}".endswith(".experts") and m not in known]
        routed = other or config_has_experts(self.model)
        seen, heard = len(self.seen), sum(logits is not None for logits, *_ in self.seen)
        missing = seen < len(self.layers) or heard < seen or other or (routed and not self.layers)
        if missing and self.model not in warned:
            warned.add(self.model)
            warnings.warn(
                f"{type(self.model).__name__}: {seen} layers of routed experts can be watched, {heard} with their "
                f"router's logits; the load of others is not reported, and without logits there is no balance loss",
                stacklevel=4,
            )

    def loss(self, share: float) -> Tensor | float:
        """`share` (of the step's attended tokens) times the balance loss of the forward that was watched, with
        gradient."""
        counts, losses = [], []
        for layer, (logits, indices, experts) in enumerate(self.seen):
            k, indices = indices.shape[-1], torch.where(indices < experts, indices, -1)  # others: of other ranks
            z = indices.new_zeros(len(indices), experts, dtype=torch.float32) if logits is None else logits
            route = moe_route(z, k, replay_indices=indices, token_mask=self.mask)
            counts.append(route.counts)
            if logits is not None:
                known = route._replace(counts=self.whole[layer]) if self.whole else route
                losses.append(moe_balance_loss(known))
        self.seen = []
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)] if self.counts else counts
        if not losses:
            return 0.0
        balance = torch.stack(losses).mean()
        self.balance += share * float(balance.detach())
        return self._weight(k) * share * balance

    def numbers(self) -> dict[str, float]:
        """Of the step: the balance loss, and the load of the most and the least loaded expert, 1 if all are alike, a
        mean over layers."""
        self.counts = self._of_all_ranks()
        (self.balance,) = ranks.total(self.balance)
        if not self.counts:
            return {}
        load = [layer * (len(layer) / max(1, int(layer.sum()))) for layer in self.counts]
        return {
            "balance_loss": self.balance,
            "load_max": fmean(float(layer.max()) for layer in load),
            "load_min": fmean(float(layer.min()) for layer in load),
        }


def check_balance(model, coefficient: float | None, place: str) -> None:
    """Raise TrainError where a balance loss is asked for of a model that has no routed experts."""
    if coefficient and not layers_of(model) and not config_has_experts(model):
        kind = type(model).__name__
        raise TrainError(f"{place}.balance: got {coefficient!r}, but {kind} has no routed experts; leave it out")


def config_has_experts(model) -> bool:
    """Whether the model's config counts several experts, seen or not."""
    config = getattr(model, "config", None)
    return any(isinstance(n := getattr(config, name, 0), int) and n > 1 for name in COUNTS)


def layers_of(model) -> list[tuple[list[nn.Module], Any]]:
    """(the modules beside them that may be their router, experts) of each layer, in the model's order."""
    found = []
    for block in model.modules():
        for experts in block.children():
            if takes_indices(experts):
                beside = [(name, m) for name, m in block.named_children() if "shared" not in name]
                routers = [m for name, m in beside if "gate" in name or "router" in name]
                found.append((routers, experts))
    return found


def takes_indices(module: nn.Module) -> bool:
    """Whether this is a module of experts by its number of them and by the names of its forward's arguments."""
    if not isinstance(getattr(module, "num_experts", None), int):
        return False
    parameters = inspect.signature(type(module).forward).parameters
    return any(name in parameters for name in INDICES)


def logits_to(latest: list[Tensor], experts: int):
    """A hook that keeps the first floating (..., E) tensor of a router's result, as (T, E): its logits; Gemma's are
    probabilities."""

    def hook(router, arguments, out):
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, Tensor) and part.is_floating_point() and part.shape[-1:] == (experts,):
                part = part.log() if "Gemma" in type(router).__name__ else part
                latest.append(part.reshape(-1, experts))
                return

    return hook
