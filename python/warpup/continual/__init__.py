"""Learning one task after the other: states that are averaged, anchors that hold old tasks, replay, sparse masks,
adaptation at test time. Ways with a certificate are in `warpup.interval.weights`; `warpup continual` runs them."""

from .adaptation import ExpertAggregator, fisher_mask, gradient_alignment, mean_teacher_loss, nearest_prototype
from .anchors import diagonal_fisher, ewc_penalty, lora_deltas, output_anchor
from .replay import Reservoir, ShiftDetector
from .sparse import erk_densities, prune_and_grow_, prune_rate
from .weights import average, difference, ema_update_, keep_largest, server_step

__all__ = [
    "ExpertAggregator",
    "Reservoir",
    "ShiftDetector",
    "average",
    "diagonal_fisher",
    "difference",
    "ema_update_",
    "erk_densities",
    "ewc_penalty",
    "fisher_mask",
    "gradient_alignment",
    "keep_largest",
    "lora_deltas",
    "mean_teacher_loss",
    "nearest_prototype",
    "output_anchor",
    "prune_and_grow_",
    "prune_rate",
    "server_step",
]
