"""What every rank of a gloo group does in test_parallel.py: `check_*` functions, run one after the other."""

import datetime
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import warpup
from warpup.distributed import (
    Placement,
    ShardedExperts,
    clip_grad_norm_,
    load_experts,
    materialize,
    move_shards,
    overlap,
    rebalance,
    save_experts,
    sparse_all_gather,
    sparse_reduce_scatter,
)
from warpup.distributed.collectives import same_on_all_ranks
from warpup.distributed.copies import Copies
from warpup.distributed.placement import even_shards, without_copies
from warpup.moe.moe_experts import moe_experts
from warpup.train.log import MetricsLog
from warpup.train.run import StageRun

H, I, E, K, T = 6, 5, 8, 2, 12
GATHER = Copies.gather


def run(rank: int, world: int, folder: str, names: list[str]) -> None:
    """Entry of a process; `folder/{name}.{rank}` says how a check went."""
    torch.set_num_threads(1)
    rendezvous, patience = f"file://{folder}/rendezvous", datetime.timedelta(seconds=40)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=patience)
    for name in names:
        outcome = "passed"
        try:
            globals()[name](rank, world, Path(folder))
        except BaseException:
            outcome = traceback.format_exc()
        Path(folder, f"{name}.{rank}").write_text(outcome)
        if outcome != "passed":
            sys.exit(1)  # the others would wait for this rank


@contextmanager
def wire():
    """Counts the elements that leave this rank in all-to-alls, and the calls."""
    real, sent = dist.all_to_all_single, []

    def counted(output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False):
        own = input_split_sizes[dist.get_rank(group)]
        if input.is_floating_point():  # not the tokens per expert
            sent.append((sum(input_split_sizes) - own) * input[:1].numel() if len(input) else 0)
        assert sum(input_split_sizes) == len(input)
        assert sum(output_split_sizes) == len(output)
        return real(output, input, output_split_sizes, input_split_sizes, group, async_op)

    dist.all_to_all_single = counted
    try:
        yield sent
    finally:
        dist.all_to_all_single = real


def total(value: float) -> float:
    value = torch.tensor(float(value))
    dist.all_reduce(value)
    return value.item()


def random_placement(world: int, experts: int, seed: int, owners: int | None = None) -> Placement:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(owners or world, (experts,), generator=generator)
    placement = without_copies(owner, world)
    placement.held.logical_or_(torch.rand(experts, world, generator=generator) < 0.4)
    return placement


