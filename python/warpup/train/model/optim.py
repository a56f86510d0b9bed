"""The optimizer and its learning rates."""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from warpup.optim import warmup_stable_decay

from ..errors import TrainError
from ..settings import RateSchedule, decay_steps
from .fsdp import reshard

SLICE = 1 << 20  # elements of a weight that a step in bfloat16 computes at once


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: RateSchedule, decay: float = 0.1) -> float:
    """Rate of step 0 .. steps - 1: a linear rise over `warmup` steps to `peak`, then the schedule (down to 0). Of wsd
    the rate stays until the last `decay` of the steps, and falls along a cosine."""
    if schedule == "wsd":
        return peak * warmup_stable_decay(steps, decay_steps(steps, decay), warmup=warmup)(step)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


def adamw(model, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over the model's trainable parameters: torch's, in its fused form, or where some are bfloat16 the one that
    rounds stochastically, with gradients summed in float32. TrainError on other 16-bit weights."""
    reshard(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    kinds = {p.dtype for p in parameters}
    if torch.float16 in kinds:
        raise TrainError("the weights are float16, in which small steps and gradients are lost; load them in float32")
    pair = (betas[0], betas[1])  # of a list too
    if torch.bfloat16 not in kinds:
        return torch.optim.AdamW(parameters, lr=lr, betas=pair, weight_decay=weight_decay, fused=True)
    for parameter in parameters:
        if not hasattr(parameter, "grad_dtype"):
            raise TrainError("weights in bfloat16 need a newer torch, which can sum their gradients in float32")
        parameter.grad_dtype = torch.float32
    return StochasticAdamW(parameters, lr=lr, betas=pair, weight_decay=weight_decay)


def clip_gradients(model, parameters: list[torch.nn.Parameter], clip: float) -> float:
    """Scale the gradients to a norm of at most `clip`; the norm that they had, where torch.distributed runs that of
    the whole parameters."""
    if not dist.is_initialized():
        return float(torch.nn.utils.clip_grad_norm_(parameters, clip))
    from warpup.distributed import clip_grad_norm_

    return float(clip_grad_norm_(model, clip, parameters))


def on_all_ranks(good: bool, device: torch.device) -> bool:
    """Whether something holds on every rank, so that none goes on alone."""
    if not dist.is_initialized():
        return good
    flag = torch.tensor(float(good), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW for weights in bfloat16, without a copy of them in float32: 6 bytes a weight with both moments.

    Every step is computed in float32 and then rounded stochastically, weight and moments alike: up or down with the
    probability that makes it right on average. A step of a typical learning rate is smaller than half a weight's last
    digit (2^-9 of the weight); rounded to the nearest it would be lost, each time. Arithmetic is that of
    `torch.optim.AdamW`; weights of other types in the same model are not rounded.

    Randomness is torch's global generator, of the CPU and of the weights' device.

    Source: "Revisiting BFloat16 Training", arXiv 2010.06192.
    """

    def __init__(
        self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step of all weights that have a gradient."""
        assert closure is None
        noise: dict[torch.device, Tensor] = {}
        size = min(SLICE, max(weight.numel() for group in self.param_groups for weight in group["params"]))
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
                if weight.device not in noise:  # one for all slices, moved for each
                    noise[weight.device] = torch.randint(1 << 16, (size,), dtype=torch.int32, device=weight.device)
                changed = (weight.view(-1), state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1))
                options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
                slices = (t.split(SLICE) for t in (weight.grad.reshape(-1), *changed))
                for grad, part, first, second in zip(*slices, strict=True):
                    step_slice(grad, part, first, second, int(state["step"]), noise[weight.device], **options)


def expected_moments(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an Adam's state must be like, by `index.name`: of each parameter that has one (one that never had a gradient
    has none) all moments, in its shape and dtype; the step is a number. Of other kinds, what was found."""
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | StochasticAdamW):
        return dict(found)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    have, names = ({key.partition(".")[place] for key in found} for place in (0, 2))
    step = torch.zeros(())
    return {
        f"{index}.{name}": step if name == "step" else parameter.detach()
        for index, parameter in enumerate(parameters)
        if str(index) in have
        for name in names
    }


def step_slice(
    grad: Tensor, weight: Tensor, first: Tensor, second: Tensor, step: int, noise: Tensor, *, lr: float,
    betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """AdamW on flat tensors (n,), in place; the new values of bfloat16 ones are rounded stochastically."""
    grad = grad.float()
    new_first = first.float().lerp(grad, 1 - betas[0])
    new_second = (second.float() * betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    size = (new_second / (1 - betas[1] ** step)).sqrt_().add_(eps)
    new_weight = weight.float().mul(1 - lr * weight_decay).addcdiv_(new_first, size, value=-lr / (1 - betas[0] ** step))
    pairs = ((weight, new_weight), (first, new_first), (second, new_second))
    for (old, new), bits in zip(pairs, moved(noise, len(grad)), strict=True):
        old.copy_(rounded(new, bits) if old.dtype == torch.bfloat16 else new)


def moved(noise: Tensor, size: int) -> Iterator[Tensor]:
    """Three times (size,) int32 from 0 to 2^16 - 1. Any two numbers of a step are independent of each other: those of
    one vector because those of the noise are, those of two because each is moved by a number of its own."""
    for shift in torch.randint(1 << 16, (3,)).tolist():
        yield (noise[:size] + shift).bitwise_and_(0xFFFF)


def rounded(value: Tensor, bits: Tensor) -> Tensor:
    """float32 values as two neighbours in bfloat16: the one further from 0 where the low half of the value's bits and
    16 random bits add up to a carry."""
    return (value.view(torch.int32) + bits).bitwise_and_(-(1 << 16)).view(torch.float32)
