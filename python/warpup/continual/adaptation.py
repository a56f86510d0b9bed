"""Adaptation to a shifted distribution at test time, from inputs without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup._arguments import explained
from warpup.divergence.divergence import divergence

from .weights import State


@explained
def mean_teacher_loss(student: Tensor, augmented: Tensor, teacher: Tensor) -> Tensor:
    """Half the symmetric cross-entropy of the student from its teacher, half that of the augmented student; 0-d.

    SCE(x, t) = -sum p_t log p_x / 2 - sum p_x log p_t / 2 (`divergence` of kind "symmetric_ce"), mean over the batch.

    The rest of robust mean teacher (RMT, arXiv 2211.13081) is at hand: the teacher by `ema_update_` with decay .999;
    the pull to the source by `supcon_loss` (temperature .1) over projections of `nearest_prototype(z, prototypes)`, z
    and the augmented z; cross-entropy of a source batch; the prediction is the sum of both models' logits. Before, the
    model is warmed up with this loss on 50,000 source examples, the learning rate rising.

    Args:
        student, augmented: (B, C) logits of the batch and of its augmented form, with gradient.
        teacher: (B, C) logits, a constant.
    """
    each = [divergence(logits, teacher, kind="symmetric_ce") for logits in (student, augmented)]
    return 0.5 * (each[0] + each[1]).mean()


@explained
def nearest_prototype(features: Tensor, prototypes: Tensor) -> Tensor:
    """(B, D): for each of features (B, D) the prototype of (C, D) with the largest cosine."""
    cosine = F.normalize(features, dim=-1) @ F.normalize(prototypes, dim=-1).T
    return prototypes[cosine.argmax(-1)]


@explained
def fisher_mask(squared: State, share: float = 0.03) -> dict[str, Tensor]:
    """Where squared gradients are below their `share` quantile, over all tensors together: bool, by name.

    PSMT (arXiv 2407.02253) takes the squared gradients of one step. Where True the student goes back to the source,
    `parameter.copy_(torch.where(mask, source, parameter))`, and the teacher by `ema_update_(..., mask=mask)` with it.

    Args:
        squared: gradient^2 of each parameter.
        share: in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"fisher_mask: share must be above 0 and below 1, got {share}")
    if not squared:
        raise ValueError("fisher_mask: squared must name at least one tensor")
    flat = torch.cat([value.detach().flatten().float() for value in squared.values()])
    place = share * (len(flat) - 1)
    low, high = (flat.kthvalue(min(int(place) + i, len(flat))).values for i in (1, 2))
    quantile = torch.lerp(low, high, place - int(place))
    return {name: value.detach() < quantile for name, value in squared.items()}


@explained
def gradient_alignment(loss: Tensor, reference: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """`||g / |g| - h / |h|||^2` of the gradients g and h of two losses by the parameters; 0-d, differentiable.

    What trains the learnable consistency of improved test-time adaptation (ITTA, arXiv 2304.04494): with features z and
    z~ of an input and its augmented form, loss is `f_w(z~ - z).square().mean()`, reference the cross-entropy of both;
    .1 times this, added to them, makes w such that following the former helps the latter. At test time one Adam step
    on inserted blocks follows the loss without labels alone.

    Args:
        loss, reference: 0-d.
        parameters: of the featuriser, on which both depend.
    """
    flat = []
    for value in (loss, reference):
        gradients = torch.autograd.grad(value, list(parameters), create_graph=True)
        flat.append(F.normalize(torch.cat([gradient.flatten() for gradient in gradients]), dim=0))
    return (flat[0] - flat[1]).square().sum()


class ExpertAggregator(nn.Module):
    """One feature of the features of several frozen experts: pre-norm transformer layers over them, then their mean.

    Meta-DMoE (arXiv 2210.03885): the student's features follow this aggregate on inputs without labels for one SGD
    step, `warpup.optim.unroll`; after that step its cross-entropy on labelled inputs of the same domain trains both.
    While training, the expert of that very domain is left out. The mean over experts is ours.

    Args:
        width: D of the features.
        heads, layers: of the transformer.
    """

    def __init__(self, width: int, heads: int = 1, layers: int = 1):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, features: Tensor, left_out: Tensor | None = None) -> Tensor:
        """(B, D) of features (B, K, D); left_out: (B,) int64, the expert that each example does without."""
        if left_out is not None and features.shape[1] < 2:
            raise ValueError("ExpertAggregator: features must be of at least 2 experts where one is left out, got 1")
        masked = None if left_out is None else F.one_hot(left_out, features.shape[1]).bool()
        mixed = self.encoder(features, src_key_padding_mask=masked)
        if masked is None:
            return mixed.mean(1)
        return mixed.masked_fill(masked.unsqueeze(-1), 0.0).sum(1) / (features.shape[1] - 1)
