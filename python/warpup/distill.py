"""Distillation beside `warpup.divergence`: how much of it an example gets, and features of several teachers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup._arguments import check_above_0, explained, same_shape


@explained
def class_means(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """(C, C): row c the teacher's mean probabilities over the examples (N, C) of class c; 0 for a class without any."""
    p = teacher_logits.detach().softmax(-1)
    total = torch.zeros_like(p[:1]).expand(p.shape[-1], -1).clone().index_add_(0, labels, p)
    return total / labels.bincount(minlength=p.shape[-1]).clamp_min(1).unsqueeze(-1)


@explained
def trilateral_features(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """How student, teacher and truth lie to each other, (N, 9 C): S, T, G, M, S - G, T - G, S - T, S - M, M - G.

    S and T are probabilities, G is the label as one-hot vector, M the row of `class_means` of the label. No gradient.

    Source: TGeo-KD (arXiv 2312.15112); its geometry as the vectors of these corners and edges is our reading.
    """
    s, t = student_logits.detach().softmax(-1), teacher_logits.detach().softmax(-1)
    g, m = F.one_hot(labels, s.shape[-1]).to(s.dtype), means[labels].to(s.dtype)
    return torch.cat([s, t, g, m, s - g, t - g, s - t, s - m, m - g], -1)


class FusionNet(nn.Module):
    """(N,) in (0, 1): what share of an example's loss is distillation, from its `trilateral_features`.

    Its loss is that of the student on held-out examples one step later, TGeo-KD's outer problem; the step is unrolled,
    for otherwise no gradient reaches this net:

        def inner(weights, batch):
            logits = functional_call(student, weights, batch.x)
            alpha = fusion(trilateral_features(logits, batch.teacher, batch.y, means))
            return fusion_loss(logits, batch.teacher, batch.y, alpha)

        later = unroll(dict(student.named_parameters()), inner, [batch], rate)
        F.cross_entropy(functional_call(student, later, x), y).backward()  # then the optimizer of `fusion` steps

    Args:
        classes: C.
        hidden: width of the hidden layer.
    """

    def __init__(self, classes: int, hidden: int = 64):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(9 * classes, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).squeeze(-1).sigmoid()


@explained
def fusion_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha: Tensor, temperature: float = 1.0
) -> Tensor:
    """Mean over examples of `alpha t^2 KL(teacher || student at temperature t) + (1 - alpha) CE`; 0-d.

    Of plain torch operations, so that it can be differentiated twice (`FusionNet`). What the teacher rules out, a logit
    of -inf, counts 0.

    Args:
        student_logits: (N, C), with gradient.
        teacher_logits: (N, C), a constant.
        labels: (N,) int64.
        alpha: (N,), with gradient.
    """
    check_above_0("fusion_loss", temperature=temperature)
    same_shape("fusion_loss", student_logits=student_logits, teacher_logits=teacher_logits)
    same_shape("fusion_loss", labels=labels, alpha=alpha)
    s = (student_logits / temperature).log_softmax(-1)
    t = (teacher_logits.detach() / temperature).log_softmax(-1)
    kl = (t.exp() * (t - s).masked_fill(t == -torch.inf, 0.0)).sum(-1)
    ce = F.cross_entropy(student_logits, labels, reduction="none")
    return (alpha * temperature**2 * kl + (1 - alpha) * ce).mean()


class MultiHeadMatch(nn.Module):
    """Features of one network against those of several teachers, each through a linear head of its own: the sum over
    teachers of the mean of `||head_i(phi) - phi_i / |phi_i| ||^2`.

    DISTILL of rich representations (arXiv 2212.07346), which puts networks of different training into one; only the
    teachers' direction is matched. The squared distance is our reading of an abstract.

    Args:
        width: D of the student's features.
        teachers: the width of each teacher's features.
    """

    def __init__(self, width: int, teachers: Sequence[int]):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, each) for each in teachers)

    def forward(self, features: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """0-d. features: (N, D), with gradient; targets: (N, D_i) of each teacher, constants."""
        matched = zip(self.heads, targets, strict=True)
        each = [(head(features) - F.normalize(t.detach(), dim=-1)).square().sum(-1).mean() for head, t in matched]
        return torch.stack(each).sum()