def values(rank: int, experts: list[int], shape=(3, 2), dtype=torch.float64) -> torch.Tensor:
    """Numbers that only (rank, expert) decide."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(1000 * rank + e)) for e in experts]
    return torch.stack(rows).to(dtype) if rows else torch.empty(0, *shape, dtype=dtype)


# ---- Collectives ----------------------------------------------------------------------------------------------------


def check_collectives_move_what_the_placement_says(rank, world, folder):
    for seed in range(6):
        placement = random_placement(world, E, seed, owners=max(1, world - seed % 3))  # some ranks own nothing
        mine, layout = placement.shard(rank), placement.layout(rank)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            got = sparse_all_gather(values(0, mine, dtype=dtype), placement)
            assert torch.equal(got, values(0, layout, dtype=dtype))

            got = sparse_reduce_scatter(values(rank, layout, dtype=dtype), placement, scale=0.5)
            wide = torch.promote_types(torch.float32, dtype)
            want = torch.zeros(len(mine), 3, 2, dtype=wide)
            for row, e in zip(want, mine, strict=True):
                for r in placement.held[e].nonzero().flatten().tolist():
                    row += values(r, [e], dtype=dtype)[0].to(wide)
            assert torch.equal(got, (want * 0.5).to(dtype))


def check_collectives_are_each_others_backward(rank, world, folder):
    placement = random_placement(world, E, 3)
    shard = values(0, placement.shard(rank)).requires_grad_()
    out = sparse_all_gather(shard, placement, scale=0.25)
    (grad,) = torch.autograd.grad(out, shard, values(rank, placement.layout(rank)), create_graph=True)
    assert torch.equal(grad, sparse_reduce_scatter(values(rank, placement.layout(rank)), placement, scale=0.25))
    grads = values(rank, placement.layout(rank)).requires_grad_()
    out = sparse_reduce_scatter(grads, placement, scale=0.25)
    (grad,) = torch.autograd.grad(out, grads, values(7, placement.shard(rank)))
    assert torch.equal(grad, values(7, placement.layout(rank)) / 4)


def check_bytes_are_the_share_of_the_dense_collective(rank, world, folder):
    experts, share = 32, 1 / 8
    owner, shape = even_shards(experts, world), (3, 2)
    dense = (world - 1) * experts * 6  # what an all-gather of all experts puts on the wire
    placement = materialize(torch.arange(1, experts + 1), owner, [0] * world, slots=experts, top=int(share * experts))
    with wire() as sent:
        sparse_all_gather(values(0, placement.shard(rank), shape), placement)
    assert abs(total(sum(sent)) / (share * dense) - 1) <= 0.05
    with wire() as sent:
        sparse_reduce_scatter(values(rank, placement.layout(rank), shape), placement)
    assert abs(total(sum(sent)) / (share * dense) - 1) <= 0.05
    # A slot a rank, filled by the greedy planner: lambda is slots / experts.
    placement = materialize(torch.arange(1, experts + 1), owner, [0] * world, slots=4, top=experts)
    with wire() as sent:
        sparse_all_gather(values(0, placement.shard(rank), shape), placement)
    assert total(sum(sent)) == 4 * world * 6
    with wire() as sent:  # nothing to move, nothing said
        sparse_all_gather(values(0, placement.shard(rank), shape), without_copies(owner, world))
    assert sent == []


def check_bytes_of_a_layer(rank, world, folder):
    """All load on 1/8 of the experts, a step: fetched twice, reduced once, and no token leaves."""
    layer = ShardedExperts(H, I, 16, slots=2)
    indices = torch.arange(T).view(T, 1) % 2
    with wire() as sent:
        layer(tokens_of(world, 0, torch.float32)[rank], torch.ones(T, 1), indices).sum().backward()
    dense = (world - 1) * 16 * 3 * I * H
    assert len(sent) == 6
    assert abs(total(sum(sent)) / (3 / 8 * dense) - 1) <= 0.05
    layer = ShardedExperts(H, I, 16, slots=0)  # no copies: tokens to the owner and back, their gradients as well
    x = tokens_of(world, 0, torch.float32)[rank].requires_grad_()
    with wire() as sent:
        layer(x, torch.ones(T, 1), indices).sum().backward()
    assert total(sum(sent)) == 4 * H * T * (world - 1)  # rank 0 owns both experts


def check_layers_fetch_for_their_neighbors(rank, world, folder):
    """The order in which copies are fetched, of two layers in a chain: the second one's before its own forward, the
    first one's before its own backward."""
    events = []
    for chained in (False, True):
        layers = [ShardedExperts(H, I, E, slots=E) for _ in range(2)]
        if chained:
            overlap(layers)
        x, weights, indices = torch.ones(T, H), torch.ones(T, 1), torch.zeros(T, 1, dtype=torch.int64)
        which = {id(layer.w_down): n for n, layer in enumerate(layers)}
        with pytest.MonkeyPatch.context() as patch:
            for _ in range(2):
                said = []

                def noted(self, said=said, which=which):
                    said.append(which[id(self.parameters[1])])
                    GATHER(self)

                patch.setattr(Copies, "gather", noted)
                y = layers[0](x, weights, indices)
                said.append("between")
                z = layers[1](y, weights, indices)
                y.register_hook(lambda g, said=said: said.append("between"))
                z.sum().backward()
                events.append(said)
        assert list(dict(layers[0].named_parameters())) == ["w_gate_up", "w_down"]
    assert events[:2] == [[0, "between", 1, 1, "between", 0]] * 2
    assert events[2:] == [[0, 1, "between", 1, 0, "between"]] * 2


