"""Solutions of optimisation problems that a gradient passes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from warpup._arguments import check_above_0, explained, same_shape
from warpup._optional import needs


@explained
def dual_surrogate(value: float | Tensor, target: Tensor, dual: Tensor) -> Tensor:
    """A solver's optimal value, 0-d, whose gradient into the target is the dual of the constraint that has it on its
    right side (the envelope theorem); the solver itself is not differentiated.

    Args:
        value: the optimum.
        target: any shape, what a policy gave the solver, with gradient.
        dual: like target: d value / d target, a constant.

    Source: TS-DDR (arXiv 2405.14973).
    """
    same_shape("dual_surrogate", target=target, dual=dual)
    return value + (dual.detach() * (target - target.detach())).sum()


@explained
def target_cost(target: Tensor, cost: Tensor, penalty: float, **constraints: Any) -> Tensor:
    """`min over x of cost^T x + penalty ||x - target||_1` under linear constraints; 0-d, differentiable by the target.

    What a stage of TS-DDR (arXiv 2405.14973) costs: the policy proposes a state, the linear program goes as near to it
    as is worthwhile, and its duals tell the policy where to propose. A sum over stages learns by `backward()`.

    Args:
        target: (n,) on any device, with gradient.
        cost: (n,).
        penalty: above 0, of each unit off the target.
        constraints: of x, as of `scipy.optimize.linprog`: A_ub, b_ub, A_eq, b_eq, bounds (default: x at least 0).

    Raises:
        ModuleNotFoundError: without scipy.
        ValueError: no x fulfils the constraints, or the cost has no minimum.
    """
    check_above_0("target_cost", penalty=penalty)
    same_shape("target_cost", target=target, cost=cost)
    if unknown := constraints.keys() - {"A_ub", "b_ub", "A_eq", "b_eq", "bounds"}:
        raise ValueError(f"target_cost: unknown constraint {sorted(unknown)[0]!r}")

    import numpy as np

    with needs("target_cost", "scipy", "'warpup[methods]'"):
        from scipy.optimize import linprog

    n, b = len(target), target.detach().cpu().double().numpy()
    off = np.eye(n)  # x + under - over = target, where under and over cost the penalty each
    rows, right = [np.hstack([off, off, -off])], [b]
    if constraints.get("A_eq") is not None:
        rows.append(np.hstack([constraints["A_eq"], np.zeros((len(constraints["A_eq"]), 2 * n))]))
        right.append(constraints["b_eq"])
    below = constraints.get("A_ub")
    below = None if below is None else np.hstack([below, np.zeros((len(below), 2 * n))])
    bounds = constraints.get("bounds")
    bounds = (0, None) if bounds is None else bounds
    bounds = [tuple(bounds)] * n if np.ndim(np.array(bounds, object)) == 1 else list(bounds)
    found = linprog(
        np.concatenate([cost.detach().cpu().double().numpy(), np.full(2 * n, float(penalty))]),
        A_ub=below, b_ub=constraints.get("b_ub"), A_eq=np.vstack(rows), b_eq=np.concatenate(right),
        bounds=bounds + [(0, None)] * 2 * n, method="highs",
    )  # fmt: skip
    if found.status != 0:
        raise ValueError(f"target_cost: the linear program has no solution: {found.message}")
    return dual_surrogate(found.fun, target, torch.as_tensor(found.eqlin.marginals[:n]).to(target))


@explained
def solve_least_squares(
    residual: Callable[..., Tensor], start: Tensor, *inputs: Tensor, steps: int = 50, damping: float = 1e-3
) -> Tensor:
    """(E, P): for each of E problems the w that minimises `||residual(w, *inputs of the problem)||^2`, differentiable
    by what the residual is made of.

    Levenberg-Marquardt on all problems at once; the gradient is that of the implicit function theorem with the
    Gauss-Newton Hessian, dw = -(J^T J)^-1 d(J^T r), so it costs one solve, however many steps were taken.

    With a problem for each part of a domain, residuals of a differential equation on basis functions Phi_e from a
    network, and the solution Phi_e w_e, these are the experts of PI-HC-MoE (arXiv 2402.13412).

    Args:
        residual: (R,) of w (P,) and the problem's inputs, R at least P, J of full rank; called under `torch.func`.
        start: (E, P), a constant, where each begins.
        inputs: each with E in front, with gradient.
        steps: of Levenberg-Marquardt, each taken only where it makes the problem's sum smaller.
        damping: at the start, relative to the diagonal of J^T J.
    """
    with torch.no_grad():
        fixed = tuple(x.detach() for x in inputs)
        w, lam = start.detach().clone(), torch.full_like(start[:, :1], damping)
        slack = 1 + 8 * torch.finfo(w.dtype).eps  # a minimum is flat: there the sum's rounding must not stop it
        for _ in range(steps):
            jacobian, r = vmap(jacrev(residual))(w, *fixed), vmap(residual)(w, *fixed)
            hessian = jacobian.mT @ jacobian
            damped = hessian + torch.diag_embed(lam * hessian.diagonal(dim1=-2, dim2=-1))
            trial = w - torch.linalg.solve(damped, jacobian.mT @ r.unsqueeze(-1)).squeeze(-1)
            before = r.square().sum(-1, keepdim=True)
            after = vmap(residual)(trial, *fixed).square().sum(-1, keepdim=True)
            better = after <= before * slack
            w, lam = torch.where(better, trial, w), torch.where(better, lam / 3, lam * 3).clamp(1e-12, 1e12)
    jacobian, r = vmap(jacrev(residual))(w, *inputs), vmap(residual)(w, *inputs)
    hessian = (jacobian.mT @ jacobian).detach()
    correction = torch.linalg.solve(hessian, jacobian.mT @ r.unsqueeze(-1)).squeeze(-1)
    return w - (correction - correction.detach())  # the value is w, the gradient the correction's
