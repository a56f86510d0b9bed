"""Schedules, groups, gradients, unrolled steps: what the snippets of docs/methods.md leave open."""

import math

import pytest
import torch
from torch import nn

from warpup import optim


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_decay_shapes(shape, half):
    factor = optim.warmup_stable_decay(100, decay=20, shape=shape, final=0.2)
    assert [factor(0), factor(80)] == [1, 1]
    assert factor(90) == pytest.approx(0.2 + 0.8 * half)
    assert factor(100) == factor(200) == pytest.approx(0.2)


def test_groups_scale_matrices_alone_and_each_parameter_once():
    model = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 5, bias=False))
    tied = nn.Linear(8, 5, bias=False)
    tied.weight = model[0].weight
    model.append(tied)
    groups = optim.mu_groups(model, 0.1, base_width=4, decay=1e-3, vectors_decay=False)
    of = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(list(model.parameters()))
    rates = [of[id(p)]["lr"] for p in (model[0].weight, model[1].weight, model[2].weight, model[3].weight)]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.025])  # a tied output layer is a table
    assert [of[id(p)]["weight_decay"] for p in (model[2].weight, model[2].bias)] == pytest.approx([0.02, 0.0])


def test_agreeing_gradients_are_not_projected():
    g, h = [torch.tensor([1.0, 0.0]), torch.tensor([2.0])], [torch.tensor([-1.0, 5.0]), torch.tensor([1.0])]
    assert all(a.equal(b) for a, b in zip(optim.project_conflict(g, h), g, strict=True))  # over all tensors: -1 + 2
    projected = optim.project_conflict(g, [-x for x in h])
    assert sum((a * b).sum() for a, b in zip(projected, h, strict=True)).abs() < 1e-6


def test_blocks_must_be_disjoint():
    p = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="block_gradients_: a parameter must be in one block only"):
        optim.block_gradients_([(p.sum(), [p]), ((2 * p).sum(), [p])])


def test_a_loss_is_not_added_where_a_closure_would_forget_it():
    p = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([p])
    optim.add_loss(optimizer, lambda: p.sum())
    for step in (lambda: optimizer.step(lambda: p.sum()), lambda: optimizer.step(closure=lambda: p.sum())):
        with pytest.raises(ValueError, match=r"add_loss: optimizer\.step is given a closure"):
            step()


def test_an_added_loss_ends_with_its_handle():
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], 1.0)
    handle = optim.add_loss(optimizer, lambda: p.sum(), weight=2.0)
    optimizer.step()
    optimizer.zero_grad()
    handle.remove()
    optimizer.step()
    assert p.item() == -2


def test_modulation_leaves_the_callers_tensors_alone():
    modulation, zeros, target = optim.GradientModulation(), torch.zeros(1, 2), torch.tensor([0])
    modulation(zeros, zeros, target)
    phi = torch.tensor([[1.0, 0.0]], requires_grad=True)
    modulated, _ = modulation(phi, zeros, target)
    (modulated.sum() + phi.sum()).backward()
    assert modulation.factors[0] < 1 < modulation.factors[1]  # the first learns faster than it did
    torch.testing.assert_close(phi.grad, torch.full((1, 2), modulation.factors[0] + 1))


def test_modulation_looks_at_all_calls_before():
    def cross_entropy(logit):
        return math.log(1 + math.exp(-logit))

    modulation, zeros, target = optim.GradientModulation(alpha=0.5), torch.zeros(1, 2), torch.tensor([0])
    for logit in (0.0, 1.0, 3.0):
        modulation(torch.tensor([[logit, 0.0]]), zeros, target)
    mean, now, other = (cross_entropy(0) + cross_entropy(1)) / 2, cross_entropy(3), cross_entropy(0)
    assert modulation.factors[0] == pytest.approx(math.exp(0.5 * (math.exp(other - mean) - math.exp(other - now))))


def test_a_synthetic_gradient_is_learned():
    torch.manual_seed(0)
    predictor, state = optim.SyntheticGradient(2, hidden=8), torch.randn(64, 2)
    optimizer = torch.optim.Adam(predictor.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        predictor.loss(state, 2 * state).backward()  # the gradient of |state|^2
        optimizer.step()
    assert predictor.loss(state, 2 * state) < 0.05 * (2 * state).square().sum(-1).mean()


def test_unrolled_steps_have_the_gradients_of_finite_differences():
    def outer(start, target, rate):
        later = optim.unroll({"w": start}, lambda p, t: (p["w"] - t).pow(4).sum(), [target, target * 2], rate)
        return later["w"].square().sum()

    start, target = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([0.3, -0.2], [0.9, 0.4]))
    rate = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outer, (start, target, rate))


def test_first_order_takes_gradients_for_constants():
    w, target = torch.tensor(1.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    later = optim.unroll({"w": w}, lambda p, t: (p["w"] - t) ** 2, [target], 0.1, first_order=True)
    later["w"].backward()
    assert (w.grad, target.grad) == (1, None)


def test_modulation_outlives_numbers_far_away_and_resumes():
    target, zeros = torch.tensor([0]), torch.zeros(1, 2)
    modulation = optim.GradientModulation()
    modulation(torch.tensor([[0.0, 2000.0]]), zeros, target)
    modulation(zeros, torch.tensor([[0.0, 2000.0]]), target)  # e^1000 has no float64
    assert modulation.factors == (0.0, math.exp(10.0))
    before = modulation.state_dict()
    modulation(torch.full((1, 2), math.nan), zeros, target)
    assert modulation.factors == (1.0, 1.0)
    assert modulation.state_dict() == before  # it does not remember NaN
    resumed = optim.GradientModulation()
    resumed.load_state_dict(before)
    for each in (modulation, resumed):
        each(zeros, torch.tensor([[1.0, 0.0]]), target)
    assert resumed.factors == modulation.factors != (1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.warmup_stable_decay(10, 4, warmup=7), "warmup and decay must fit into steps, got 7 and 4 of 10"),
        (lambda: optim.warmup_stable_decay(10, 4, shape="step"), "shape must be one of"),
        (lambda: optim.rsqrt_rate(0.1, 0), "task must be at least 1"),
        (lambda: optim.sqrt_rate(0.1, 0, 1), "batch and base_batch must be at least 1"),
        (lambda: optim.mu_groups(nn.Linear(1, 1), 0.0), "rate must be above 0"),
        (
            lambda: optim.project_conflict([torch.ones(2)], [torch.ones(2, 1)]),
            r"against\[0\] must have the shape of gradients\[0\], \(2,\), got \(2, 1\)",
        ),
        (
            lambda: optim.project_conflict([torch.ones(2)], []),
            "gradients and against must be equally many, got 1 and 0",
        ),
        (
            lambda: optim.single_mode_logits(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 1)),
            "second_only must have the shape of both",
        ),
        (lambda: optim.GradientModulation(-1.0), "alpha must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
