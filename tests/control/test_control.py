"""Control: what the snippets of docs/methods.md leave open."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from warpup import control

UNIT, THREE = Normal(torch.zeros(1, 2), 1.0), Normal(torch.zeros(3, 1), 1.0)


def test_gates_weights_and_clips_of_the_dynamics_gap():
    weights = control.gap_weights(torch.tensor([-5.0, 30.0, 10.0]))  # held in [1e-45, 10]
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.5, 0.5]))
    zero, q = torch.zeros(2), torch.ones(2, requires_grad=True)
    log_ratio = torch.tensor([-3.0, 40.0])  # c is 1, not e^3, and 1e-5
    loss = control.gap_loss(zero, zero, q, zero, log_ratio, torch.tensor([0.0, 1.0]), beta=0.0)
    torch.testing.assert_close(loss, torch.tensor((1 + 1e-5) / 2))
    loss = control.gap_loss(zero, zero, q, zero, log_ratio, torch.tensor([0.0, 1.0]), beta=1.0)
    loss.backward()
    assert q.grad.isfinite().all()  # a weight of 0 is no NaN


def test_diversity_pushes_away_from_the_likeliest_policy():
    mean = torch.full((1, 1), 0.2, requires_grad=True)
    actions, near, far = torch.zeros(1, 1), Normal(torch.full((1, 1), 0.1), 1.0), Normal(torch.ones(1, 1), 1.0)
    one = Normal(mean, 1.0)
    control.diverse_bc_loss(one.log_prob(actions).sum(-1), one, [far, near], actions, alpha=0.5).backward()
    torch.testing.assert_close(mean.grad, torch.tensor([[0.2 - 0.5 * (0.2 - 0.1)]]))  # cloning, less the KL to near

    logits = torch.tensor([[2.0, 0.0]], requires_grad=True)
    one, other, action = Categorical(logits=logits), Categorical(logits=torch.zeros(1, 2)), torch.tensor([0])
    loss = control.diverse_bc_loss(one.log_prob(action), one, [other], action, alpha=0.5)
    torch.testing.assert_close(loss, -one.log_prob(action)[0])  # itself the likeliest: no push


def test_a_natural_step_is_that_of_the_whole_matrix():
    torch.manual_seed(0)
    root, g = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    fisher = root @ root.T + torch.eye(6)
    p, q = (torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2), (2,)))
    flat = torch.cat([p.flatten(), q])
    steps = control.natural_step(g @ flat, 0.5 * flat @ fisher @ flat, [p, q], delta=0.3)
    step = torch.cat([x.flatten() for x in steps])
    s = torch.linalg.solve(fisher, g)
    torch.testing.assert_close(step, (2 * 0.3 / (s @ fisher @ s)).sqrt() * s)
    torch.testing.assert_close(0.5 * step @ fisher @ step, torch.tensor(0.3, dtype=torch.float64))
    (damped,) = control.natural_step(
        g @ (z := torch.zeros_like(g, requires_grad=True)), 0.5 * z @ fisher @ z, [z], damping=2.0
    )
    s = torch.linalg.solve(fisher + 2 * torch.eye(6), g)
    torch.testing.assert_close(damped / damped.norm(), s / s.norm())
    still = control.natural_step(0 * g @ flat, 0.5 * flat @ fisher @ flat, [p, q])
    assert all((x == 0).all() for x in still)


@pytest.mark.parametrize("target", [[0.5, 0.7], [3.0, 0.1], [1.5, 1.6]])
def test_the_dual_is_the_slope_of_the_cost(target):
    pytest.importorskip("scipy")
    limits = {
        "A_ub": np.array([[1.0, 1.0]]), "b_ub": np.array([2.0]),
        "A_eq": np.array([[1.0, -2.0]]), "b_eq": np.array([0.1]),
        "bounds": [(0, 1.2), (0, None)],
    }  # fmt: skip

    def cost(x):
        return control.target_cost(x, torch.tensor([1.0, 0.5], dtype=torch.float64), 3.0, **limits)

    assert torch.autograd.gradcheck(cost, torch.tensor(target, dtype=torch.float64, requires_grad=True), atol=1e-5)


def test_programs_without_solution_are_refused():
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match="target_cost: the linear program has no solution"):
        control.target_cost(torch.ones(1), torch.ones(1), 1.0, A_ub=np.ones((1, 1)), b_ub=np.array([-1.0]))
    with pytest.raises(ValueError, match="target_cost: unknown constraint 'a_ub'"):
        control.target_cost(torch.ones(1), torch.ones(1), 1.0, a_ub=np.ones((1, 1)))
    cost = [control.target_cost(torch.ones(1), torch.ones(1), 2.0, **given) for given in ({}, {"bounds": None})]
    assert cost[0] == cost[1] == 1.0  # None is scipy's default, too


def test_least_squares_are_scipys_with_the_slope_of_finite_differences():
    """Decays c exp(-k t) of two experts, from points with noise."""
    optimize = pytest.importorskip("scipy.optimize")
    torch.manual_seed(0)
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    y = torch.stack([2 * (-t).exp(), (-0.3 * t).exp()]) + 0.01 * torch.randn(2, 9, dtype=torch.float64)

    def residual(w, y):
        return w[0] * (-w[1] * t).exp() - y

    start = torch.ones(2, 2, dtype=torch.float64)
    found = control.solve_least_squares(residual, start, y)
    for w, points in zip(found, y, strict=True):
        peer = optimize.least_squares(lambda w, points=points: residual(torch.tensor(w), points).numpy(), np.ones(2))
        torch.testing.assert_close(w, torch.tensor(peer.x), rtol=1e-5, atol=1e-6)

    exact = torch.stack([2 * (-t).exp(), (-0.3 * t).exp()]).requires_grad_()  # no residual: Gauss-Newton is exact
    assert torch.autograd.gradcheck(lambda y: control.solve_least_squares(residual, start, y), exact, atol=1e-6)


def test_least_squares_of_linear_residuals_have_the_exact_slope():
    """There the Gauss-Newton Hessian is the Hessian, whatever is left of the residual."""
    torch.manual_seed(0)
    basis = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    y, start = torch.randn(2, 5, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)

    def solve(basis):
        return control.solve_least_squares(lambda w, basis, y: basis @ w - y, start, basis, y)

    torch.testing.assert_close(solve(basis), torch.linalg.lstsq(basis, y.unsqueeze(-1)).solution.squeeze(-1))
    assert torch.autograd.gradcheck(solve, basis)


def test_least_squares_take_no_step_that_makes_it_worse():
    """From 3, Newton's steps on atan go off to infinity."""
    found = control.solve_least_squares(lambda w: w.atan(), torch.full((1, 1), 3.0, dtype=torch.float64))
    assert found.abs() < 1e-6


