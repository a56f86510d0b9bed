"""Interval: certified training."""


def row_26():
    """Fast Certified Robust Training with Short Warmup

    T1: `warpup.interval`: `bound`, `margin_loss`, `ibp_init_`, `tightness_loss`, `relu_balance_loss`; the command
    `warpup certify`.
    """
    import math

    import torch
    from torch import nn

    from warpup import interval_linear
    from warpup.interval import BoxSums, ibp_init_, tightness_loss

    center, radius = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.1, 0.2]])
    center, radius = interval_linear(center, radius, torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close((center, radius), (torch.tensor([[-1.0]]), torch.tensor([[0.3]])))  # |1| .1 + |-1| .2
    first = ibp_init_(nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 2)))[0].weight
    assert abs(first.std().item() / (math.sqrt(2 * math.pi) / 400) - 1) < 0.02
    zero = torch.tensor(0.0)
    sums = BoxSums(**{name: zero for name in BoxSums._fields})._replace(
        radius=torch.tensor(8.0), count=torch.tensor(2.0)
    )
    torch.testing.assert_close(tightness_loss([sums], 1.0), torch.tensor(0.5))  # relu(.5 - 1 / 4) / .5


def row_71():
    """HyperInterval: Hypernetwork approach to training weight interval regions in continual learning

    T1: `warpup.interval_linear(weight_radius=...)`; `HyperInterval` and `drift_loss` of `warpup.interval.weights`;
    the command `warpup continual`. The drift is the sum over lower ends, centers and upper ends; the paper's is
    their mean: its weight here is a third of the published one.
    """
    import torch

    from warpup import interval_linear

    center, radius = torch.tensor([[-2.0]]), torch.tensor([[0.5]])
    y, r = interval_linear(center, radius, torch.tensor([[3.0]]), weight_radius=torch.tensor([[0.1]]))
    # radius: |3| .5 + .1 |-2| + .1 * .5
    torch.testing.assert_close((y, r), (torch.tensor([[-6.0]]), torch.tensor([[1.75]])))
