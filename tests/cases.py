"""One table of the operators, for tests and benchmarks: how to call each op, on what, and what it must equal.

Adding an op adds an entry to its family's table; `test_contract.py` then holds it to everything that every op promises.
"""

import cases_advantage
import cases_advantage_tokens
import cases_interval
import cases_interval_activation
import cases_interval_margin
import cases_logprob
import cases_logprob_divergence
import cases_logprob_policy
import cases_moe
import cases_moe_experts
import cases_moe_route
import cases_reflection
from case import Case, Inputs, agree, gradients_of, leaves, name_of, nudged, upcast

__all__ = ["CASES", "OPS", "Case", "Inputs", "agree", "gradients_of", "leaves", "name_of", "nudged", "upcast"]

CASES = [
    *cases_logprob.CASES,
    *cases_logprob_divergence.CASES,
    *cases_logprob_policy.CASES,
    *cases_advantage.CASES,
    *cases_advantage_tokens.CASES,
    *cases_moe.CASES,
    *cases_moe_experts.CASES,
    *cases_moe_route.CASES,
    *cases_reflection.CASES,
    *cases_interval.CASES,
    *cases_interval_margin.CASES,
    *cases_interval_activation.CASES,
]
OPS = {case.op: case for case in CASES}
