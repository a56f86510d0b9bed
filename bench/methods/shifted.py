"""Shifted digits: nets that have seen clean, dim and noisy images meet shifts that they have not, without labels.

Half of the digits are for training, each in every source domain; the other half come as a stream, one shift after the
other. "stream" is the accuracy on each batch as it comes; "source" that on clean images when the stream is over, of
nets that it changed; "linear head" that of a head trained on a few labels of each shift. Rates were chosen on seed 100.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.methods import shifted_sources as sources
from bench.methods.nets import CLASSES, batches
from bench.methods.runner import Arm, Column, Numbers
from bench.methods.shifted_world import Size, World, augmented
from warpup import divergence
from warpup.continual import (
    diagonal_fisher,
    ema_update_,
    ewc_penalty,
    fisher_mask,
    mean_teacher_loss,
    nearest_prototype,
)
from warpup.losses import supcon_loss

SIZE, QUICK = Size(), Size(steps=12, hidden=8, batch=128, labels=20)
COLUMNS = {"stream": Column(100, 1), "source": Column(100, 1), "linear head": Column(100, 1)}


# ---- nets that follow the stream ------------------------------------------------------------------------------------


def unchanged(seed: int, size: Size) -> Numbers:
    world = World(seed, size)
    net = world.trained()
    return {"stream": world.followed(net), "source": world.source(net)}


def batch_statistics(seed: int, size: Size) -> Numbers:
    """Batch normalisation by the batch at hand: the least that adapts, and what the others build on."""
    world = World(seed, size)
    net = world.trained().train()
    with torch.no_grad():
        stream = world.followed(net)
    return {"stream": stream, "source": world.source(net)}


def robust_mean_teacher(seed: int, size: Size) -> Numbers:
    """RMT: the student follows a teacher that is its own mean, contrast pulls features to source prototypes, and a
    source batch is learned beside; first a warm-up on source images without labels."""
    world = World(seed, size)
    student = world.trained()
    with torch.no_grad():
        z = student.features(world.x)
        prototypes = torch.stack([z[world.y == c].mean(0) for c in range(CLASSES)])
    teacher = copy.deepcopy(student).train().requires_grad_(False)
    student.train()
    projector = nn.Linear(size.hidden, size.hidden // 2)
    optimizer = torch.optim.Adam([*student.parameters(), *projector.parameters()], size.rate)

    def step(x: Tensor, *, warming: bool = False) -> Tensor:
        both = student.features(torch.cat([x, augmented(x)]))
        logits, other = student.head(both).chunk(2)
        answers = teacher(x)
        loss = mean_teacher_loss(logits, other, answers)
        if not warming:
            z, z_other = both.chunk(2)
            views = torch.cat([nearest_prototype(z.detach(), prototypes), z, z_other])
            loss = loss + supcon_loss(projector(views), torch.arange(len(x)).repeat(3), 0.1)
            source_x, source_y = world.drawn(len(x))
            loss = loss + F.cross_entropy(student(source_x), source_y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update_(dict(teacher.named_parameters()), dict(student.named_parameters()), size.decay)
        return logits.detach() + answers

    warm = size.steps // 8
    for i in range(warm):
        optimizer.param_groups[0]["lr"] = size.rate * (i + 1) / warm
        step(world.drawn(size.batch)[0], warming=True)
    stream = world.followed(step)
    return {"stream": stream, "source": world.source(lambda x: student.eval()(x) + teacher.eval()(x))}


def parameter_selective(seed: int, size: Size, *, anchored: bool = True) -> Numbers:
    """PSMT: symmetric cross-entropy with a mean teacher; the Fisher information of the source holds the student, and
    what the batch does not need goes back to it. Not anchored: the mean teacher alone."""
    world = World(seed, size)
    student = world.trained()
    source = {name: p.detach().clone() for name, p in student.named_parameters()}
    named = dict(student.named_parameters())

    def losses():
        for indices in batches(len(world.y), 1, 200, seed):
            logits = student(world.x[indices])
            yield F.cross_entropy(logits, logits.argmax(-1)), 1  # of its own answers, as published

    fisher = diagonal_fisher(named, losses())
    teacher = copy.deepcopy(student).train().requires_grad_(False)
    student.train()
    optimizer = torch.optim.Adam(student.parameters(), size.rate)

    def step(x: Tensor) -> Tensor:
        logits, answers = student(x), teacher(x)
        loss = divergence(logits, answers, kind="symmetric_ce").mean()
        if anchored:
            loss = loss + 500 * ewc_penalty(named, fisher, source)
        optimizer.zero_grad()
        loss.backward()
        mask = fisher_mask({name: p.grad.square() for name, p in named.items()}) if anchored else None
        optimizer.step()
        if mask:
            with torch.no_grad():
                for name, p in named.items():
                    p.copy_(torch.where(mask[name], source[name], p))
        ema_update_(dict(teacher.named_parameters()), named, size.decay, mask=mask)
        return answers

    stream = world.followed(step)
    return {"stream": stream, "source": world.source(teacher)}


def arm(function, against: str = "", by: str = "stream", **options) -> Arm:
    return Arm(partial(function, **options), by, against)


ARMS = {
    "unchanged": arm(unchanged),
    "statistics of the batch": arm(batch_statistics, "unchanged"),
    "RMT": arm(robust_mean_teacher, "statistics of the batch"),
    "mean teacher": arm(parameter_selective, "statistics of the batch", anchored=False),
    "PSMT": arm(parameter_selective, "mean teacher"),
    "augmented in training": arm(sources.improved, "unchanged", consistency="none"),
    "consistency, random": arm(sources.improved, "augmented in training", consistency="random"),
    "ITTA": arm(sources.improved, "augmented in training", consistency="learned"),
    "Meta-DMoE, no step": arm(sources.meta_distilled, "unchanged", adapt=False),
    "Meta-DMoE": arm(sources.meta_distilled, "Meta-DMoE, no step"),
    "features of one net": arm(sources.rich, by="linear head", kind="one"),
    "features of a wide net": arm(sources.rich, "features of one net", "linear head", kind="wide"),
    "features of four nets (CAT)": arm(sources.rich, "features of a wide net", "linear head", kind="four"),
    "the four in one (DISTILL)": arm(sources.rich, "features of one net", "linear head", kind="distil"),
}
