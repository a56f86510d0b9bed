"""Learners of continual digits that are told the task, and what all learners share: the stream and plain training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.methods.nets import CLASSES, Classifier
from warpup import group_advantage, policy_loss
from warpup.apps._digits import load_digits_split
from warpup.continual import (
    average,
    diagonal_fisher,
    erk_densities,
    ewc_penalty,
    output_anchor,
    prune_and_grow_,
    prune_rate,
)
from warpup.optim import rsqrt_rate

TASKS = 5


@dataclass(frozen=True)
class Size:
    steps: int = 100  # of a task
    batch: int = 32
    hidden: int = 64
    every: int = 5  # steps between two evaluations
    memory: int = 100  # examples that replay keeps
    rate: float = 2e-3


class Stream:
    """The tasks: a pair of classes each, in an order that the seed draws."""

    def __init__(self, seed: int):
        x, y, test_x, test_y = load_digits_split(seed)
        self.pairs = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed)).view(TASKS, 2)
        self.train = [(x[m], y[m]) for m in ((y[:, None] == pair).any(-1) for pair in self.pairs)]
        self.test = [(test_x[m], test_y[m]) for m in ((test_y[:, None] == pair).any(-1) for pair in self.pairs)]
        task_of = torch.empty(CLASSES, dtype=torch.int64)
        task_of[self.pairs] = torch.arange(TASKS)[:, None].expand(-1, 2)
        self.others = task_of[:, None] != task_of  # (classes, classes): row c, the classes of other tasks than c's


# ---- learners -------------------------------------------------------------------------------------------------------


class Plain:
    """Trains on the task at hand alone; what the other learners build on."""

    known = True  # whether the task is

    def __init__(self, stream: Stream, size: Size, seed: int):
        self.stream, self.size, self.seed, self.task = stream, size, seed, 0
        self.net = self.make()

    def make(self) -> nn.Module:
        return Classifier([self.size.hidden] * 2)

    def rate(self) -> float:
        return self.size.rate

    def begin(self, task: int, x: Tensor, y: Tensor) -> None:
        self.task = task
        self.optimizer = torch.optim.Adam(self.net.parameters(), self.rate())

    def own(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits with those of other tasks' classes at -inf, where the task is known."""
        return logits.masked_fill(self.stream.others[labels], -torch.inf) if self.known else logits

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.own(self.net(x), y), y)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        self.optimizer.step()

    def end(self, x: Tensor, y: Tensor) -> None:
        """The task is over."""

    def predict(self, x: Tensor, task: int) -> Tensor:
        """Logits of the images of a task; who does not know tasks must not look at its number."""
        return self.net(x)


class PlainUnknown(Plain):
    known = False


class EWC(Plain):
    strength = 3e4

    def __init__(self, *given):
        super().__init__(*given)
        self.held: list[tuple[dict, dict]] = []  # of each task its Fisher information and where it ended

    def loss(self, x, y):
        values = dict(self.net.named_parameters())
        return super().loss(x, y) + self.strength / 2 * sum(ewc_penalty(values, *held) for held in self.held)

    def end(self, x, y):
        values = dict(self.net.named_parameters())
        each = ((Plain.loss(self, x[i : i + 1], y[i : i + 1]), 1) for i in range(min(len(x), 100)))
        self.held.append((diagonal_fisher(values, each), {name: p.detach().clone() for name, p in values.items()}))


