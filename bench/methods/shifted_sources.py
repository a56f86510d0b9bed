"""Nets that are made ready on the source domains for shifts to come: a consistency, experts, rich features."""

from __future__ import annotations

import copy

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.methods.nets import Classifier, fit
from bench.methods.runner import Numbers
from bench.methods.shifted_world import SOURCES, Size, World, augmented
from warpup.continual import ExpertAggregator, gradient_alignment
from warpup.distill import MultiHeadMatch
from warpup.nn import Concat
from warpup.optim import unroll


class Adaptive(nn.Module):
    """A classifier with a block behind its features, that begins as nothing and is all that a test changes."""

    def __init__(self, net: Classifier, width: int):
        super().__init__()
        self.net, self.block, self.consistency = net, nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.block.weight)
        nn.init.zeros_(self.block.bias)

    def features(self, x: Tensor) -> Tensor:
        z = self.net.features(x)
        return z + self.block(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.net.head(self.features(x))

    def without_labels(self, z: Tensor, other: Tensor) -> Tensor:
        return self.consistency(other - z).square().mean()


def improved(seed: int, size: Size, *, consistency: str) -> Numbers:
    """ITTA: a learned consistency between an image and its augmented form, trained so that following it helps the
    cross-entropy; each test batch is one Adam step on the inserted block, from the trained weights. consistency:
    "learned", "random", or "none": the same training with augmented forms, and no step."""
    world = World(seed, size)
    model = Adaptive(Classifier([size.hidden] * 2, norm=nn.BatchNorm1d), size.hidden)
    model.consistency.requires_grad_(consistency == "learned")
    featuriser = [*model.net.features.parameters()]

    def loss(x, y):
        z, other = model.features(torch.cat([x, augmented(x)])).chunk(2)
        ce = F.cross_entropy(model.net.head(z), y) + F.cross_entropy(model.net.head(other), y)
        if consistency != "learned":
            return ce
        return ce + 0.1 * gradient_alignment(model.without_labels(z, other), ce, featuriser)

    model.block.requires_grad_(False)
    fit(model, world.x, world.y, size.steps, seed=seed, loss=loss)
    model.eval()
    model.block.requires_grad_(True)
    start = copy.deepcopy(model.block.state_dict())

    def step(x: Tensor) -> Tensor:
        if consistency != "none":
            model.block.load_state_dict(start)
            optimizer = torch.optim.Adam(model.block.parameters(), size.rate)
            optimizer.zero_grad()
            model.without_labels(model.features(x), model.features(augmented(x))).backward()
            optimizer.step()
        with torch.no_grad():
            return model(x)

    return {"stream": world.followed(step), "source": world.source(model)}


def meta_distilled(seed: int, size: Size, *, adapt: bool = True) -> Numbers:
    """Meta-DMoE: a frozen expert for each source domain; the student takes one step to the experts' aggregated features
    on images without labels, and is trained to be right after that step. Not adapt: the same student without it."""
    world = World(seed, size)
    experts = []
    for domain in range(len(SOURCES)):
        own = world.domain == domain
        experts.append(Classifier([size.hidden] * 2))
        fit(experts[-1], world.x[own], world.y[own], size.steps // 2, seed=seed)
    student, aggregate = Classifier([size.hidden] * 2), ExpertAggregator(size.hidden)
    fit(student, world.x, world.y, size.steps // 2, seed=seed)
    optimizer = torch.optim.Adam([*student.parameters(), *aggregate.parameters()], size.rate)

    def seen(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([expert.features(x) for expert in experts], 1)

    def distance(weights, batch) -> Tensor:
        x, wanted = batch
        parts = {name.removeprefix("features."): p for name, p in weights.items()}
        return F.mse_loss(functional_call(student.features, parts, (x,)), wanted)

    def stepped(x: Tensor, left_out: Tensor | None) -> dict[str, Tensor]:
        weights = dict(student.named_parameters())
        features = {name: p for name, p in weights.items() if name.startswith("features.")}
        return weights | unroll(features, distance, [(x, aggregate(seen(x), left_out))], 0.1)

    for i in range(size.steps // 2):
        domain = i % len(SOURCES)
        own = (world.domain == domain).nonzero().flatten()
        support, query = own[torch.randint(len(own), (2, size.batch))]
        weights = stepped(world.x[support], torch.full((size.batch,), domain))
        optimizer.zero_grad()
        F.cross_entropy(functional_call(student, weights, (world.x[query],)), world.y[query]).backward()
        optimizer.step()

    def answer(x: Tensor) -> Tensor:
        if not adapt:
            return student(x).detach()
        return functional_call(student, stepped(x, None), (x,)).detach()

    return {"stream": world.followed(answer)}


# ---- rich features --------------------------------------------------------------------------------------------------


def linear_head(world: World, features) -> Numbers:
    """Mean over shifts of the accuracy of a logistic regression on the features of a few labelled images of the shift;
    features are standardised, so their scale is of no account."""
    found, few = [], world.size.labels
    for x, y in world.stream:
        with torch.no_grad():
            z = features(x).numpy()
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(z[:few], y[:few].numpy())
        found.append(float(head.score(z[few:], y[few:].numpy())))
    return {"linear head": sum(found) / len(found)}


def rich(seed: int, size: Size, *, kind: str) -> Numbers:
    """Features of one net, of four side by side (CAT), of one that has learned all four (DISTILL), or of one as wide as
    the four."""
    world = World(seed, size)
    if kind == "wide":
        wide = Classifier([size.hidden, 4 * size.hidden], norm=nn.BatchNorm1d)
        fit(wide, world.x, world.y, size.steps, seed=seed)
        return linear_head(world, wide.eval().features)
    nets = [world.trained().features for _ in range(1 if kind == "one" else 4)]
    if kind != "distil":
        return linear_head(world, Concat(*nets).eval())
    student, match = Classifier([size.hidden] * 2, norm=nn.BatchNorm1d), MultiHeadMatch(size.hidden, [size.hidden] * 4)
    both = nn.ModuleList([student, match])

    def loss(x, y):
        with torch.no_grad():
            wanted = [net(x) for net in nets]
        return match(student.features(x), wanted)

    fit(both, world.x, world.y, size.steps, seed=seed, loss=loss)
    return linear_head(world, student.eval().features)
