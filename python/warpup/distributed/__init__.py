"""Experts over many ranks: fully sharded sparse data parallelism (Hecate, arXiv 2502.02581) on torch.distributed.

`ShardedExperts` is the layer; the planner (`materialize`, `calibrate`, `heterogeneous_shards`, `dispatch`) and the two
collectives serve other trainers as well.
"""

from warpup.distributed.collectives import Gathering, sparse_all_gather, sparse_reduce_scatter
from warpup.distributed.experts import ShardedExperts, overlap
from warpup.distributed.gradients import clip_grad_norm_
from warpup.distributed.placement import (
    Placement,
    calibrate,
    dispatch,
    even_shards,
    heterogeneous_shards,
    materialize,
    overlap_budget,
)
from warpup.distributed.shards import load_experts, move_shards, rebalance, save_experts

__all__ = [
    "Gathering",
    "Placement",
    "ShardedExperts",
    "calibrate",
    "clip_grad_norm_",
    "dispatch",
    "even_shards",
    "heterogeneous_shards",
    "load_experts",
    "materialize",
    "move_shards",
    "overlap",
    "overlap_budget",
    "rebalance",
    "save_experts",
    "sparse_all_gather",
    "sparse_reduce_scatter",
]