def test_curricula_name_what_is_forgotten():
    curriculum = control.PenaltyCurriculum([(1, {"a": 1.0}), (None, {"a": 2.0, "b": 1.0})])
    with pytest.raises(ValueError, match=r"step 1 has weights of \['a', 'b'\], got the terms \['a'\]"):
        curriculum({"a": 1.0}, 1)
    with pytest.raises(ValueError, match="step must be at least 0"):
        curriculum({"a": 1.0}, -1)
    for stages in ([], [(5, {})], [(0, {}), (None, {})], [(None, {}), (None, {})]):
        with pytest.raises(ValueError, match="all stages but the last one"):
            control.PenaltyCurriculum(stages)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: control.ensemble_target(torch.ones(2, 1), 3), "subset must be from 1 to 2 critics, got 3"),
        (lambda: control.trajectory_weights(torch.ones(1, 1), torch.ones(1, 1), 0.0), "scale must be above 0"),
        (lambda: control.trajectory_weights(torch.ones(1, 1), torch.ones(0, 1), 1.0), "expert must have at least one"),
        (lambda: control.tracking_reward([1.0], [1.0], 0.0), "scale must be above 0"),
        (lambda: control.target_cost(torch.ones(1), torch.ones(1), -1.0), "penalty must be above 0"),
        (lambda: control.PolicyGate(math.nan), "value must be a number"),
        (lambda: control.rollout_value(torch.ones(1, 1), math.sin, max, max, 0), "steps must be at least 1"),
        (lambda: control.elbo(torch.ones(1, 2), UNIT, UNIT, free_nats=-1.0), "free_nats must be at least 0"),
        (
            lambda: control.elbo(torch.ones(2, 3), UNIT, UNIT),
            "KL of posterior and prior must have the shape of log_likelihood",
        ),
        (
            lambda: control.diverse_bc_loss(torch.ones(3, 1), THREE, [THREE], torch.ones(3, 1)),
            r"diverse_bc_loss: logp must have the shape of the KL to others, \(3,\), got \(3, 1\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: control.hybrid_critic_loss(x, y, x, x), "returns must have the shape of on_policy"),
        (lambda x, y: control.hybrid_critic_loss(x, x, x, y), "targets must have the shape of off_policy"),
        (lambda x, y: control.gap_loss(x, y, x, x, x, x), "real_target must have the shape of real"),
        (lambda x, y: control.gap_loss(x, x, x, y, x, x), "simulated_target must have the shape of simulated"),
        (lambda x, y: control.gap_loss(x, x, x, x, x, y), "weights must have the shape of simulated"),
        (lambda x, y: control.bc_loss(x, y), "weights must have the shape of logp"),
        (lambda x, y: control.dual_surrogate(1.0, x, y), "dual must have the shape of target"),
        (lambda x, y: control.target_cost(x, y, 1.0), "cost must have the shape of target"),
        (lambda x, y: control.puct(x, y, x), "priors must have the shape of values"),
    ],
)
def test_shapes_that_torch_would_broadcast(call, message):
    with pytest.raises(ValueError, match=message + r", \(3,\), got \(3, 1\)"):
        call(torch.ones(3), torch.ones(3, 1))
