"""Advantages: rewards against their group's, over tokens, segments, trees and roles; published estimators by name."""

from .estimators import (
    ESTIMATORS,
    dr_grpo,
    gdpo,
    grpo,
    grpo_verl,
    hierarchical_grpo,
    max_rl,
    opo,
    optimal_token_baseline,
    pass_at_k,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)

__all__ = [
    "ESTIMATORS",
    "dr_grpo",
    "gdpo",
    "grpo",
    "grpo_verl",
    "hierarchical_grpo",
    "max_rl",
    "opo",
    "optimal_token_baseline",
    "pass_at_k",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "rloo",
]
