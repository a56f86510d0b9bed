"""Experts of transformers' mixture models on warpup's operators, as the experts implementation "warpup".

import warpup.integrations.transformers_moe
model = AutoModelForCausalLM.from_pretrained(name, experts_implementation="warpup")

transformers takes that name for any model, but only experts that use its interface ask for it: for others (Llama4,
DBRX, Switch) a warning says so, once a model family.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import warnings

import torch
from torch import Tensor
from transformers import PreTrainedModel, activations
from transformers.integrations import moe

from warpup.moe.grouped_mm import expert_of, grouped_mm
from warpup.moe.moe_experts import moe_experts
from warpup.moe.moe_gather import moe_combine, moe_gather
from warpup.moe.moe_plan import moe_plan

KINDS = {
    torch.nn.SiLU: "silu",
    activations.SiLUActivation: "silu",
    activations.GELUActivation: "gelu",
    activations.GELUTanh: "gelu_tanh",
    torch.nn.ReLU: "relu",
}


def experts_forward(self: torch.nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers' classes of experts call in place of their own loop. Ids from num_experts on, which belong to
    other ranks, are dropped."""
    indices = torch.where(top_k_index < self.num_experts, top_k_index, -1).long()

    def weight(name):
        w = getattr(self, name)
        return w.mT if self.is_transposed else w

    def bias(name):
        return getattr(self, f"{name}_bias") if self.has_bias else None

    activation = kind_of(self)
    if activation is not None:
        return moe_experts(
            hidden_states, top_k_weights, indices, weight("gate_up_proj"), weight("down_proj"),
            b_gate_up=bias("gate_up_proj"), b_down=bias("down_proj"), activation=activation, weight_placement="down",
        )  # fmt: skip

    # An activation of the model's own: the same operators, with the module's code between them.
    plan = moe_plan(indices, self.num_experts)

    def project(x, name):
        y = grouped_mm(x, weight(name), plan.offsets)
        return y + bias(name)[expert_of(plan.offsets, len(y))] if self.has_bias else y

    a = project(moe_gather(hidden_states, plan), "gate_up_proj" if self.has_gate else "up_proj")
    o = project(self._apply_gate(a) if self.has_gate else self.act_fn(a), "down_proj")
    if getattr(self, "has_post_expert_norm", False):
        o = self.post_expert_norm(o)
    return moe_combine(o, top_k_weights, plan)


def kind_of(experts: torch.nn.Module) -> str | None:
    """The name that `moe_experts` has for what the module does between its products, or None."""
    if not experts.has_gate or getattr(experts, "has_post_expert_norm", False):
        return None
    if getattr(type(experts), "_apply_gate", None) is moe._default_apply_gate:
        return KINDS.get(type(experts.act_fn))
    gpt_oss = type(experts).__name__ == "GptOssExperts" and not experts.is_concatenated
    return "swiglu_oai" if gpt_oss and (experts.alpha, experts.limit) == (1.702, 7.0) else None


@functools.cache
def outside_of_the_interface(module: str) -> tuple[str, ...]:
    """The classes of experts in a model's module, where none of them uses the interface."""
    try:
        code = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return ()
    experts = re.findall(r"^class (\w*Experts\w*|\w+MoE)\(nn\.Module\)", code, re.MULTILINE)
    return () if "@use_experts_implementation" in code else tuple(experts)


_said: set[str] = set()


def _say_where_it_does_nothing(choose):
    """`choose` is what every model of transformers asks for its implementation, made or changed."""

    @functools.wraps(choose)
    def choose_aloud(self, requested_experts):
        chosen, module = choose(self, requested_experts), type(self).__module__
        if chosen == "warpup" and module not in _said and (experts := outside_of_the_interface(module)):
            _said.add(module)
            warnings.warn(
                f'experts_implementation="warpup" has no effect on {type(self).__name__}: transformers has '
                f"{', '.join(experts)} outside of its experts interface, so their own code runs",
                stacklevel=2,
            )
        return chosen

    return choose_aloud


moe.ExpertsInterface.register("warpup", experts_forward)
PreTrainedModel.get_correct_experts_implementation = _say_where_it_does_nothing(
    PreTrainedModel.get_correct_experts_implementation
)
