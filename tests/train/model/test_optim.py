"""Learning rates, and AdamW on weights in bfloat16."""

import math

import pytest
import torch
from torch import nn

from warpup.train import TrainError
from warpup.train.model import optim
from warpup.train.model.optim import StochasticAdamW, adamw, learning_rate, moved, rounded
from warpup.train.model.precision import in_bfloat16

pytestmark = pytest.mark.usefixtures("one_thread")


def test_learning_rate_rises_then_follows_its_schedule():
    assert [learning_rate(i, 10, 1.0, 2, "linear") for i in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert learning_rate(6, 10, 1.0, 2, "cosine") == pytest.approx(0.5)
    assert learning_rate(9, 10, 3.0, 0, "constant") == 3.0
    stable = [learning_rate(i, 10, 2.0, 2, "wsd", 0.4) for i in (0, 1, 5, 6, 8, 9)]
    assert stable[:4] == [1.0, 2.0, 2.0, 2.0]  # the last four of ten steps decay, the first of them at the full rate
    assert stable[4:] == pytest.approx([1.0, 2 * 0.5 * (1 + math.cos(0.75 * math.pi))])


def steps(optimizer, weight, grads):
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return weight.detach().double()


def test_small_steps_arrive_on_average():
    """1,000 steps of 1e-4 on weights of 1, whose last digit is 1/256 below: rounded to the nearest none of them moves a
    weight, rounded stochastically their mean is where float32 is."""
    grads = [torch.ones(4096)] * 1000
    settings = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.0}
    exact = nn.Parameter(torch.ones(4096))
    plain, ours = (nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2))
    wanted = steps(torch.optim.AdamW([exact], **settings), exact, grads)
    stuck = steps(torch.optim.AdamW([plain], **settings), plain, [g.bfloat16() for g in grads])
    assert stuck.eq(1).all()
    ours.grad_dtype = torch.float32
    optimizer = StochasticAdamW([ours], **settings)
    found = steps(optimizer, ours, grads)
    assert found.mean().item() == pytest.approx(wanted.mean().item(), abs=4 * found.std().item() / 64)
    assert 0 < found.std().item() < 0.03
    # A second moment of such a beta would stall in bfloat16 at half of what it should be.
    second = optimizer.state[ours]["exp_avg_sq"].double()
    assert second.mean().item() == pytest.approx(1 - 0.999**1000, abs=4 * second.std().item() / 64 + 1e-3)
    assert optimizer.state[ours]["exp_avg"].dtype == second.bfloat16().dtype == ours.dtype


def test_arithmetic_is_adamw_s():
    """On float32 weights, which are not rounded, slice by slice."""
    torch.manual_seed(0)
    grads = [torch.randn(7, 9) for _ in range(20)]
    one, other = nn.Parameter(torch.ones(7, 9)), nn.Parameter(torch.ones(7, 9))
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "SLICE", 10)
        found = steps(StochasticAdamW([one], **settings), one, grads)
    torch.testing.assert_close(found, steps(torch.optim.AdamW([other], **settings), other, grads), rtol=1e-5, atol=1e-7)


def test_rounding_takes_the_two_neighbours_in_proportion():
    torch.manual_seed(0)
    noise = torch.randint(1 << 16, (1 << 16,), dtype=torch.int32)
    for value in (1 + 1 / 512, -1 - 1 / 512, 1 / 3, -2e-30, 0.0, 5.0):
        values = torch.full((1 << 16,), value)
        found = rounded(values, next(moved(noise, 1 << 16)))
        assert torch.equal(found, found.bfloat16().float())
        assert found.unique().numel() == (1 if value in (0.0, 5.0) else 2)
        spread = found.double().std().item() / 256
        assert found.double().mean().item() == pytest.approx(values[0].item(), abs=5 * spread, rel=1e-12)


def test_moved_noise_is_uncorrelated():
    """Of 4,000 steps: the numbers of three weights side by side, for weight and both moments, in two slices."""
    torch.manual_seed(0)
    rows = []
    for _ in range(4000):
        noise = torch.randint(1 << 16, (3,), dtype=torch.int32)
        rows.append(torch.cat([each for _ in range(2) for each in moved(noise, 3)]))
    made = torch.stack(rows, 1).double()  # (18, 4000)
    assert made.min() >= 0
    assert made.max() < 1 << 16
    assert torch.corrcoef(made).fill_diagonal_(0).abs().max() < 5 / 4000**0.5


def test_gradients_of_many_pieces_are_summed_in_float32():
    layer = in_bfloat16(nn.Linear(1, 1, bias=False))
    adamw(layer, 1e-3, (0.9, 0.95), 0.0)
    for _ in range(600):
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad.item() == 600.0
    with pytest.raises(TrainError, match="the weights are float16"):
        adamw(nn.Linear(1, 1).half(), 1e-3, (0.9, 0.95), 0.0)
