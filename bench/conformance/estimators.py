"""Advantages of verl."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.conformance.row import B, Result, Row, T
from warpup import advantage

REWARDS = torch.tensor([0.5, 1.0, -2.0, 0.25, 3.0, 1.5], dtype=torch.float64)
PAIRS, ALONE = torch.tensor([3, 3, 8, 3, 8, 8]), torch.tensor([3, 3, 8, 3, 8, 5])


def estimator_rows(x: dict, verl: Any) -> Iterator[Row]:
    mask, holes = x["mask"], x["mask"].clone()
    holes[1, 5:9] = False  # a tool's answer

    def call(name: str, mask=mask, groups=PAIRS, rewards=REWARDS, **more) -> Callable[[], Result]:
        tokens = torch.zeros(B, T, dtype=torch.float64)
        tokens[torch.arange(B), (mask * torch.arange(T)).argmax(1)] = rewards
        arguments = {"token_level_rewards": tokens, "response_mask": mask.double(), **more}
        arguments["config"] = SimpleNamespace(gamma=0.9, get=lambda key, default: default)
        if name != "reinforce_plus_plus":
            arguments["index"] = np.array(groups.tolist())
        return lambda: (verl.get_adv_estimator_fn(name)(**arguments)[0] * mask,)

    def mine(advantages: Callable[[], Tensor], mask=mask) -> Callable[[], Result]:
        def run() -> Result:
            found = advantages()
            return ((found[:, None] * mask if found.dim() == 1 else found),)

        return run

    lengths = mask.sum(1).double()
    yield Row(
        "advantage.grpo", "verl", "grpo", call("grpo"), mine(lambda: advantage.grpo(REWARDS, PAIRS)),
        "1e-6 is added to the deviation, not 1e-4", mine(lambda: advantage.grpo_verl(REWARDS, PAIRS)),
    )  # fmt: skip
    yield Row(
        "advantage.grpo, one alone", "verl", "grpo", call("grpo", groups=ALONE),
        mine(lambda: advantage.grpo(REWARDS, ALONE)), "a group of one keeps its reward; 1e-6",
        mine(lambda: advantage.grpo_verl(REWARDS, ALONE)),
    )  # fmt: skip
    yield Row("advantage.rloo", "verl", "rloo", call("rloo"), mine(lambda: advantage.rloo(REWARDS, PAIRS)))
    yield Row(
        "advantage.rloo, one alone", "verl", "rloo", call("rloo", groups=ALONE),
        mine(lambda: advantage.rloo(REWARDS, ALONE)), "a group of one keeps its reward",
        mine(lambda: advantage.rloo(REWARDS, ALONE, singleton="raw")),
    )  # fmt: skip
    yield Row("advantage.opo", "verl", "opo", call("opo"), mine(lambda: advantage.opo(REWARDS, PAIRS, lengths=lengths)))
    yield Row(
        "advantage.pass_at_k", "verl", "grpo_passk", call("grpo_passk"),
        mine(lambda: advantage.pass_at_k(REWARDS, PAIRS)),
    )  # fmt: skip
    yield Row(
        "advantage.reinforce_pp", "verl", "reinforce_plus_plus", call("reinforce_plus_plus"),
        mine(lambda: advantage.reinforce_pp(REWARDS, mask=mask, gamma=0.9)),
    )  # fmt: skip
    yield Row(
        "advantage.reinforce_pp, holes", "verl", "reinforce_plus_plus", call("reinforce_plus_plus", mask=holes),
        mine(lambda: advantage.reinforce_pp(REWARDS, mask=holes, gamma=0.9), holes),
    )  # fmt: skip
    yield Row(
        "advantage.reinforce_pp_baseline", "verl", "reinforce_plus_plus_baseline",
        call("reinforce_plus_plus_baseline"), mine(lambda: advantage.reinforce_pp_baseline(REWARDS, PAIRS, mask=mask)),
    )  # fmt: skip
    p = x["old_logp"].clamp(max=0).exp()
    more = {"logp": x["old_logp"], "sum_p2": p**2 + (1 - p) ** 2 / 3}
    given = {"old_log_probs": more["logp"], "sum_pi_squared": more["sum_p2"]}
    for name in ("optimal_token_baseline", "tir_optimal_token_baseline"):
        yield Row(
            "advantage.optimal_token_baseline", "verl", name, call(name, **given),
            mine(lambda: advantage.optimal_token_baseline(REWARDS, PAIRS, mask=mask, **more)),
        )  # fmt: skip
