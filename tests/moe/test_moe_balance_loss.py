"""The balance losses and the bias that balances without one: formulas, ranks, a peer, messages."""

import pytest
import torch
import torch.distributed as dist

from warpup import MoERoute, moe_balance_loss, moe_device_balance_loss, moe_route, moe_update_bias


def logits_of(tokens, experts, device="cpu", seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=generator).to(device, dtype)


def test_balance_loss_of_an_even_load(backend):
    logits = torch.eye(8, device=backend.device).repeat(3, 1)
    route = moe_route(logits, 1)
    assert route.counts.tolist() == [3] * 8
    for loss in (moe_balance_loss(route), moe_device_balance_loss(route, 4)):
        torch.testing.assert_close(loss, torch.ones((), device=backend.device))


def test_device_balance_loss(backend):
    route = moe_route(logits_of(40, 6, backend.device), 2)
    f = route.counts * 6 / (2 * 40)
    devices = [0, 1, 1, 0, 2, 1]
    members = [[e for e in range(6) if devices[e] == d] for d in range(3)]
    want = sum(f[m].mean() * route.mean_score[m].sum() for m in members)
    torch.testing.assert_close(moe_device_balance_loss(route, devices), want)
    torch.testing.assert_close(moe_device_balance_loss(route, 6), moe_balance_loss(route))
    torch.testing.assert_close(moe_device_balance_loss(route, 2), moe_device_balance_loss(route, [0, 0, 0, 1, 1, 1]))


def _rank(rank: int, path: str, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    logits = logits_of(12, 6, seed=rank).requires_grad_()
    route = moe_route(logits, 2)
    loss = moe_balance_loss(route, group=dist.group.WORLD)
    loss.backward()
    bias = moe_update_bias(torch.zeros(6), route.counts, 0.1, group=dist.group.WORLD)
    results.put((rank, loss.item(), logits.grad.tolist(), bias.tolist(), route.counts.tolist()))
    dist.destroy_process_group()


def test_global_batch(tmp_path):
    """Two ranks: the mean of their losses and gradients is that of one batch; their counts stay their own."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), results), nprocs=2)
    ranks = sorted(results.get() for _ in range(2))
    whole = torch.cat([logits_of(12, 6, seed=rank) for rank in range(2)]).requires_grad_()
    route = moe_route(whole, 2)
    loss = moe_balance_loss(route)
    loss.backward()
    torch.testing.assert_close(sum(r[1] for r in ranks) / 2, loss.item())
    torch.testing.assert_close(torch.tensor(ranks[0][2] + ranks[1][2]) / 2, whole.grad)
    assert torch.equal(torch.tensor(ranks[0][4]) + torch.tensor(ranks[1][4]), route.counts)
    assert ranks[0][3] == ranks[1][3] == moe_update_bias(torch.zeros(6), route.counts, 0.1).tolist()


def test_update_bias():
    bias = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert moe_update_bias(bias, torch.tensor([[4, 1, 2, 0], [1, 2, 0, 2]]), 0.5) is bias
    assert bias.tolist() == [0.5, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("masked", [False, True])
def test_transformers_load_balancing_loss(masked):
    """Theirs is k times ours: its f = counts / T sums to k. Of several layers it pools counts and scores before it
    multiplies, so that an expert of one layer makes up for the same number in another; ours is of each layer."""
    losses = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    layers = [logits_of(20, 8, seed=s).requires_grad_() for s in range(2)]
    mask = (torch.arange(20) % 3 > 0).view(2, 10).long() if masked else None
    routes = [moe_route(z, 2, token_mask=None if mask is None else mask.view(-1)) for z in layers]
    for z, route in zip(layers, routes, strict=True):
        theirs, ours = losses.load_balancing_loss_func((z,), 8, 2, mask), 2 * moe_balance_loss(route)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(v, z, retain_graph=True)[0] for v in (ours, theirs)))
    pooled = MoERoute(None, None, sum(r.counts for r in routes), sum(r.mean_score for r in routes) / 2, None)
    torch.testing.assert_close(2 * moe_balance_loss(pooled), losses.load_balancing_loss_func(tuple(layers), 8, 2, mask))


@pytest.mark.parametrize("devices", [3, 0, [0, 1], [0, 0, 0, -1]])
def test_device_messages(devices):
    with pytest.raises(ValueError, match="moe_device_balance_loss: devices must"):
        moe_device_balance_loss(moe_route(torch.zeros(2, 4), 2), devices)
