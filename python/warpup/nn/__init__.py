"""Parts of networks: normalisation, attention between segments, stages that are shared, expanded and assembled."""

from .masks import INFORMATION, QUESTION, STATE, THOUGHT, memory_mask
from .normalization import GhostBatchNorm, QKNorm
from .stages import Concat, ConditioningDropout, Incubator, stack_stages

__all__ = [
    "INFORMATION",
    "QUESTION",
    "STATE",
    "THOUGHT",
    "Concat",
    "ConditioningDropout",
    "GhostBatchNorm",
    "Incubator",
    "QKNorm",
    "memory_mask",
    "stack_stages",
]
