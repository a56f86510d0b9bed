"""Classifiers of digits: what a teacher, a norm, shared stages, condensed data, a second player or clients do to them.

Groups of arms that have nothing to do with each other share a table; each is compared with the plain one of its group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from bench.methods import classifier_data as data
from bench.methods import classifier_teachers as teachers
from bench.methods.nets import Classifier, accuracy, batches
from bench.methods.runner import Arm, Column, Numbers
from warpup.apps._digits import load_digits_split
from warpup.losses import parity_loss
from warpup.metrics import group_gap
from warpup.nn import GhostBatchNorm
from warpup.optim import block_gradients_, sqrt_rate


@dataclass(frozen=True)
class Size:
    steps: int = 400  # of a training
    hidden: int = 64
    few: int = 160  # labels that students have
    large_batch: int = 1024
    small_batch: int = 64
    outer: int = 200  # steps on synthetic images
    rounds: int = 20  # of clients
    local: int = 8  # steps of a client in a round
    fairness: float = 30.0  # weight of the parity loss
    second_player: float = 3.0  # the same where it is alone; 10 and more leave a net that always says the same


SIZE = Size()
QUICK = Size(steps=20, hidden=16, few=40, large_batch=128, small_batch=16, outer=4, rounds=2, local=2)
COLUMNS = {"accuracy": Column(100, 1), "parity gap": Column(100, 1), "sent": Column(100, 0)}


def large_batch(seed: int, size: Size, *, batch: str, ghost: bool = False, sqrt: bool = False) -> Numbers:
    """A net with batch normalisation after the same number of updates, by SGD with a clipped gradient."""
    x, y, test_x, test_y = load_digits_split(seed)
    count = size.large_batch if batch == "large" else size.small_batch
    norm = partial(GhostBatchNorm, ghost=size.small_batch) if ghost else nn.BatchNorm1d
    net = Classifier([size.hidden] * 2, norm=norm)
    rate = sqrt_rate(0.05, count, size.small_batch) if sqrt else 0.05
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    for indices in batches(len(y), count, size.steps, seed):
        optimizer.zero_grad()
        F.cross_entropy(net(x[indices]), y[indices]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return {"accuracy": accuracy(net, test_x, test_y)}


def fair(seed: int, size: Size, *, players: int, weight: bool = True) -> Numbers:
    """Is a digit even? The sensitive attribute is whether the image has more ink than most. One player minimises the
    sum of both losses; two have a block of layers and a loss each."""
    x, y, test_x, test_y = load_digits_split(seed)
    ink = x.sum(-1).median()
    net = Classifier([size.hidden] * 2, classes=1)
    blocks = [[*net.features[0].parameters(), *net.head.parameters()], [*net.features[2].parameters()]]
    # Adam would step as far for a parity loss of almost nothing as for a large one: the second player would never rest.
    second = torch.optim.SGD(blocks[1], 0.05) if players == 2 else torch.optim.Adam(blocks[1], 3e-3)
    optimizers = [torch.optim.Adam(blocks[0], 3e-3), second]
    for indices in batches(len(y), 128, size.steps, seed):
        logits, groups = net(x[indices])[:, 0], (x[indices].sum(-1) > ink).long()
        ce = F.binary_cross_entropy_with_logits(logits, (y[indices] % 2 == 0).float())
        weighed = size.fairness if players == 1 else size.second_player
        unfair = weighed * parity_loss(logits.sigmoid(), groups)
        for optimizer in optimizers:
            optimizer.zero_grad()
        if players == 2:
            block_gradients_([(ce, blocks[0]), (unfair, blocks[1])])
        else:
            (ce + unfair * weight).backward()
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        even = net(test_x)[:, 0] > 0
    gap = group_gap(even.double().numpy(), (test_x.sum(-1) > ink).numpy())
    return {"accuracy": float((even == (test_y % 2 == 0)).float().mean()), "parity gap": gap}


def arm(function, against: str = "", by: str = "accuracy", **options) -> Arm:
    return Arm(partial(function, **options), by, against)


ARMS = {
    "student: labels alone": arm(teachers.labels_alone),
    "student: KD": arm(teachers.plain_distillation, "student: labels alone"),
    "student: binary KD, one head": arm(teachers.one_head, "student: labels alone"),
    "student: DHKD": arm(teachers.two_heads, "student: binary KD, one head"),
    "student: DHKD, projected": arm(teachers.two_heads, "student: DHKD", projected=True),
    "student: TGeo-KD": arm(teachers.trilateral, "student: KD"),
    "batch 64": arm(large_batch, batch="small"),
    "batch 1024": arm(large_batch, "batch 64", batch="large"),
    "batch 1024, sqrt rate": arm(large_batch, "batch 1024", batch="large", sqrt=True),
    "batch 1024, sqrt rate, GhostBN": arm(large_batch, "batch 1024, sqrt rate", batch="large", sqrt=True, ghost=True),
    "expanded: random weights": arm(teachers.expanded, shared=False),
    "expanded: random weights, all steps": arm(
        teachers.expanded, "expanded: random weights", shared=False, steps_of_all=True
    ),
    "expanded: shared stages (Learngene)": arm(teachers.expanded, "expanded: random weights", shared=True),
    "deep: end to end": arm(teachers.assembled, apart=False),
    "deep: assembled": arm(teachers.assembled, "deep: end to end", apart=True),
    "10 images: random": arm(data.random_images),
    "10 images: DC": arm(data.condensed, "10 images: random", contrastive=False),
    "10 images: DCC": arm(data.condensed, "10 images: DC", contrastive=True),
    "10 images: trajectories": arm(data.matched, "10 images: random", aligned=False),
    "10 images: AST": arm(data.matched, "10 images: trajectories", aligned=True),
    "even: accuracy alone": arm(fair, by="parity gap", players=1, weight=False),
    "even: one player": arm(fair, "even: accuracy alone", "parity gap", players=1),
    "even: two players": arm(fair, "even: one player", "parity gap", players=2),
    "clients: all examples": arm(data.federated, order=None),
    "clients: random order": arm(data.federated, "clients: all examples", order="random"),
    "clients: easy first": arm(data.federated, "clients: random order", order="easy"),
    "clients: hard first": arm(data.federated, "clients: random order", order="anti"),
    "adapters: all sent": arm(data.sparse_adapter, share=1.0),
    "adapters: a quarter sent": arm(data.sparse_adapter, "adapters: all sent", share=0.25),
    "adapters: a quarter, zeros frozen": arm(data.sparse_adapter, "adapters: a quarter sent", share=0.25, frozen=True),
}
