"""Sparse collectives and sharded experts in real processes over gloo: one group of 2 and one of 4 runs all checks."""

import multiprocessing
import time

import pytest
import torch
from torch import nn

from tests.distributed import checks
from warpup.distributed import ShardedExperts, clip_grad_norm_, load_experts, move_shards, rebalance, save_experts

PATIENCE = 240  # seconds for all checks of one group


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def group(request, tmp_path_factory):
    """How each check went on each rank."""
    world, folder = request.param, tmp_path_factory.mktemp("group")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=checks.run, args=(r, world, str(folder), checks.CHECKS)) for r in range(world)]
    for process in processes:
        process.start()
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return world, folder


@pytest.mark.parametrize("name", checks.CHECKS)
def test_in_processes(group, name):
    world, folder = group
    for rank in range(world):
        outcome = folder / f"{name}.{rank}"
        assert outcome.exists(), f"rank {rank} did not finish"
        assert outcome.read_text() == "passed", f"rank {rank}:\n{outcome.read_text()}"


def test_checkpoint_of_four_in_one_process(group):
    """And what one process saves; no group there."""
    world, folder = group
    assert len(list((folder / "saved").iterdir())) == world
    model, want = checks.sharded(torch.float64, slots=0), checks.trained_whole(world, 3, torch.float64, "adam")
    optimizer = checks.optimizer_of("adam", model.parameters())
    load_experts(folder / "saved", model, optimizer)
    experts = model[0].experts
    torch.testing.assert_close(experts.w_down, want[0].experts.w_down, rtol=1e-10, atol=1e-12)
    assert optimizer.state[experts.w_down]["exp_avg"].shape == experts.w_down.shape
    assert optimizer.state[experts.w_down]["step"] == 3
    again = folder / "again"
    save_experts(again, model, optimizer)
    other = checks.sharded(torch.float64, slots=0)
    load_experts(again, other)
    assert torch.equal(other[0].experts.w_gate_up, experts.w_gate_up)
    next((folder / "saved").iterdir()).rename(again / "experts-00001-of-00004.safetensors")
    with pytest.raises(ValueError, match="files of one checkpoint"):
        load_experts(again, other)


def test_missing_experts_are_told(tmp_path):
    small = ShardedExperts(4, 3, 2, slots=0)
    save_experts(tmp_path, small)
    large = ShardedExperts(4, 3, 3, slots=0)
    before = large.w_down.clone()
    with pytest.raises(ValueError, match=r"no 2.w_gate_up"):
        load_experts(tmp_path, large)
    with pytest.raises(ValueError, match=r"0.w_gate_up"):
        load_experts(tmp_path, ShardedExperts(5, 3, 2, slots=0))
    assert torch.equal(large.w_down, before)


def test_surplus_experts_are_told(tmp_path):
    save_experts(tmp_path, ShardedExperts(4, 3, 3, slots=0))
    small = ShardedExperts(4, 3, 2, slots=0)
    before = small.w_down.clone()
    with pytest.raises(ValueError, match="more experts in the layer than the model, 2"):
        load_experts(tmp_path, small)
    assert torch.equal(small.w_down, before)


def test_files_of_another_number_of_ranks_are_not_mixed_with(tmp_path):
    layer, old = ShardedExperts(4, 3, 2, slots=0), tmp_path / "experts-00001-of-00004.safetensors"
    old.touch()
    with pytest.raises(ValueError, match=r"another number of ranks, \['experts-00001-of-00004"):
        save_experts(tmp_path, layer)
    assert list(tmp_path.iterdir()) == [old]


def test_an_optimizer_of_other_parameters_is_told(tmp_path):
    layer, other = ShardedExperts(4, 3, 2, slots=0), torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    save_experts(tmp_path / "saved", layer)
    for call in (
        lambda: save_experts(tmp_path / "again", layer, other),
        lambda: load_experts(tmp_path / "saved", layer, other),
        lambda: move_shards(layer, other, layer.owner),
    ):
        with pytest.raises(ValueError, match="optimizer must be the one that has"):
            call()
    assert not (tmp_path / "again").exists()
    layer.requires_grad_(False)  # what is not trained need not be there
    move_shards(layer, other, layer.owner)
    with pytest.raises(ValueError, match="layers must hold"):
        rebalance([], other)


def test_the_norm_of_no_gradients_is_zero():
    """No parameters at all, none that are meant, and none that got a gradient."""
    for model, parameters in ((nn.ReLU(), None), (nn.Linear(2, 2), []), (nn.Linear(2, 2), None), (nn.ReLU(), iter(()))):
        norm = clip_grad_norm_(model, 1.0, parameters)
        assert (norm.shape, norm.dtype, float(norm)) == ((), torch.float64, 0.0)


def test_one_process_is_moe_experts():
    """Without torch.distributed: same outputs and gradients, bit for bit."""
    layer, whole = ShardedExperts(checks.H, checks.I, checks.E, slots=1), checks.Whole(torch.float32, 0)
    x = torch.randn(7, checks.H, generator=torch.Generator().manual_seed(0))
    weights, indices = torch.full((7, 2), 0.5), torch.arange(14).view(7, 2) % checks.E
    want, got = whole(x, weights, indices), layer(x, weights, indices)
    assert torch.equal(got, want)
    assert torch.equal(torch.compile(layer, backend="eager")(x, weights, indices), want)
    got.square().sum().backward(), want.square().sum().backward()
    assert torch.equal(layer.w_gate_up.grad, whole.w_gate_up.grad)
    assert torch.equal(layer.w_down.grad, whole.w_down.grad)
    state = layer.state_dict()
    layer.load_state_dict(state)
    state["_extra_state"]["owner"] = torch.ones(checks.E, dtype=torch.int64)
    with pytest.raises(ValueError, match="other owners"):
        layer.load_state_dict(state)
