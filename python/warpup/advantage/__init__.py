"""Advantages: rewards against their group's, over tokens, segments, trees and roles; published estimators by name."""

from .estimators import (
    ESTIMATORS,
    dr_grpo,
    gdpo,
    grpo,
    grpo_verl,
    opo,
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
    "opo",
    "pass_at_k",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "rloo",
]
