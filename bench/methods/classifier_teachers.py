"""Classifiers made from others: students of a teacher, models expanded from shared stages, and models assembled."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.methods.nets import CLASSES, PIXELS, Classifier, accuracy, batches, fit
from bench.methods.runner import Numbers
from warpup import divergence
from warpup.apps._digits import load_digits_split
from warpup.distill import FusionNet, class_means, fusion_loss, trilateral_features
from warpup.nn import Incubator, stack_stages
from warpup.optim import project_conflict, unroll

# ---- students of a teacher ------------------------------------------------------------------------------------------


class Lesson:
    """A teacher that saw all of the training set, and a small student that has few of its labels."""

    def __init__(self, seed: int, size):
        x, y, self.test_x, self.test_y = load_digits_split(seed)
        self.teacher = Classifier([4 * size.hidden] * 2)
        fit(self.teacher, x, y, size.steps, seed=seed)
        self.x, self.y = x[: size.few], y[: size.few]
        with torch.no_grad():
            self.answers = self.teacher(self.x)  # logits
        self.student, self.seed, self.size = Classifier([size.hidden // 4]), seed, size

    def learn(self, loss) -> Numbers:
        """`loss` of the student's features, the teacher's logits and the labels; it may train layers of its own."""
        indices = torch.arange(len(self.x))

        def of_batch(chosen: Tensor, y: Tensor) -> Tensor:
            return loss(self.student.features(self.x[chosen]), self.answers[chosen], y)

        fit(self.student, indices, self.y, self.size.steps, seed=self.seed, batch=32, loss=of_batch)
        return self.measured()

    def measured(self) -> Numbers:
        return {"accuracy": accuracy(self.student, self.test_x, self.test_y)}


def labels_alone(seed: int, size) -> Numbers:
    lesson = Lesson(seed, size)
    return lesson.learn(lambda z, answers, y: F.cross_entropy(lesson.student.head(z), y))


def plain_distillation(seed: int, size) -> Numbers:
    lesson = Lesson(seed, size)

    def loss(z, answers, y):
        logits = lesson.student.head(z)
        kd = divergence(logits, answers, temperature=4.0, scale_by_t2=True).mean()
        return 0.1 * F.cross_entropy(logits, y) + 0.9 * kd

    return lesson.learn(loss)


def binary_kd(logits: Tensor, answers: Tensor) -> Tensor:
    return divergence(logits, answers, kind="binary", temperature=2.0, scale_by_t2=True).mean()


def one_head(seed: int, size) -> Numbers:
    """Labels and the binary divergence on one head: what the second head is there to avoid."""
    lesson = Lesson(seed, size)

    def loss(z, answers, y):
        logits = lesson.student.head(z)
        return F.cross_entropy(logits, y) + binary_kd(logits, answers)

    return lesson.learn(loss)


def two_heads(seed: int, size, *, projected: bool = False) -> Numbers:
    """DHKD. projected: what of the distillation's gradient in the features works against the labels' is taken out."""
    lesson = Lesson(seed, size)
    lesson.student.second = nn.Sequential(nn.Linear(size.hidden // 4, 200), nn.ReLU(), nn.Linear(200, CLASSES))

    def loss(z, answers, y):
        ce = F.cross_entropy(lesson.student.head(z), y)
        kd = binary_kd(lesson.student.second(z), answers)
        if projected:
            g_ce, g_kd = (torch.autograd.grad(part, z, retain_graph=True)[0] for part in (ce, kd))
            (kept,) = project_conflict([g_kd], [g_ce])
            moved = kept - g_kd  # added to z's gradient: a number of gradient `moved` and value 0
            kd = kd + (moved * (z - z.detach())).sum()
        return ce + kd

    return lesson.learn(loss)


def trilateral(seed: int, size) -> Numbers:
    """TGeo-KD: a small net says for each example how much of its loss is distillation. A quarter of the few labels is
    held out for it, so the student learns from three quarters."""
    lesson = Lesson(seed, size)
    x, y, answers, student = lesson.x, lesson.y, lesson.answers, lesson.student
    held = size.few // 4
    means, fusion = class_means(answers[held:], y[held:]), FusionNet(CLASSES)
    inner, outer = (torch.optim.Adam(net.parameters(), rate) for net, rate in ((student, 3e-3), (fusion, 1e-3)))

    def loss(weights, chosen):
        logits = functional_call(student, weights, (x[chosen],))
        alpha = fusion(trilateral_features(logits, answers[chosen], y[chosen], means))
        return fusion_loss(logits, answers[chosen], y[chosen], alpha, temperature=4.0)

    for step, chosen in enumerate(batches(size.few - held, 32, size.steps, seed)):
        weights = dict(student.named_parameters())
        if step % 5 == 0:
            later = unroll(weights, loss, [chosen + held], 0.1)
            outer.zero_grad()
            F.cross_entropy(functional_call(student, later, (x[:held],)), y[:held]).backward()
            outer.step()
        inner.zero_grad()
        loss(weights, chosen + held).backward()
        inner.step()
    return lesson.measured()


# ---- stages ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x).relu()


def expanded(seed: int, size, *, shared: bool, steps_of_all: bool = False) -> Numbers:
    """Learngene: stages trained as shared layers of an auxiliary net are copied into a net of other depths, which is
    trained a little. Not shared: such a net from random weights, trained as little, or with all steps of both."""
    x, y, test_x, test_y = load_digits_split(seed)
    stem, head = nn.Linear(PIXELS, size.hidden), nn.Linear(size.hidden, CLASSES)
    stages, little = [Block(size.hidden), Block(size.hidden)], size.steps // 20
    if shared:
        lesson = Lesson(seed, size)
        auxiliary = nn.Sequential(stem, stack_stages(stages, [3, 3], shared=True), head)

        def loss(x, y):
            logits = auxiliary(x)
            with torch.no_grad():
                answers = lesson.teacher(x)
            kd = divergence(logits, answers, temperature=4.0, scale_by_t2=True).mean()
            return 0.5 * F.cross_entropy(logits, y) + 0.5 * kd

        fit(auxiliary, x, y, size.steps, seed=seed, loss=loss)
    descendant = nn.Sequential(stem, stack_stages(stages, [2, 4], shared=False), head)
    if not shared:
        for layer in descendant.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()  # copies of one stage would begin alike
    fit(descendant, x, y, little + size.steps * steps_of_all, seed=seed + 1)
    return {"accuracy": accuracy(descendant, test_x, test_y)}


def layers(width: int, depth: int) -> list[nn.Module]:
    return [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]


def modules(width: int, depth: int) -> list[nn.Sequential]:
    """A plain net of three parts of as many layers each; together they are a classifier."""
    first, last = [nn.Linear(PIXELS, width), nn.ReLU()], [nn.Linear(width, CLASSES)]
    inner = layers(width, depth - 1)
    return [
        nn.Sequential(*first, *inner),
        nn.Sequential(*layers(width, depth)),
        nn.Sequential(*copy.deepcopy(inner), *last),
    ]


def assembled(seed: int, size, *, apart: bool) -> Numbers:
    """Deep model assembling: three modules, each trained in the place of one layer of a small trained net, then all
    together a little. Not apart: the same deep net, trained from its beginning with the steps of one module and that
    little."""
    x, y, test_x, test_y = load_digits_split(seed)
    parts = modules(size.hidden, 4)
    for module in parts:
        for layer in module:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    little = size.steps // 5
    if apart:
        meta = modules(size.hidden, 1)
        fit(nn.Sequential(*meta), x, y, size.steps, seed=seed)
        for stage in meta:
            stage.eval()
        for place, module in enumerate(parts):
            fit(Incubator(meta, module, place), x, y, size.steps, seed=seed + 1 + place)
    whole = nn.Sequential(*parts)
    fit(whole, x, y, little + size.steps * (not apart), seed=seed + 4)
    return {"accuracy": accuracy(whole, test_x, test_y)}
