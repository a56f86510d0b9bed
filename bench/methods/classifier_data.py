"""Data that is made, and data that stays where it is: condensed images, trajectories, clients and their adapters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from bench.methods.nets import CLASSES, Classifier, accuracy, batches, fit
from bench.methods.runner import Numbers
from warpup.apps._digits import load_digits_split
from warpup.continual import average, difference, keep_largest, server_step
from warpup.data import PacedSampler
from warpup.optim import unroll
from warpup.synthesis import (
    condensation_loss,
    input_gradient_penalty,
    representatives,
    trajectory_distance,
    trajectory_scale,
)

# ---- ten images in place of all -------------------------------------------------------------------------------------


def trained_on(images: Tensor, seed: int, size) -> Numbers:
    """Accuracy, mean of three nets, after training on one image a class."""
    *_, test_x, test_y = load_digits_split(seed)
    found = []
    for again in range(3):
        net = Classifier([size.hidden])
        fit(net, images.detach(), torch.arange(CLASSES), size.steps // 4, batch=CLASSES, seed=again)
        found.append(accuracy(net, test_x, test_y))
    return {"accuracy": sum(found) / len(found)}


def first_of_each(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x[y == c][0] for c in range(CLASSES)])


def random_images(seed: int, size) -> Numbers:
    x, y, *_ = load_digits_split(seed)
    return trained_on(first_of_each(x, y), seed, size)


def condensed(seed: int, size, *, contrastive: bool) -> Numbers:
    """DC and DCC: images whose gradient on a random net is that of real ones. DCC is class by class for its first
    quarter (published: 250 outer steps)."""
    x, y, *_ = load_digits_split(seed)
    images = first_of_each(x, y).requires_grad_()
    optimizer = torch.optim.Adam([images], 0.02)
    for step in range(size.outer):
        net = Classifier([size.hidden])

        def loss(batch, net=net):
            return F.cross_entropy(net(batch[0]), batch[1])

        real, synthetic = {}, {}
        for c in range(CLASSES):
            own = x[y == c]
            own = own[torch.randint(len(own), (32,))]
            real[c] = own, torch.full((32,), c)
            synthetic[c] = images[c : c + 1], torch.tensor([c])
        optimizer.zero_grad()
        late = contrastive and 4 * step >= size.outer
        condensation_loss(loss, list(net.parameters()), real, synthetic, contrastive=late).backward()
        optimizer.step()
    return trained_on(images, seed, size)


def matched(seed: int, size, *, aligned: bool) -> Numbers:
    """Trajectory matching: training on the images ends where an expert is two epochs later. aligned (AST): the expert
    is kept smooth, the epoch in between counts as well, the student's loss is scaled, and images begin as real ones
    near the centers of k-means; its noise on filters is for convolutions, which there are none of."""
    x, y, *_ = load_digits_split(seed)
    net, epochs, ahead, inner_steps = Classifier([size.hidden // 2]), 8, 2, 10
    experts = [{name: p.detach().clone() for name, p in net.named_parameters()}]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for epoch in range(epochs):
        for indices in batches(len(y), 64, len(y) // 64, seed * epochs + epoch):
            inputs = x[indices].requires_grad_(aligned)
            logits = net(inputs)
            loss = F.cross_entropy(logits, y[indices])
            if aligned:
                loss = min(0.5 + 0.15 * epoch, 0.95) * loss + 0.01 * input_gradient_penalty(logits, inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        experts.append({name: p.detach().clone() for name, p in net.named_parameters()})
    images = x[representatives(x, y, 1, seed)] if aligned else first_of_each(x, y)
    images = images.clone().requires_grad_()
    rate = torch.tensor(0.1).log().requires_grad_()  # of the student, learned too
    learning = torch.optim.Adam([images, rate], 0.02)
    classes = torch.arange(CLASSES)
    for _ in range(size.outer // 2):
        t = int(torch.randint(epochs - ahead, ()))
        scale = trajectory_scale(t, epochs) ** (1 if t > epochs / 2 else -1) if aligned else 1.0

        def loss(weights, batch, scale=scale):
            return F.cross_entropy(functional_call(net, weights, (batch,)), classes) * scale

        middle = unroll(experts[t], loss, [images] * (inner_steps // 2), rate.exp())
        reached = unroll(middle, loss, [images] * (inner_steps // 2), rate.exp())
        distance = trajectory_distance(reached, experts[t], experts[t + ahead])
        if aligned:  # k / (1 + K) of the one epoch in between
            distance = distance + 0.5 * trajectory_distance(middle, experts[t], experts[t + 1])
        learning.zero_grad()
        distance.backward()
        learning.step()
    return trained_on(images, seed, size)


# ---- clients --------------------------------------------------------------------------------------------------------


def shards(y: Tensor, clients: int, seed: int) -> list[Tensor]:
    """Indices of each client's examples, mostly of two classes: a tenth is of any class."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    common, rest = order[: len(y) // 10], order[len(y) // 10 :]
    ordered = rest[y[rest].argsort(stable=True)].tensor_split(2 * clients)
    deal = torch.randperm(2 * clients, generator=generator).tolist()
    parts = common.tensor_split(clients)
    return [torch.cat([ordered[a], ordered[b], part]) for a, b, part in zip(deal[::2], deal[1::2], parts, strict=True)]


