"""Synthesis: small data sets that train as large ones do."""


def row_39():
    """Dataset Condensation with Contrastive Signals

    T3: `warpup.synthesis.condensation_loss`: class by class (DC), with `contrastive=True` of the classes' mean (DCC).
    Biases and norms are left out; DCC begins with the former, until the outer step 250 or the inner step 10.
    """
    import torch

    from warpup.synthesis import condensation_loss, gradient_distance

    real, synthetic = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert gradient_distance([real, torch.ones(2)], [synthetic, -torch.ones(2)]) == 1  # rows: 1 - 0 and 1 - 1

    w = torch.ones(1, 2, requires_grad=True)
    batches = {0: torch.tensor([[1.0, 0.0]]), 1: torch.tensor([[0.0, 1.0]])}
    swapped = {0: batches[1], 1: batches[0]}

    def distance(contrastive):  # the gradient of this loss is the batch itself
        return condensation_loss(lambda x: (x @ w.T).mean(), [w], batches, swapped, contrastive=contrastive)

    torch.testing.assert_close(distance(False), torch.tensor(2.0))
    torch.testing.assert_close(distance(True), torch.tensor(0.0))  # the classes' mean is the same


def row_74():
    """Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories

    T3: `warpup.synthesis.trajectory_distance` after `warpup.optim.unroll` on the synthetic data; `trajectory_scale`,
    `input_gradient_penalty`, `perturb_filters_`, `representatives`. At intermediate epochs k of K the distance counts k
    / (1 + K); experts are smoothed by the penalty and a loss scaled by .5, rising to .95, over their first epochs.
    """
    import torch

    from warpup.optim import unroll
    from warpup.synthesis import input_gradient_penalty, representatives, trajectory_distance, trajectory_scale

    start, target = {"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])}
    synthetic = torch.tensor([1.0], requires_grad=True)
    reached = unroll(start, lambda p, x: ((p["w"] - x) ** 2).sum(), [synthetic] * 2, rate=0.25)
    loss = trajectory_distance(reached, start, target)
    torch.testing.assert_close(loss, torch.tensor((0.75 - 2) ** 2 / 4))  # 0 -> .5 -> .75
    loss.backward()
    torch.testing.assert_close(synthetic.grad, torch.tensor([2 * (0.75 - 2) / 4 * 0.75]))  # .75 of x arrives
    assert round(trajectory_scale(0, 34), 9) == 2  # log_5(17 + 8)
    x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    assert input_gradient_penalty(3 * x, x) == 4  # (3 - 1)^2
    features, labels = torch.tensor([[0.0], [1.0], [5.0], [7.0]]), torch.tensor([0, 0, 0, 1])
    assert representatives(features, labels, per_class=1).tolist() == [1, 3]  # the mean of class 0 is 2
