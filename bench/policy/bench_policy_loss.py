"""Family `logprob`: the policy losses on log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import DIRECTIONS, Comparison, Work, beside_reference
from tests.support.cases import OPS
from warpup.policy.kinds import POLICY_KINDS

SHAPES = {"cpu": (512, 2048), "cuda": (4096, 8192), "quick": (4, 64)}
torch._dynamo.config.recompile_limit = 64  # of the reference there is a graph for each kind
SAME = ("ppo", "dapo", "dr_grpo")  # as grpo, with other numbers


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = SHAPES[size]
    for direction in DIRECTIONS:
        name = f"policy_loss {direction} fp32 {list(shape)}"
        goals = {"eager": 10, "torch.compile": 1.2} if (size, direction) == ("cpu", "forward+backward") else {}
        yield Comparison(name, partial(policy_loss, device, shape, direction), goals)
    for kind in (kind for kind in POLICY_KINDS if kind not in ("grpo", *SAME)):
        name = f"policy_loss {kind} forward+backward fp32 {list(shape)}"
        goals = {"torch.compile": 1} if size == "cpu" else {}
        yield Comparison(name, partial(policy_loss, device, shape, "forward+backward", kind), goals)


def test_logprob_policy(case, measure):
    measure(case)


def policy_loss(device, shape, direction, kind="grpo") -> Work:
    op = OPS["policy_loss"]
    inputs = op.inputs(shape, torch.float32, device, 0, op.variants[0])
    # Of one sign: the loss of advantages that cancel has no digits left to compare, whoever sums them.
    inputs |= {"advantages": inputs["advantages"].abs(), "kind": kind}
    if kind != "grpo":  # nearly on policy: the ratio of a row is a power of its length
        inputs["old_logp"] = inputs["logp"] + 0.01 * (inputs["old_logp"] - inputs["logp"] + 0.1)
    if kind in ("clip_cov", "kl_cov"):  # selecting sorts, for either side alike
        inputs["selected"] = inputs["mask"] & (torch.arange(shape[1], device=device) % 50 == 0)
    return beside_reference(op, inputs, direction)