def check_wrong_arguments_are_told_on_every_rank(rank, world, folder):
    placement, other = random_placement(world, E, 0), without_copies(torch.zeros(1, dtype=torch.int64), world + 1)
    layer, alone = ShardedExperts(H, I, E, slots=1), dist.new_group([0])
    other_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    if rank:
        with pytest.raises(ValueError, match="this process is not in the group"):
            ShardedExperts(H, I, E, slots=1, group=alone)
    x, weights, indices = torch.zeros(3, H), torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64)
    for text, call in {
        "shard must hold": lambda: sparse_all_gather(torch.zeros(E + 1, 2), placement),
        "placement.held must be": lambda: sparse_all_gather(torch.zeros(1), other),
        "grads must hold": lambda: sparse_reduce_scatter(torch.zeros(E + 1, 2), placement),
        "planning must be the same on all ranks": lambda: ShardedExperts(H, I, E, slots=rank),
        "sizes must be the same on all ranks": lambda: ShardedExperts(H, I + rank, E, slots=0),
        "owner must name ranks": lambda: ShardedExperts(H, I, E, slots=0, owner=torch.full((E,), world)),
        "new_owner must be the same": lambda: move_shards(layer, None, layer.owner + (rank == 0)),
        r"new_owner must be \(8,\)": lambda: move_shards(layer, None, layer.owner[:-1]),
        "optimizer must be the one that has": lambda: move_shards(layer, other_optimizer, layer.owner.flip(0)),
        "experts must be the same on all ranks": lambda: ShardedExperts(H, I, E, slots=1, seed=rank),
        "must be at least 1, got 6, 5 and 0": lambda: ShardedExperts(H, I, 0, slots=1),
        "activation must be one of silu, .* got 'tanh'": lambda: ShardedExperts(H, I, E, slots=1, activation="tanh"),
        "weight_placement must be one of combine, .* got 'up'": lambda: ShardedExperts(
            H, I, E, slots=1, weight_placement="up"
        ),
        "x must be": lambda: layer(x[:, 1:], weights, indices),
        "weights and indices must be": lambda: layer(x, weights, indices[1:]),
    }.items():
        with pytest.raises(ValueError, match=text):
            call()


def check_placements_that_differ_are_told_on_every_rank(rank, world, folder):
    placement = random_placement(world, E, 0)
    mine = random_placement(world, E, rank)._replace(owner=placement.owner)
    mine.held.logical_or_(without_copies(placement.owner, world).held)
    shard = torch.zeros(len(placement.shard(rank)), 2)
    for text, given in (("placement.held must be", mine), ("placement.owner must be", placement)):
        given = given._replace(owner=(given.owner + (rank == 1)) % world) if given is placement else given
        with pytest.raises(ValueError, match=f"{text} the same on all ranks: rank 1 has"):
            sparse_all_gather(shard, given, check=True)
        with pytest.raises(ValueError, match=f"{text} the same on all ranks: rank 1 has"):
            sparse_reduce_scatter(shard, given, check=True)
    assert len(sparse_all_gather(shard, placement, check=True)) == len(placement.layout(rank))


# ---- Training -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Router and experts, residual. `experts` has the call of moe_experts on x, weights, indices."""

    def __init__(self, experts, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.router = nn.Linear(H, E, bias=False, dtype=dtype)
        with torch.no_grad():
            self.router.weight.copy_(torch.randn(E, H, generator=generator, dtype=torch.float64))
        self.experts = experts

    def forward(self, x):
        scores = self.router(x).softmax(-1)
        weights, indices = scores.topk(K, -1)
        return x + self.experts(x, weights, indices)


class Whole(nn.Module):
    """All experts in one process."""

    def __init__(self, dtype, seed):
        super().__init__()
        gate_up, down = [], []
        for e in range(E):  # as ShardedExperts documents it
            generator = torch.Generator().manual_seed(seed * E + e)
            gate_up.append(torch.empty(2 * I, H, dtype=dtype).uniform_(-(H**-0.5), H**-0.5, generator=generator))
            down.append(torch.empty(H, I, dtype=dtype).uniform_(-(I**-0.5), I**-0.5, generator=generator))
        self.w_gate_up, self.w_down = nn.Parameter(torch.stack(gate_up)), nn.Parameter(torch.stack(down))

    def forward(self, x, weights, indices):
        return moe_experts(x, weights, indices, self.w_gate_up, self.w_down)


def tokens_of(world, step, dtype):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(world, T, H, generator=generator, dtype=torch.float64).to(dtype) + step * 0.3


def loss_of(model, x):
    return (model(x).square() * torch.linspace(0.5, 1.5, H, dtype=x.dtype)).mean()


def optimizer_of(kind, parameters):
    return torch.optim.AdamW(parameters, 0.05) if kind == "adam" else torch.optim.SGD(parameters, 0.1, momentum=0.9)


def trained_whole(world, steps, dtype, kind, layers=1):
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(Whole(dtype, i), dtype) for i in range(layers)))
    optimizer = optimizer_of(kind, model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, tokens_of(world, step, dtype).flatten(0, 1)).backward()
        optimizer.step()
    return model


