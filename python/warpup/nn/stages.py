"""Networks as a sequence of stages: shared, expanded, trained one by one, put beside each other."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def stack_stages(stages: Sequence[nn.Module], depths: Sequence[int], *, shared: bool) -> nn.Sequential:
    """One after the other, stage k as depths[k] layers that are the stage itself (shared) or copies of it.

    Learngene by stage-wise weight sharing (arXiv 2404.16897): train `stack_stages(stages, depths, shared=True)`, with
    the loss (1 - a) CE + a tau^2 KL to a teacher (`warpup.divergence`), then begin a model of any depth with
    `stack_stages(stages, other_depths, shared=False)` and train it as usual.

    Args:
        stages: modules that keep the shape of their input.
        depths: layers of each, at least 0.
        shared: whether a stage's layers are one module, or copies that go apart in training.
    """
    if len(depths) != len(stages) or min(depths, default=0) < 0:
        raise ValueError(f"stack_stages: depths must be {len(stages)} numbers of at least 0, got {list(depths)}")
    layers = [stage for stage, depth in zip(stages, depths, strict=True) for _ in range(depth)]
    return nn.Sequential(*(layers if shared else map(copy.deepcopy, layers)))


class Incubator(nn.Module):
    """A module in the place of one stage of a small, trained meta model, whose other stages are constants.

    Deep model assembling (arXiv 2212.04129): the meta model has one layer a stage. Each module of the large model is
    trained in such a place, apart from the others and at the same time; assembled, `nn.Sequential(*modules)` needs
    little more training.

    Args:
        meta: stages of the meta model. Their parameters get no gradient here and stay as they are; in train mode their
            buffers would move, so put them in eval mode.
        module: what is trained; `parameters()` are its own alone.
        place: of the stage that it stands for, from 0 on.
    """

    def __init__(self, meta: Sequence[nn.Module], module: nn.Module, place: int):
        super().__init__()
        if not 0 <= place < len(meta):
            raise ValueError(f"Incubator: place must be from 0 to {len(meta) - 1}, got {place}")
        self.module = module
        self._before, self._after = list(meta[:place]), list(meta[place + 1 :])  # lists: not this module's parameters

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for stage in self._before:
                x = stage(x)
        x = self.module(x)
        for stage in self._after:
            constants = {name: p.detach() for name, p in stage.named_parameters()}
            x = functional_call(stage, constants, (x,))  # a gradient passes through, to the module
        return x


class Concat(nn.Module):
    """Features of several networks, trained apart, side by side: (..., sum of widths). A linear head on them is what
    CAT trains (arXiv 2212.07346); `warpup.distill.MultiHeadMatch` puts them into one network."""

    def __init__(self, *networks: nn.Module):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs) -> Tensor:
        return torch.cat([network(*inputs) for network in self.networks], -1)


class ConditioningDropout(nn.Module):
    """`main + m * extra`: m is 1 with probability `keep`, else 0, drawn for each example in training; 1 in eval mode.

    A condition that is sometimes missing in training is not leaned on (the shallow face branch of EchoVideo, arXiv
    2501.13452).

    Args:
        keep: in [0, 1].
    """

    def __init__(self, keep: float):
        super().__init__()
        if not 0 <= keep <= 1:
            raise ValueError(f"ConditioningDropout: keep must be in [0, 1], got {keep}")
        self.keep = keep

    def forward(self, main: Tensor, extra: Tensor) -> Tensor:
        """Both (B, ...)."""
        if not self.training:
            return main + extra
        kept = torch.rand(len(extra), device=extra.device) < self.keep
        return main + torch.where(kept.view(-1, *[1] * (extra.dim() - 1)), extra, 0.0)
