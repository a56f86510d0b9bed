"""A mixture of many small experts beside some that every token takes, and what keeps the load of the experts even."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from warpup._op import accumulator
from warpup.moe.glu import ACTIVATIONS, glu
from warpup.moe.grouped_mm import linear
from warpup.moe.moe_balance_loss import moe_balance_loss, moe_device_balance_loss, moe_update_bias
from warpup.moe.moe_experts import WEIGHT_PLACEMENTS, moe_experts
from warpup.moe.moe_route import MoERoute, moe_route


class DeepSeekMoE(nn.Module):
    """`out = sum over shared FFN(x) + sum over the k chosen weight_e FFN_e(x)`; the residual is the caller's.

    What the last forward chose is in `last_route`, and `balance_loss()` is made of it: add it to the loss before the
    next forward. Under gradient checkpointing, which runs the forward again in the backward, take it in between; and
    use the non-reentrant kind, with the other there is no graph to take it from.

    Args:
        hidden_size: H. intermediate_size: I, of one expert. num_experts: E, routed ones. k: of them for a token.
        num_shared: experts that every token takes; as one FFN of num_shared times I.
        score, order, renormalize, groups, scale: of `moe_route`.
        correction: keep a bias (E,) that selection adds to the scores, changed by `update_correction` alone.
        activation, weight_placement: of `moe_experts`.
        device, dtype: of the parameters; the correction is float32. On "meta" call `to_empty`, `reset_parameters`.

    Parameters: router (E, H), w_gate_up (E, 2 I, H), w_down (E, H, I), of shared experts shared_gate_up (2 n I, H) and
        shared_down (H, n I), n = num_shared; buffer: correction (E,). In transformers' mixtures these are gate.weight,
        experts.gate_up_proj, experts.down_proj, [shared_experts.gate_proj.weight; .up_proj.weight] along the rows,
        shared_experts.down_proj.weight and gate.e_score_correction_bias.

    Raises:
        ValueError: a size below 1, k > E, an unknown name, groups that do not fit.

    Source: DeepSeekMoE (arXiv 2401.06066); the correction, DeepSeek-V3 (arXiv 2412.19437).
    """

    correction: Tensor | None
    last_route: MoERoute | None = None

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        k: int,
        *,
        num_shared: int = 0,
        score: str = "softmax",
        order: str = "softmax_topk",
        renormalize: bool = False,
        groups=None,
        scale: float = 1.0,
        correction: bool = False,
        activation: str = "silu",
        weight_placement: str = "down",
        device=None,
        dtype=None,
    ):
        super().__init__()
        if min(hidden_size, intermediate_size, num_experts) < 1 or num_shared < 0:
            raise ValueError(
                "DeepSeekMoE: hidden_size, intermediate_size and num_experts must be at least 1 and num_shared at "
                f"least 0, got {hidden_size}, {intermediate_size}, {num_experts} and {num_shared}"
            )
        if not 1 <= k <= num_experts:
            raise ValueError(f"DeepSeekMoE: k must be 1 to num_experts, {num_experts}, got {k}")
        for name, value, known in (
            ("activation", activation, ACTIVATIONS),
            ("weight_placement", weight_placement, WEIGHT_PLACEMENTS),
        ):
            if value not in known:
                raise ValueError(f"DeepSeekMoE: {name} must be one of {', '.join(known)}, got {value!r}")
        self.k, self.num_shared, self.activation, self.weight_placement = k, num_shared, activation, weight_placement
        self.routing = {"score": score, "order": order, "renormalize": renormalize, "groups": groups, "scale": scale}
        none = torch.zeros(0, num_experts, device="cpu")
        moe_route(none, k, bias=none.sum(0) if correction else None, **self.routing)  # tells what does not fit

        def parameter(*shape):
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.router = parameter(num_experts, hidden_size)
        self.w_gate_up = parameter(num_experts, 2 * intermediate_size, hidden_size)
        self.w_down = parameter(num_experts, hidden_size, intermediate_size)
        if num_shared:
            self.shared_gate_up = parameter(2 * num_shared * intermediate_size, hidden_size)
            self.shared_down = parameter(hidden_size, num_shared * intermediate_size)
        bias = torch.empty(num_experts, device=device, dtype=torch.float32) if correction else None
        self.register_buffer("correction", bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with 1 / sqrt(inputs), as a linear layer's scale; the correction 0."""
        for p in self.parameters():
            nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        if self.correction is not None:
            nn.init.zeros_(self.correction)

    def forward(
        self,
        x: Tensor,
        *,
        replay_indices: Tensor | None = None,
        token_mask: Tensor | None = None,
        sequences: int | Tensor | None = None,
    ) -> Tensor:
        """x (..., H) -> (..., H). As in `moe_route`: `replay_indices` (..., k), experts to take; `token_mask` (...),
        tokens that are routed, others get the shared experts alone; `sequences`, whose loads balance each by itself."""
        if x.dim() == 0 or x.shape[-1] != self.router.shape[1]:
            raise ValueError(f"DeepSeekMoE: x must be (..., {self.router.shape[1]}), got {tuple(x.shape)}")
        rows = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):  # experts that change with a rounding would change the model
            wide = accumulator(rows)
            logits = nn.functional.linear(rows.to(wide), self.router.to(wide))
        route = moe_route(
            logits, self.k, bias=self.correction, **self.routing,
            replay_indices=None if replay_indices is None else replay_indices.reshape(-1, self.k),
            token_mask=None if token_mask is None else token_mask.reshape(-1),
            sequences=sequences,
        )  # fmt: skip
        self.last_route = route
        out = moe_experts(
            rows, route.weights, route.indices, self.w_gate_up, self.w_down,
            activation=self.activation, weight_placement=self.weight_placement,
        )  # fmt: skip
        if self.num_shared:
            h = linear(rows, self.shared_gate_up)
            out = out + linear(glu(h, activation=self.activation), self.shared_down)
        return out.view(x.shape)

    def load(self) -> Tensor:
        """(E,) each expert's share of the last forward's copies, 1 / E where they are even."""
        counts = self._route().counts.reshape(-1, self.router.shape[0]).sum(0)
        return counts / counts.sum().clamp_min(1)

    def balance_loss(
        self, expert: float = 0.0, device: float | None = None, z: float = 0.0, *, devices: int | None = None,
        group=None,
    ) -> Tensor:  # fmt: skip
        """Of the last forward, `expert moe_balance_loss + device moe_device_balance_loss + z z_loss`, the second with
        the experts in equal parts on `devices`; counts are summed over `group`."""
        if devices is not None and device is None:
            raise ValueError(f"DeepSeekMoE.balance_loss: devices={devices} needs a coefficient, device=")
        route = self._route()
        loss = z * route.z_loss + expert * moe_balance_loss(route, group=group)
        if device:
            loss = loss + device * moe_device_balance_loss(route, devices or 0, group=group)
        return loss

    def update_correction(self, rate: float = 1e-3, counts: Tensor | None = None, *, group=None) -> None:
        """`moe_update_bias` of the selection's bias, by the last forward's counts or those of a whole step."""
        if self.correction is None:
            raise ValueError("update_correction: the module was made without correction=True")
        if self.correction.dtype.itemsize < 4:
            raise ValueError(
                f"update_correction: {self.correction.dtype} loses the steps; keep `correction` in float32"
            )
        moe_update_bias(self.correction, self._route().counts if counts is None else counts, rate, group=group)

    def __getstate__(self):
        return super().__getstate__() | {"last_route": None}  # a graph can be neither copied nor saved

    def __deepcopy__(self, memo):  # of its own since a parametrized module's __getstate__ refuses
        replica = memo[id(self)] = self.__new__(type(self))
        replica.__dict__ = deepcopy(self.__dict__ | {"last_route": None}, memo)
        return replica

    def _route(self) -> MoERoute:
        if self.last_route is None:
            raise RuntimeError("DeepSeekMoE: nothing was routed yet; call the module first")
        return self.last_route

    def extra_repr(self) -> str:
        experts, hidden, inner = self.w_down.shape
        options = self.routing | {"correction": self.correction is not None}
        options |= {"activation": self.activation, "weight_placement": self.weight_placement}
        sizes = f"{hidden}, {inner}, {experts} experts, {self.k} a token, {self.num_shared} shared"
        return ", ".join([sizes, *(f"{name}={value}" for name, value in options.items())])
