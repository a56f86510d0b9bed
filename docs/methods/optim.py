"""Optimizers, schedules and gradients."""


def row_33():
    """Train longer, generalize better: closing the generalization gap in large batch training of neural networks

    T3: `warpup.nn.GhostBatchNorm` and `warpup.optim.sqrt_rate`. Keep the number of updates, not of epochs, and clip the
    gradient's norm.
    """
    import torch

    from warpup.nn import GhostBatchNorm
    from warpup.optim import sqrt_rate

    norm = GhostBatchNorm(1, ghost=2, momentum=0.5)
    y = norm(torch.tensor([[0.0], [2.0], [10.0], [14.0]]))  # means 1 and 12, deviations 1 and 2
    torch.testing.assert_close(y.flatten(), torch.tensor([-1.0, 1.0, -1.0, 1.0]), rtol=0, atol=1e-5)
    assert norm.running_mean.item() == 6.25  # .5 * 1, then .5 * .5 + .5 * 12
    assert sqrt_rate(0.1, batch=400, base_batch=100) == 0.2


def row_38():
    """OctoThinker: Mid-training Incentivizes Reinforcement Learning Scaling

    T3: `warpup.optim.warmup_stable_decay`; `lr_schedule = "wsd"` of a stage. A branch begins at a checkpoint of the
    stable part and decays on a mixture of its own.
    """
    from warpup.optim import warmup_stable_decay

    factor = warmup_stable_decay(10, decay=4, warmup=2, shape="linear")
    assert [factor(step) for step in (0, 1, 5, 6, 8, 10)] == [0.5, 1, 1, 1, 0.5, 0]


def row_55():
    """Boosting Multi-modal Model Performance with Adaptive Gradient Modulation

    T3: `warpup.optim`: `single_mode_logits` and `GradientModulation`. Passes with one input set to 0 run in eval mode.
    """
    import math

    import torch

    from warpup.optim import GradientModulation, single_mode_logits

    both, audio, video = (torch.tensor([x]) for x in (5.0, 3.0, 1.0))
    shares = single_mode_logits(both, audio, video)
    assert [phi.item() for phi in shares] == [3.5, 1.5]  # (5 +- 2) / 2

    modulation, zeros, target = GradientModulation(alpha=1.0), torch.zeros(1, 2), torch.tensor([0])
    modulation(zeros, zeros, target)  # both learn alike so far: a ratio of 1
    better = torch.tensor([[math.log(3), 0.0]], requires_grad=True)  # exp(log 2 - log 4/3): 1.5
    worse = torch.zeros(1, 2, requires_grad=True)
    sum(phi.sum() for phi in modulation(better, worse, target)).backward()
    torch.testing.assert_close(better.grad, torch.full((1, 2), math.exp(1 - 1.5)))
    torch.testing.assert_close(worse.grad, torch.full((1, 2), math.exp(1 - 1 / 1.5)))


def row_58():
    """Small-scale proxies for large-scale Transformer training instabilities

    T2: `warpup.z_loss`, `warpup.nn.QKNorm`, and `warpup.optim.mu_groups` for muParam (simple) and independent weight
    decay; `warpup.metrics.lr_sensitivity` of the final losses over learning rates.
    """
    import math

    import torch

    from warpup import z_loss
    from warpup.metrics import lr_sensitivity
    from warpup.nn import QKNorm
    from warpup.optim import mu_groups

    torch.testing.assert_close(z_loss(torch.tensor([[2.0]]), torch.ones(1, 1)), torch.tensor(4e-4))
    assert lr_sensitivity([2.0, 3.0, math.nan], initial=5.0) == (2 + 3 + 5) / 3 - 2  # one diverged
    query, _ = QKNorm(2)(torch.tensor([1.0, 3.0]), torch.zeros(2))
    torch.testing.assert_close(query, torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-4)

    layer = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(mu_groups(layer, 0.01, base_width=2, decay=1e-4))
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.01]  # the matrix, the bias
    torch.nn.init.ones_(layer.weight)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()  # without a gradient: the decay alone, not multiplied by the rate
    torch.testing.assert_close(layer.weight.data, torch.full((1, 4), 1 - 1e-4))


def row_75():
    """Fast & Slow Learning: Incorporating Synthetic Gradients in Neural Memory Controllers

    T3: `warpup.optim.SyntheticGradient`: the controller learns by the prediction at once, the predictor by its squared
    error when the true gradient has come.
    """
    import torch

    from warpup.optim import SyntheticGradient

    predictor, state = SyntheticGradient(1), torch.tensor([[2.0]])
    assert predictor(state).item() == 0  # nothing is made up
    loss = predictor.loss(state, torch.tensor([[3.0]]))
    assert loss.item() == 9
    loss.backward()
    assert predictor.out.weight.grad.item() == -12  # 2 (0 - 3) * 2


def row_93():
    """Distraction is All You Need for Fairness

    T3: `warpup.optim.block_gradients_` with `warpup.losses.parity_loss` for the fairness block. Each block has an
    optimizer of its own; what comes of it is measured by `warpup.metrics.group_gap`, the demographic parity gap.
    """
    import torch

    from warpup.losses import parity_loss
    from warpup.metrics import group_gap
    from warpup.optim import block_gradients_

    accuracy, fairness = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    block_gradients_([(accuracy * fairness, [accuracy]), (accuracy * fairness**2, [fairness])])
    assert (accuracy.grad, fairness.grad) == (3, 12)  # 3, and 2 * 2 * 3
    predictions, groups = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    assert parity_loss(predictions, groups) == 0.125  # means .5 and 1 around .75
    assert group_gap(predictions, groups) == 0.5
