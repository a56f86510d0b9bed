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
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel, activations
from transformers.integrations import moe

from warpup._op import autocast, ops
from warpup._optional import needs
from warpup.moe.glu import glu
from warpup.moe.grouped_mm import expert_of, grouped_mm, unit_stride, weight_gradient
from warpup.moe.moe_experts import moe_experts
from warpup.moe.moe_gather import moe_combine, moe_gather
from warpup.moe.moe_plan import moe_plan

from ._peft import peft

KINDS = {
    torch.nn.SiLU: "silu",
    activations.SiLUActivation: "silu",
    activations.GELUActivation: "gelu",
    activations.GELUTanh: "gelu_tanh",
    torch.nn.ReLU: "relu",
}


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers' classes of experts call in place of their own loop. Ids from num_experts on, which belong to
    other ranks, are dropped."""
    indices = torch.where(top_k_index < self.num_experts, top_k_index, -1).long()

    def weight(name):
        w = getattr(self, name)
        return w.mT if self.is_transposed else w

    def bias(name):
        return getattr(self, f"{name}_bias") if self.has_bias else None

    activation, adapters = kind_of(self), self.__dict__.get(ADAPTERS)
    if activation is not None and not adapters:
        return moe_experts(
            hidden_states, top_k_weights, indices, weight("gate_up_proj"), weight("down_proj"),
            b_gate_up=bias("gate_up_proj"), b_down=bias("down_proj"), activation=activation, weight_placement="down",
        )  # fmt: skip

    # Adapters, or an activation of the model's own: the same operators one after the other.
    plan = moe_plan(indices, self.num_experts)

    def project(x, name):
        if adapters and name in adapters:
            down, up, scaling = adapters[name]
            y = low_rank_mm(x, weight(name), down, up, scaling, plan.offsets)
        else:
            y = grouped_mm(x, weight(name), plan.offsets)
        b = bias(name)
        return y if b is None else y + b[expert_of(plan.offsets, len(y))]

    a = project(moe_gather(hidden_states, plan), "gate_up_proj" if self.has_gate else "up_proj")
    gated = glu(a, activation=activation) if activation else self._apply_gate(a) if self.has_gate else self.act_fn(a)
    o = project(gated, "down_proj")
    if getattr(self, "has_post_expert_norm", False):
        o = self.post_expert_norm(o)
    return moe_combine(o, top_k_weights, plan)


# ---- Adapters -------------------------------------------------------------------------------------------------------


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, down: Tensor, up: Tensor, scaling: float, offsets: Tensor):
        low = scaling * ops.grouped_mm(x, down, offsets)
        ctx.save_for_backward(x, w, down, up, low, offsets)
        ctx.scaling = scaling
        return add_product_(ops.grouped_mm(x, w, offsets), low, up, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, w, down, up, low, offsets = ctx.saved_tensors
        grad, needs = unit_stride(grad), ctx.needs_input_grad
        grad_low = ctx.scaling * ops.grouped_mm(grad, up.mT, offsets)
        return (
            add_product_(ops.grouped_mm(grad, w.mT, offsets), grad_low, down.mT, offsets) if needs[0] else None,
            weight_gradient(w, grad, x, offsets) if needs[1] else None,
            weight_gradient(down, grad_low, x, offsets) if needs[2] else None,
            weight_gradient(up, grad, low, offsets) if needs[3] else None,
            None,
            None,
        )


def low_rank_mm(x: Tensor, w: Tensor, down: Tensor, up: Tensor, scaling: float, offsets: Tensor) -> Tensor:
    """`grouped_mm` of x (S, K) and w + scaling up @ down, which is never made: w (E, N, K), down (E, r, K), up
    (E, N, r)."""
    return _LowRank.apply(*autocast(x, w, down, up), scaling, offsets)


def add_product_(out: Tensor, x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """out with `grouped_mm(x, w, offsets)` added. Where w has few columns, reading and writing what is as large as out
    is all the time that it takes: on a CPU the library adds to out as it multiplies."""
    if not out.is_cpu or out.dtype not in (torch.float32, torch.float64):
        return out.add_(ops.grouped_mm(x, w, offsets))
    for (first, last), m in zip(pairwise(offsets.tolist()), w, strict=True):
        out[first:last].addmm_(x[first:last], m.mT)
    return out


ADAPTERS = "_warpup_adapters"  # on a module of experts at work: parameter -> (E, r, in), (E, out, r), scaling


def low_rank_experts(model: torch.nn.Module) -> torch.nn.Module:
    """Has adapters of peft on fused experts (`target_parameters`) computed beside the experts, r numbers a row.

    peft makes the whole of W + scaling B A, for all experts and twice in a forward. Here x goes through A and B apart,
    by `grouped_mm`: the same result up to rounding, and no tensor of the weights' size. Merging, saving and several
    adapters at once stay peft's.

    model: of peft, with experts_implementation="warpup"; changed in place and returned. Raises ValueError if it has no
    adapter on such experts.
    """
    with needs("low_rank_experts", "peft", "'warpup[lora]'"):
        wrapper = peft().tuners.lora.layer.ParamWrapper

    modules: Iterator[Any] = model.modules()
    found = [m for m in modules if type(m) is wrapper and computes_experts(m.get_base_layer())]
    if not found:
        raise ValueError(
            f'{type(model).__name__} has no adapter on experts with experts_implementation="warpup": give LoraConfig '
            'target_parameters=["experts.gate_up_proj", "experts.down_proj"]'
        )
    for module in found:
        module.__class__ = _low_rank_wrapper()
    return model


def computes_experts(module: Any) -> bool:
    """Whether this is a module of experts that calls `experts_forward`."""
    return hasattr(module, "is_transposed") and module.config._experts_implementation == "warpup"


@functools.cache
def _low_rank_wrapper() -> type:
    """peft's wrapper of a parameter that hands on its factors. Made when there is one: peft is optional."""
    from peft.tuners.lora.layer import ParamWrapper

    class LowRankExperts(ParamWrapper):
        @contextmanager
        def _activate_lora(self: Any, active_adapters: list[str]):
            names, experts = [name for name in active_adapters if name in self.lora_A], self.get_base_layer()
            if len(names) != 1 or not computes_experts(experts):  # the implementation may have been changed since
                with super()._activate_lora(active_adapters):
                    yield
                return
            [name] = names
            dtype, number = self.get_param().dtype, self.num_experts
            down, up = self.lora_A[name].weight.to(dtype), self.lora_B[name].weight.to(dtype)
            # peft's rows of A are those of one expert after the other, the columns of B one rank's of all experts.
            factors = (
                down.view(number, -1, down.shape[1]),
                up.view(len(up), -1, number).permute(2, 0, 1).contiguous(),
                self.scaling[name],
            )
            here = experts.__dict__.setdefault(ADAPTERS, {})
            here[self.parameter_name] = factors
            try:
                yield
            finally:
                del here[self.parameter_name]

    return LowRankExperts


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
