from .batch import ReflectionBatch
from .presets import AlphaOne, BudgetForcing, cyclic_reflex, no_wait, thought_switch_penalty
from .schedule import ReflectionSchedule
from .tokens import ReflectionTokens

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
