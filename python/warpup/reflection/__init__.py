"""Schedules on reflection tokens: which tokens, which wave, and the device tables that follow requests under them."""

from warpup.reflection.batch import ReflectionBatch
from warpup.reflection.presets import AlphaOne, BudgetForcing, cyclic_reflex, no_wait, thought_switch_penalty
from warpup.reflection.schedule import ReflectionSchedule
from warpup.reflection.tokens import ReflectionTokens

__all__ = [
    "AlphaOne",
    "BudgetForcing",
    "ReflectionBatch",
    "ReflectionSchedule",
    "ReflectionTokens",
    "cyclic_reflex",
    "no_wait",
    "thought_switch_penalty",
]
