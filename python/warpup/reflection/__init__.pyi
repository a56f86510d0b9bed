from .batch import ReflectionBatch
from .budget import ThinkingBudget
from .budget_state import BudgetState
from .emulation import emulated_logprob
from .presets import AlphaOne, BudgetForcing, cyclic_reflex, no_wait, thought_switch_penalty
from .schedule import ReflectionSchedule
from .tokens import ReflectionTokens

__all__ = [
    "AlphaOne",
    "BudgetForcing",
    "BudgetState",
    "ReflectionBatch",
    "ReflectionSchedule",
    "ReflectionTokens",
    "ThinkingBudget",
    "cyclic_reflex",
    "emulated_logprob",
    "no_wait",
    "thought_switch_penalty",
]