def federated(seed: int, size, *, order: str | None) -> Numbers:
    """FedAvg of ten clients, each of which begins with a fifth of its examples, by their loss under a model of all
    data, and has all of them after half of the rounds. None: all from the first round on."""
    x, y, test_x, test_y = load_digits_split(seed)
    scorer, server = Classifier([size.hidden]), Classifier([size.hidden])
    fit(scorer, x, y, size.steps // 5, seed=seed)
    with torch.no_grad():
        difficulty = F.cross_entropy(scorer(x), y, reduction="none")
    clients = shards(y, 10, seed)
    samplers = [
        PacedSampler(
            len(own), scores=difficulty[own].tolist(), order=order or "random", start=0.2 if order else 1.0,
            epochs=max(size.rounds // 2, 1), seed=seed,
        )
        for own in clients
    ]  # fmt: skip
    for turn in range(size.rounds):
        states = []
        for own, sampler in zip(clients, samplers, strict=True):
            local = copy.deepcopy(server)
            optimizer = torch.optim.SGD(local.parameters(), 0.1)
            epoch = torch.tensor(sampler.subset(turn))
            for chosen in batches(len(epoch), 16, size.local, seed * size.rounds + turn):
                indices = own[epoch[chosen]]
                optimizer.zero_grad()
                F.cross_entropy(local(x[indices]), y[indices]).backward()
                optimizer.step()
            states.append(local.state_dict())
        server.load_state_dict(average(states, [len(own) for own in clients]))
    return {"accuracy": accuracy(server, test_x, test_y)}


def sparse_adapter(seed: int, size, *, share: float, frozen: bool = False) -> Numbers:
    """FLASC: ten clients train an adapter of a model that knows half of the classes, and only the largest entries
    travel, both ways; in the first round, when half of the adapter is 0, all do. frozen: what arrives as 0 also stays
    0, which is what the paper warns of."""
    from peft import LoraConfig, get_peft_model

    x, y, test_x, test_y = load_digits_split(seed)
    base = Classifier([size.hidden] * 2)
    fit(base, x[y < 5], y[y < 5], size.steps // 2, seed=seed)
    targets = [name for name, layer in base.named_modules() if isinstance(layer, torch.nn.Linear)]
    server = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    named = {name: p for name, p in server.named_parameters() if p.requires_grad}
    keeping = torch.optim.SGD(named.values(), 1.0)
    clients = shards(y, 10, seed)
    for turn in range(size.rounds):
        whole, deltas = {name: p.detach().clone() for name, p in named.items()}, []
        kept = share if turn else 1.0
        sent = keep_largest(whole, kept)
        for own in clients:
            put(named, sent)
            optimizer = torch.optim.SGD(named.values(), 0.05)
            for chosen in batches(len(own), 16, size.local, seed * size.rounds + turn):
                optimizer.zero_grad()
                F.cross_entropy(server(x[own[chosen]]), y[own[chosen]]).backward()
                if frozen and turn:
                    for name, p in named.items():
                        p.grad.masked_fill_(sent[name] == 0, 0.0)
                optimizer.step()
            deltas.append(keep_largest(difference(named, sent), kept))
        put(named, whole)
        server_step(server, deltas, keeping)
    return {"accuracy": accuracy(server, test_x, test_y), "sent": share}


@torch.no_grad()
def put(named, state) -> None:
    for name, p in named.items():
        p.copy_(state[name])