def sharded(dtype, layers=1, **options):
    return nn.Sequential(
        *(Block(ShardedExperts(H, I, E, dtype=dtype, seed=i, **options), dtype) for i in range(layers))
    )


def step_sharded(model, optimizer, rank, world, step, dtype, average=True, run=None):
    optimizer.zero_grad()
    loss_of(run or model, tokens_of(world, step, dtype)[rank]).backward()
    if average:
        for block in model:
            dist.all_reduce(block.router.weight.grad)
            block.router.weight.grad /= world
    optimizer.step()


def same(model, whole, dtype):
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    for mine, other in zip(model, whole, strict=True):
        router = mine.router.weight
        router = router.full_tensor() if hasattr(router, "full_tensor") else router
        torch.testing.assert_close(router, other.router.weight, **close)
        shard = mine.experts.shard
        torch.testing.assert_close(mine.experts.w_gate_up, other.experts.w_gate_up[shard], **close)
        torch.testing.assert_close(mine.experts.w_down, other.experts.w_down[shard], **close)


def check_trains_to_the_weights_of_one_process(rank, world, folder):
    settings = [
        {"slots": 0},
        {"slots": 2},
        {"slots": 1, "top": 3, "keep": True},
        {"slots": E},
        {"slots": 2, "nodes": [r // 2 for r in range(world)]},
        {"slots": 1, "owner": torch.full((E,), world - 1)},  # all other ranks own nothing
        {"slots": 0, "owner": torch.full((E,), world - 1)},  # and hold nothing
        {"slots": 2, "owner": torch.arange(E) % max(1, world - 1), "top": 2},  # the last rank owns nothing
    ]
    for dtype, kind in ((torch.float64, "adam"), (torch.float32, "sgd")):
        whole = trained_whole(world, 4, dtype, kind)
        for options in settings:
            model = sharded(dtype, **options)
            optimizer = optimizer_of(kind, model.parameters())
            for step in range(4):
                step_sharded(model, optimizer, rank, world, step, dtype)
            same(model, whole, dtype)


def check_trains_the_same_while_experts_move(rank, world, folder):
    """Two layers, copies prefetched and calibrated, owners changed by hand and by the planner between the steps."""
    dtype = torch.float64
    whole = trained_whole(world, 8, dtype, "adam", layers=2)
    model = sharded(dtype, layers=2, slots=2, costs=(1.0, 0.5))
    overlap([block.experts for block in model])
    optimizer = optimizer_of("adam", model.parameters())
    moves = {
        1: torch.zeros(E, dtype=torch.int64),
        3: torch.arange(E).flip(0) % world,
        5: torch.full((E,), world - 1),
    }
    placements = []
    for step in range(8):
        if step != 4:
            model[0].experts.prefetch()
            placements.append(model[0].experts.prefetched.placement.held)
        step_sharded(model, optimizer, rank, world, step, dtype)
        if step in moves:
            for block in model:
                move_shards(block.experts, optimizer, moves[step])
        if step == 6:
            assert rebalance([block.experts for block in model], optimizer)
            assert not rebalance([block.experts for block in model], optimizer)
    same(model, whole, dtype)
    assert any(not torch.equal(placements[0], p) for p in placements)


def check_optimizer_state_moves_by_expert(rank, world, folder):
    """Adafactor's has a row per expert but not the parameter's shape; what has neither is refused on all ranks."""
    layer = ShardedExperts(H, I, E, slots=1)
    optimizer = torch.optim.Adafactor(layer.parameters())
    x, indices = tokens_of(world, 0, torch.float32)[rank], torch.arange(T * K).view(T, K) % E
    layer(x, torch.ones(T, K), indices).square().sum().backward()
    optimizer.step()

    def by_expert():
        state = optimizer.state[layer.w_down]
        mine = {
            e: [layer.w_down[i].detach(), state["row_var"][i], state["col_var"][i]] for i, e in enumerate(layer.shard)
        }
        found = [None] * world
        dist.all_gather_object(found, mine)
        return {e: v for part in found for e, v in part.items()}

    before = by_expert()
    move_shards(layer, optimizer, (E - 1 - torch.arange(E)) // 2 % world)
    after = by_expert()
    assert len(before) == len(after) == E
    assert all(torch.equal(a, b) for e in before for a, b in zip(before[e], after[e], strict=True))
    optimizer.state[layer.w_down]["odd"] = torch.zeros(2)
    with pytest.raises(ValueError, match="a row per expert"):
        move_shards(layer, optimizer, layer.owner.flip(0))
    with pytest.raises(ValueError, match="a row per expert"):
        save_experts(folder / "odd", layer, optimizer)


def check_gradients_of_tokens_and_weights(rank, world, folder):
    """Against one process, in float64: x, the routing weights, the experts; dropped tokens; a rank without tokens."""
    dtype = torch.float64
    last = torch.full((E,), world - 1)
    for slots, first, owner in ((0, 0, None), (1, 3, None), (2, 1, None), (0, 0, last), (1, 0, last)):
        layer = ShardedExperts(H, I, E, slots=slots, dtype=dtype, gradients="sum", owner=owner)
        whole, sizes = Whole(dtype, 0), [first + 3 * r for r in range(world)]
        generator = torch.Generator().manual_seed(slots)
        x = torch.randn(sum(sizes), H, generator=generator, dtype=dtype)
        w = torch.rand(sum(sizes), K, generator=generator, dtype=dtype)
        i = torch.randint(-1, E, (sum(sizes), K), generator=generator)
        i[: len(i) // 2] = i[: len(i) // 2].clamp_max(1)  # two hot experts
        g = torch.randn(sum(sizes), H, generator=generator, dtype=dtype)
        part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        xs, ws = x.clone().requires_grad_(), w.clone().requires_grad_()
        out = whole(xs, ws, i)
        want = torch.autograd.grad(out, (xs, ws, whole.w_gate_up, whole.w_down), g)
        mine = x[part].clone().requires_grad_(), w[part].clone().requires_grad_()
        got = layer(*mine, i[part])
        torch.testing.assert_close(got, out[part], rtol=1e-12, atol=1e-12)
        for again in (True, False):  # retain_graph: the copies are fetched a second time
            found = torch.autograd.grad(got, (*mine, layer.w_gate_up, layer.w_down), g[part], retain_graph=again)
            for f, a in zip(found, (want[0][part], want[1][part], *(v[layer.shard] for v in want[2:])), strict=True):
                torch.testing.assert_close(f, a, rtol=1e-11, atol=1e-12)


def check_bitwise_deterministic(rank, world, folder):
    for dtype in (torch.float32, torch.bfloat16):
        runs = []
        for _ in range(2):
            model = sharded(dtype, slots=1)
            optimizer = optimizer_of("sgd", model.parameters())
            for step in range(2):
                step_sharded(model, optimizer, rank, world, step, dtype)
            runs.append([p.detach().clone() for p in model.parameters()])
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*runs, strict=True))


def check_copies_are_freed_and_fetched_again(rank, world, folder):
    x = tokens_of(world, 0, torch.float32)[rank]
    weights, indices = torch.full((T, K), 0.5), torch.arange(T * K).view(T, K) % E
    for keep in (False, True):
        layer = ShardedExperts(H, I, E, slots=E, keep=keep)
        layer.prefetch()
        layer.prefetch()  # nothing more
        copies = layer.prefetched
        assert copies.placement.held.sum() == E  # nothing is known of the load yet
        layer.prefetched = None
        copies.wait()
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Copies, "gather", lambda self, seen=seen: seen.append(self) or GATHER(self))
            out = layer(x, weights, indices).sum()
            assert len(seen) == 1
            sizes = [b.untyped_storage().nbytes() for b in seen[0].buffers]
            assert sizes == ([] if keep else [0, 0])  # kept ones belong to the graph
            out.backward()
            assert len(seen) == (1 if keep else 2)
        assert len(layer.loads) == 1
        assert int(layer.loads[0].sum()) == T * K * world
        out = layer(x, weights, indices).sum()
        with torch.no_grad():
            layer.w_down.mul_(2)
        if not keep:
            with pytest.raises(RuntimeError, match="modified in place"):
                out.backward()
        layer.eval()
        layer(x, weights, indices)
        assert len(layer.loads) == 2


def check_composes_with_fsdp2(rank, world, folder):
    dtype, mesh = torch.float64, init_device_mesh("cpu", (world,))
    whole = trained_whole(world, 3, dtype, "adam", layers=2)
    model = sharded(dtype, layers=2, slots=1)
    ignored = {p for block in model for p in block.experts.parameters()}
    for block in model:
        fully_shard(block, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    optimizer = optimizer_of("adam", model.parameters())
    for step in range(3):
        step_sharded(model, optimizer, rank, world, step, dtype, average=False)
        for block in model:
            move_shards(block.experts, optimizer, (block.experts.owner + 1) % world)
    same(model, whole, dtype)


def check_norms_are_those_of_one_process(rank, world, folder):
    """Experts in shards, one rank without any; the rest under FSDP2, or averaged."""
    dtype, mesh = torch.float64, init_device_mesh("cpu", (world,))
    whole = trained_whole(world, 0, dtype, "sgd")
    loss_of(whole, tokens_of(world, 0, dtype).flatten(0, 1)).backward()
    norm = float(nn.utils.clip_grad_norm_(whole.parameters(), float("inf")))
    nn.utils.clip_grad_norm_(whole.parameters(), limit := norm / 3)
    for fsdp in (True, False):
        model = sharded(dtype, slots=1, owner=torch.arange(E) % max(1, world - 1))
        if fsdp:
            fully_shard(model, mesh=mesh, ignored_params={p for block in model for p in block.experts.parameters()})
        step_sharded(model, torch.optim.SGD(model.parameters(), 0.0), rank, world, 0, dtype, average=not fsdp)
        assert float(clip_grad_norm_(model, limit)) == pytest.approx(norm, rel=1e-6)
        assert float(clip_grad_norm_(model, float("inf"))) == pytest.approx(limit, rel=1e-3)
        experts = model[0].experts
        want = whole[0].experts.w_gate_up.grad[experts.shard]
        torch.testing.assert_close(experts.w_gate_up.grad, want, rtol=1e-5, atol=1e-12)


def check_a_step_is_left_out_on_all_ranks(rank, world, folder):
    """A loss that is not finite, or a gradient of experts, on one rank only."""
    model = sharded(torch.float32, slots=1)
    optimizer = optimizer_of("sgd", model.parameters())
    log = MetricsLog(folder / f"metrics.{rank}.jsonl")
    with StageRun("stage", folder, model, None, seed=0, log=log) as run:
        run.at = 0

        def step(bad_loss=False, bad_gradient=False):
            loss = loss_of(model, tokens_of(world, 0, torch.float32)[rank])
            loss.backward()
            dist.all_reduce(model[0].router.weight.grad)
            if bad_gradient and rank == world - 1:
                model[0].experts.w_down.grad[0] = float("inf")
            before = run.bad_steps
            norm = run.optimizer_step(optimizer, float("nan") if bad_loss and rank == 0 else loss.item(), 0.1, 1.0)
            return run.bad_steps > before, norm

        assert [step(bad_loss=True)[0], step(bad_gradient=True)[0]] == [True, True]
        left_out, norm = step()
        assert not left_out
        same_on_all_ranks({"norm": norm}, None)


class Checkpointed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def check_composes_with_activation_checkpointing(rank, world, folder):
    dtype = torch.float64
    whole = trained_whole(world, 4, dtype, "adam", layers=3)
    for reentrant in (False, True):
        for ahead in (False, True):
            model = sharded(dtype, layers=3, slots=2, costs=(1.0, 0.5) if ahead else None)
            if ahead:
                overlap([block.experts for block in model])
            optimizer = optimizer_of("adam", model.parameters())
            run = nn.Sequential(model[0], Checkpointed(model[1:], reentrant))
            for step in range(4):
                if ahead:
                    model[0].experts.prefetch()
                step_sharded(model, optimizer, rank, world, step, dtype, run=run)
            same(model, whole, dtype)
            assert len(model[1].experts.loads) == 4


# ---- Checkpoints ----------------------------------------------------------------------------------------------------


def check_checkpoint_goes_to_another_world(rank, world, folder):
    """Saved by all ranks; gone on with by half of them, as if nothing had happened."""
    dtype = torch.float64
    whole = trained_whole(world, 5, dtype, "adam")
    model = sharded(dtype, slots=1, owner=torch.arange(E) % max(1, world - 1))
    optimizer = optimizer_of("adam", model.parameters())
    for step in range(3):
        step_sharded(model, optimizer, rank, world, step, dtype)
    save_experts(folder / "saved", model, optimizer)
    again = sharded(dtype, slots=1)
    other = optimizer_of("adam", again.parameters())
    load_experts(folder / "saved", again, other)
    again[0].router.load_state_dict(model[0].router.state_dict())
    other.state[again[0].router.weight] = optimizer.state[model[0].router.weight]
    assert len(again[0].experts.loads) == 3
    for step in range(3, 5):
        step_sharded(again, other, rank, world, step, dtype)
    same(again, whole, dtype)

    half = dist.new_group(range(world // 2))
    if rank < world // 2:
        small = ShardedExperts(H, I, E, slots=1, dtype=dtype, group=half)
        load_experts(folder / "saved", nn.ModuleDict({"0": nn.ModuleDict({"experts": small})}))
        before = trained_whole(world, 3, dtype, "adam")[0].experts
        torch.testing.assert_close(small.w_gate_up, before.w_gate_up[small.shard], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(small.w_down, before.w_down[small.shard], rtol=1e-10, atol=1e-12)
    dist.barrier()


def check_a_rank_that_cannot_write_is_told_on_every_rank(rank, world, folder):
    """And the files of before stay; those of two saves are not read as one."""
    layer, other = (ShardedExperts(H, I, E, slots=0, seed=seed) for seed in (0, 1))
    save_experts(folder / "kept", layer)
    before = layer.w_down.detach().clone()
    if rank == world - 1:  # a folder in the way of its file
        (folder / "kept" / f".experts-{rank:05d}-of-{world:05d}.safetensors.partial").mkdir()
    dist.barrier()
    with pytest.raises(ValueError, match=rf"cannot write .*experts-{world - 1:05d}-of-{world:05d}.safetensors"):
        save_experts(folder / "kept", other)
    load_experts(folder / "kept", other)
    assert torch.equal(other.w_down, before)
    save_experts(folder / "mixed", ShardedExperts(H, I, E, slots=0, seed=2))
    dist.barrier()
    if rank == 0:
        name = f"experts-00000-of-{world:05d}.safetensors"
        (folder / "kept" / name).replace(folder / "mixed" / name)
        with pytest.raises(
            ValueError, match=r"mixed holds files of several checkpoints: experts-00001-of.* are not of"
        ):
            load_experts(folder / "mixed", other)
    dist.barrier()


# ---- A vocabulary over ranks -----------------------------------------------------------------------------------------


def check_vocab_parallel_logprob(rank, world, folder):
    """Of columns in unequal shares it is `token_logprob` of them all, and so is the gradient of each share."""
    generator = torch.Generator().manual_seed(3)
    vocab, cuts = 57, [0, 20, 33, 41, 57] if world == 4 else [0, 40, 57]
    logits = (5 * torch.randn(3, 4, vocab, generator=generator, dtype=torch.float64)).requires_grad_()
    with torch.no_grad():
        logits[0, 0] = -torch.inf  # no distribution
        logits[0, 1, : cuts[1]] = -torch.inf  # nothing on the first rank
    targets = torch.randint(cuts[1], vocab, (3, 4), generator=generator)
    targets[1, 2], targets[1, 3] = -100, 0
    options = {"temperature": torch.rand(3, 4, generator=generator) + 0.5, "softcap": 9.0, "scale": 1.2}
    options |= dict.fromkeys(("entropy", "lse", "sum_p2"), True)
    want = warpup.token_logprob(logits, targets, **options)
    upstream = [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in want]
    (exact,) = torch.autograd.grad(want, logits, upstream)
    begin, end = cuts[rank], cuts[rank + 1]
    mine = logits.detach()[..., begin:end].requires_grad_()
    got = warpup.vocab_parallel_logprob(mine, targets, begin, vocab, **options)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
    torch.testing.assert_close(torch.autograd.grad(got, mine, upstream)[0], exact[..., begin:end])
    only, whole = (
        f(x.float(), targets, *at)
        for f, x, at in (
            (warpup.vocab_parallel_logprob, mine, (begin, vocab)), (warpup.token_logprob, logits, ()),
        )
    )  # fmt: skip
    torch.testing.assert_close(only, whole)
    # A rank may have no columns.
    first, last = (0, 0) if rank == 0 else (cuts[rank] if rank > 1 else 0, cuts[rank + 1])
    share = logits.detach()[..., first:last].requires_grad_()
    got = warpup.vocab_parallel_logprob(share, targets, first, vocab, **options)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
    torch.testing.assert_close(torch.autograd.grad(got, share, upstream)[0], exact[..., first:last])
    # K targets a row, of several ranks each, some ignored, in a row all of them.
    several = torch.randint(0, vocab, (3, 4, 5), generator=generator)
    several[1, 2], several[1, 3, 1:3], several[2, 0, 3] = -100, -100, several[2, 0, 4]
    upstream[0] = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    for case in (options, options | {"temperature": 0.7}):
        want = warpup.token_logprob(logits, several, **case)
        got = warpup.vocab_parallel_logprob(mine, several, begin, vocab, **case)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)
        (exact,) = torch.autograd.grad(want, logits, upstream)
        torch.testing.assert_close(torch.autograd.grad(got, mine, upstream)[0], exact[..., begin:end])
    row = warpup.vocab_parallel_logprob(mine[2, 1], several[2, 1], begin, vocab)  # no leading dimension
    torch.testing.assert_close(row, warpup.token_logprob(logits[2, 1], several[2, 1]))
    for wrong, told in (
        ({"begin": vocab}, "not within a vocabulary of 57"),
        ({"targets": targets + 40}, "must be in"),
        ({"targets": several.mT}, r"targets must have shape \(3, 4\) or \(3, 4, 'K'\), got \(3, 5, 4\)"),
    ):
        with pytest.raises(ValueError, match=told):  # on every rank, before any waits for another
            warpup.vocab_parallel_logprob(
                **{"logits": mine, "targets": targets, "begin": begin, "vocab": vocab} | wrong
            )


CHECKS = [name for name in list(globals()) if name.startswith("check_")]


# ---- The end --------------------------------------------------------------------------------------------------------


def check_a_dead_rank_is_an_error(rank, world, folder):
    """The last check: rank 0 is left alone, and does not wait for ever."""
    layer, x = ShardedExperts(H, I, E, slots=1), torch.ones(T, H)
    dist.barrier()
    if rank == 0:
        with pytest.raises(RuntimeError):
            layer(x, torch.ones(T, 1), torch.zeros(T, 1, dtype=torch.int64))
