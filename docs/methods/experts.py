"""Experts: mixtures of them."""


def row_36():
    """Hecate: Unlocking Efficient Sparse Model Training via Fully Sharded Sparse Data Parallelism

    T1: `warpup.distributed.ShardedExperts`, on one device `warpup.moe_gather`, `grouped_mm` and `moe_combine`. Only the
    experts that a batch needs are gathered from the ranks, and their gradients go back by the same indices; the
    schedule over several machines is the paper's own.
    """
    import torch

    from warpup import grouped_mm, moe_combine, moe_gather, moe_plan

    x = torch.tensor([[1.0], [2.0], [3.0]])
    plan = moe_plan(torch.tensor([[1], [0], [1]]), num_experts=2)  # rows by expert: token 1, then tokens 0 and 2
    rows = moe_gather(x, plan)
    assert rows.flatten().tolist() == [2.0, 1.0, 3.0]
    y = grouped_mm(rows, torch.tensor([[[10.0]], [[100.0]]]), plan.offsets)
    assert moe_combine(y, torch.ones(3, 1), plan).flatten().tolist() == [100.0, 20.0, 300.0]


def row_60():
    """Scaling physics-informed hard constraints with mixture-of-experts

    T3: `warpup.control.solve_least_squares`: the nonlinear least-squares problems of all parts of a domain at once,
    with the gradient of the implicit function theorem. The equation and its basis functions are the caller's.
    """
    import torch

    from warpup.control import solve_least_squares

    squares = torch.tensor([[4.0], [9.0]], dtype=torch.float64, requires_grad=True)
    roots = solve_least_squares(lambda w, s: w**2 - s, torch.ones(2, 1, dtype=torch.float64), squares)
    torch.testing.assert_close(roots.detach().flatten(), torch.tensor([2.0, 3.0], dtype=torch.float64))
    roots.sum().backward()
    torch.testing.assert_close(squares.grad.flatten(), torch.tensor([1 / 4, 1 / 6], dtype=torch.float64))  # 1 / (2 w)


def row_95():
    """DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language Models

    T1: `warpup.moe.DeepSeekMoE`, `moe_route`, `moe_balance_loss`, `moe_device_balance_loss`.
    """
    import math

    import torch

    from warpup import moe_balance_loss, moe_route

    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])  # both tokens: (.75, .25)
    route = moe_route(logits, k=1)
    assert route.counts.tolist() == [2, 0]
    torch.testing.assert_close(moe_balance_loss(route), torch.tensor(1.5))  # f P = 2 * .75 + 0 * .25; 1 if even