class Hypernetwork(Plain):
    """Makes the weights of a small network from an embedding of the task; a penalty holds those of earlier tasks."""

    strength = 0.0

    def make(self):
        target = Classifier([self.size.hidden // 2])
        self.shapes = {name: p.shape for name, p in target.named_parameters()}
        self.meta = target.to("meta")
        size = sum(shape.numel() for shape in self.shapes.values())
        layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, size))
        net = nn.ModuleDict({"tasks": nn.Embedding(TASKS, 8), "layers": layers})
        first = torch.cat([p.detach().flatten() for p in Classifier([self.size.hidden // 2]).parameters()])
        net["layers"][2].bias.data.copy_(first)  # so the weights begin as those of a network do
        net["layers"][2].weight.data.mul_(0.1)
        return net

    def weights(self, task: int) -> Tensor:
        return self.net["layers"](self.net["tasks"].weight[task])

    def predict(self, x, task):
        parts = self.weights(task).split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return functional_call(self.meta, named, (x,))

    def begin(self, task, x, y):
        super().begin(task, x, y)
        self.before = [self.weights(earlier).detach() for earlier in range(task)]

    def loss(self, x, y):
        now = [self.weights(earlier) for earlier in range(self.task)] if self.strength else []
        anchor = self.strength * output_anchor(now, self.before[: len(now)])
        return F.cross_entropy(self.own(self.predict(x, self.task), y), y) + anchor


class HyperCRL(Hypernetwork):
    strength = 0.05


class Sparse(Plain):
    """A sparse set of hidden weights for each task: those of earlier tasks are used, and never change."""

    growth = "random"
    density = 0.15  # of the hidden weights, to each task

    def make(self):
        net = Classifier([self.size.hidden] * 2, bias=False)
        self.weights = {name: p for name, p in net.named_parameters() if name != "head.weight"}
        self.frozen = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in self.weights.items()}
        self.used: list[dict[str, Tensor]] = []
        return net

    def begin(self, task, x, y):
        super().begin(task, x, y)
        self.count, self.masks = 0, {}
        densities = erk_densities([p.shape for p in self.weights.values()], self.density)
        for (name, p), density in zip(self.weights.items(), densities, strict=True):
            free = torch.rand_like(p).masked_fill(self.frozen[name], -1)
            chosen = free >= free.flatten().topk(round(density * p.numel())).values[-1]
            self.masks[name] = chosen & ~self.frozen[name]
            p.data.copy_(torch.where(self.masks[name], torch.randn_like(p) * (2 / (density * p.shape[1])) ** 0.5, p))
            p.data.masked_fill_(~(self.masks[name] | self.frozen[name]), 0.0)

    def step(self, x, y):
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        dense = {name: p.grad.clone() for name, p in self.weights.items()}
        for name, p in self.weights.items():
            p.grad.masked_fill_(~self.masks[name], 0.0)
        self.optimizer.step()
        self.count += 1
        for name, p in self.weights.items():
            p.data.masked_fill_(~(self.masks[name] | self.frozen[name]), 0.0)  # moments of what was dropped
            if self.count % 10 == 0 and self.count <= 0.75 * self.size.steps:
                scores = dense[name].abs() if self.growth == "gradient" else torch.rand_like(p)
                rate = prune_rate(self.count, self.size.steps)
                prune_and_grow_(p.data, self.masks[name], rate, scores, self.frozen[name])

    def end(self, x, y):
        for name, mask in self.masks.items():
            self.frozen[name] |= mask
        self.used.append({name: mask.clone() for name, mask in self.frozen.items()})

    def predict(self, x, task):
        if task >= len(self.used):
            return self.net(x)
        kept = {name: p * self.used[task][name] for name, p in self.weights.items()}
        return functional_call(self.net, kept, (x,))


class SparseGradient(Sparse):
    growth = "gradient"


class Merge(Plain):
    """After each task the mean of what was merged so far and of what was trained from it, which goes on from there."""

    weight = 0.5  # of what was trained

    def begin(self, task, x, y):
        super().begin(task, x, y)
        self.merged = {name: p.clone() for name, p in self.net.state_dict().items()}

    def end(self, x, y):
        if self.task:
            w = self.weight
            self.net.load_state_dict(average([self.merged, self.net.state_dict()], [1 - w, w]))


class Rsqrt(Plain):
    def rate(self):
        return rsqrt_rate(self.size.rate, self.task + 1)


class MergeRsqrt(Rsqrt, Merge):
    pass


class Reinforce(Plain):
    """RFT: samples classes and is told only whether they are right."""

    group, never_solved = 8, True  # samples of an image; whether an image whose samples are all wrong counts

    def loss(self, x, y):
        logp = self.own(self.net(x), y).log_softmax(-1)
        sampled = logp.exp().multinomial(self.group, replacement=True)
        reward = (sampled == y[:, None]).float()
        taken = logp.gather(1, sampled).view(-1, 1)
        counts = torch.ones_like(reward) if self.never_solved else reward.amax(1, keepdim=True).expand_as(reward)
        advantage = group_advantage(reward.flatten(), self.group)
        return policy_loss(taken, taken.detach(), advantage, counts.reshape(-1, 1).bool())[0]


class ReinforceSolved(Reinforce):
    never_solved = False
