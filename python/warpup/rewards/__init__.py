"""Rewards ready to be named in a config, alone or in a list with weights; options go into brackets:

reward = "warpup.rewards:number"
reward = ["warpup.rewards:math_verify", "warpup.rewards:overlong(max_length=256, buffer=64)"]

`number`, `exact`, `math_verify`: the final answer against the column "answer". `code_execution`: a program against
the column "tests". `reasoning_gym`: the tasks of that package. `cosine_length`, `overlong`: shaped by length.
`difficulty`: a tag that says how hard the task is, and short answers to easy ones. `reward_model`: a model that the
stage `step_reward` has trained. `think_answer`, `pattern`: format alone. The verifiers of `warpup.data` (`verify`,
`verify_exact`, `verify_math`) ask for format and answer at once.

`check(reward, cases)` holds a reward of yours, or one of these, against a table of right and wrong answers (`CASES`).
"""

from .answers import Grade, exact, final_answer, number
from .check import CASES, Case, Misjudged, check
from .code import code_execution
from .difficulty import difficulty
from .gym import reasoning_gym
from .mathematics import math_verify
from .model import reward_model
from .shape import cosine_length, overlong, pattern, think_answer

__all__ = [
    "CASES",
    "Case",
    "Grade",
    "Misjudged",
    "check",
    "code_execution",
    "cosine_length",
    "difficulty",
    "exact",
    "final_answer",
    "math_verify",
    "number",
    "overlong",
    "pattern",
    "reasoning_gym",
    "reward_model",
    "think_answer",
]
