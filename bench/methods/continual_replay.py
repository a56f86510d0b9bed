"""Learners of continual digits that rehearse earlier tasks, or give each an expert; the task of an image is unknown."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.methods.continual_known import Plain
from bench.methods.nets import CLASSES, Classifier
from warpup import divergence
from warpup.continual import Reservoir, ShiftDetector
from warpup.data import RecencySampler, ViewsSampler
from warpup.losses import hpcr_scale, proxy_loss, relation_loss, supcon_loss

TEMPERATURE = 0.09  # of HPCR


class Rehearse(Plain):
    """Has all examples of the tasks so far, and draws each batch from them as a power of their age, or alike."""

    known, decay, d = False, "power", 1.0

    def __init__(self, stream, size, seed):
        super().__init__(stream, size, seed)
        self.x, self.y = (torch.cat(parts) for parts in zip(*stream.train, strict=True))
        tasks = [task for task, (x, _) in enumerate(stream.train) for _ in x]
        draws = 2 * size.batch * size.steps  # as many as replay has, with those from memory
        self.sampler = RecencySampler(tasks, per_task=draws, d=self.d, decay=self.decay, seed=seed)

    def step(self, x, y):
        drawn = self.sampler.next(2 * self.size.batch)
        super().step(self.x[drawn], self.y[drawn])


class RehearseExponential(Rehearse):
    decay = "exponential"


class RehearseAlike(Rehearse):
    d = 0.0


class RehearseKnown(RehearseAlike):
    known = True


class Replay(Plain):
    """A batch of the task and a batch from a memory of earlier ones."""

    known = False

    def __init__(self, *given):
        super().__init__(*given)
        self.memory = Reservoir(self.size.memory, self.seed)

    def end(self, x, y):
        with torch.no_grad():
            features = self.net.features(x)
            logits = self.scores(features)
        for item in zip(x, y, logits, features, strict=True):
            self.memory.add(item)

    def scores(self, features: Tensor) -> Tensor:
        return self.net.head(features)

    def drawn(self) -> list[Tensor]:
        """x, y, logits and features from memory."""
        return [torch.stack(part) for part in zip(*self.memory.sample(self.size.batch), strict=True)]

    def loss(self, x, y):
        if self.memory.items:
            old_x, old_y, *_ = self.drawn()
            x, y = torch.cat([x, old_x]), torch.cat([y, old_y])
        return super().loss(x, y)


class PCR(Replay):
    """Proxy-based contrastive replay: the rows of the head are proxies, to which features are near or far in angle."""

    def scores(self, features):
        return F.normalize(features, dim=-1) @ F.normalize(self.net.head.weight, dim=-1).T / TEMPERATURE

    def predict(self, x, task):
        return self.scores(self.net.features(x))

    def contrast(self, z: Tensor, y: Tensor) -> Tensor:
        return proxy_loss(z, self.net.head.weight, y, TEMPERATURE)

    def distil(self, z: Tensor, logits: Tensor, features: Tensor) -> Tensor | float:
        return 0.0

    def loss(self, x, y):
        if not self.memory.items:
            return self.contrast(self.net.features(x), y)
        old_x, old_y, logits, features = self.drawn()
        z = self.net.features(torch.cat([x, old_x]))
        return self.contrast(z, torch.cat([y, old_y])) + self.distil(z[len(x) :], logits, features)


class HPCR(PCR):
    """PCR with pairs of examples beside those with proxies, a temperature that swings, and two distillations."""

    def __init__(self, *given):
        super().__init__(*given)
        self.count = 0

    def contrast(self, z, y):
        self.count += 1
        both = torch.cat([z, self.net.head.weight[y]])
        return hpcr_scale(self.count) * supcon_loss(both, torch.cat([y, y]), TEMPERATURE)

    def distil(self, z, logits, features):
        seen = self.stream.pairs[: self.task].flatten()  # classes when the logits were stored, at the latest
        logit_error = F.mse_loss(self.scores(z)[:, seen], logits[:, seen])
        return 0.1 * logit_error + 0.5 * relation_loss(z, features, TEMPERATURE)


class Augmented(Replay):
    """Replay with a disturbed form of each image of the task."""

    views = 1

    def begin(self, task, x, y):
        super().begin(task, x, y)
        self.x, self.y = x, y
        self.sampler = ViewsSampler(len(x), views=self.views, seed=self.seed)

    def step(self, x, y):
        drawn = self.sampler.next(self.size.batch)
        strength = (
            torch.arange(len(drawn)) % self.views / (self.views - 1) if self.views > 1 else torch.rand(len(drawn))
        )
        super().step(disturbed(self.x[drawn], 0.2 * strength[:, None]), self.y[drawn])


class Views(Augmented):
    """Four forms of an image in a batch, the later the more disturbed, and each is to be answered as the first is."""

    views = 4

    def loss(self, x, y):
        z = self.net(x).view(-1, self.views, CLASSES)
        first = z[:, :1].detach().expand_as(z[:, 1:]).reshape(-1, CLASSES)
        return super().loss(x, y) + 0.5 * divergence(z[:, 1:].reshape(-1, CLASSES), first).mean()


class TAME(Plain):
    """An expert a task, though nobody says when a task begins: a loss that jumps does. A selector, trained on a memory
    of who learned what, says who answers."""

    known, most = False, 50  # experts

    def __init__(self, *given):
        super().__init__(*given)
        self.detector, self.memory = ShiftDetector(window=20), Reservoir(2 * self.size.memory, self.seed)
        self.selector = Classifier([self.size.hidden] * 2, self.most)
        self.selecting = torch.optim.Adam(self.selector.parameters(), self.rate())
        self.experts: list[nn.Module] = []
        self.hire()

    def hire(self) -> None:
        net = self.make()
        self.experts.append(net)
        net.optimizer = torch.optim.Adam(net.parameters(), self.rate())

    def begin(self, task, x, y):
        """Nobody says so."""

    def step(self, x, y):
        losses = [F.cross_entropy(expert(x), y).item() for expert in self.experts]
        if self.detector.update(losses[self.detector.current]):
            chosen = self.detector.switch(losses)
            if chosen == len(self.experts):
                self.hire()
        expert = self.experts[self.detector.current]
        expert.optimizer.zero_grad()
        F.cross_entropy(expert(x), y).backward()
        expert.optimizer.step()
        for image in x:
            self.memory.add((image, self.detector.current))
        images, who = zip(*self.memory.sample(self.size.batch), strict=True)
        self.selecting.zero_grad()
        F.cross_entropy(self.selector(torch.stack(images)), torch.tensor(who)).backward()
        self.selecting.step()

    def predict(self, x, task):
        who = self.selector(x)[:, : len(self.experts)].argmax(-1)
        return torch.stack([expert(x) for expert in self.experts])[who, torch.arange(len(x))]


def disturbed(x: Tensor, strength: Tensor) -> Tensor:
    """Images with noise, and brighter or darker by up to the strength."""
    bright = 1 + strength * (2 * torch.rand(len(x), 1) - 1)
    return (x * bright + strength * torch.randn_like(x)).clamp(0, 1)
