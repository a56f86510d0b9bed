"""moe_plan beyond the contract: sizes around its chunks, blocks, messages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warpup import MoEPlan, moe_plan
from warpup.moe.moe_plan import reference_moe_plan


def same_plan(got: MoEPlan, want: MoEPlan) -> None:
    for name, g, w in zip(MoEPlan._fields, got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@st.composite
def routings(draw):
    # Around: one copy, a warp, chunks of 256 copies; the scan's 256 experts.
    tokens = draw(st.sampled_from([0, 1, 2, 31, 33, 128, 257]))
    k, experts = draw(st.sampled_from([1, 2, 3, 8])), draw(st.sampled_from([1, 2, 7, 64, 255, 257]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    low, high = draw(st.sampled_from([(-1, experts), (0, experts), (0, 1), (-1, 0), (experts - 1, experts)]))
    indices = torch.randint(
        low, high, (tokens, k), generator=rng, dtype=draw(st.sampled_from([torch.int64, torch.int32]))
    )
    return indices, experts, draw(st.sampled_from([None, 1, 2, 16, 128]))


@given(routing=routings())
@settings(max_examples=60)
def test_plan(backend, routing):
    indices, experts, block = routing
    got = moe_plan(indices.to(backend.device), experts, block=block)
    same_plan([t.cpu() for t in got], reference_moe_plan(indices, experts, block=block))
    if block:
        expert_of = got.block_experts(block).repeat_interleave(block).cpu()
        copies = got.permutation.cpu()
        torch.testing.assert_close(indices.flatten()[copies[copies >= 0]].long(), expert_of[copies >= 0])
        assert (expert_of[int(got.offsets[-1]) :] == experts).all()


def test_large_plan(threads):
    """More copies than the smallest chunks hold, on several threads."""
    indices = torch.randint(-1, 512, (32768, 8), generator=torch.Generator().manual_seed(0))
    threads(3)
    same_plan(moe_plan(indices, 512), reference_moe_plan(indices, 512))


@pytest.mark.parametrize("block", [1, 2**20])
def test_smallest_and_largest_block(backend, block):
    indices = torch.tensor([[1, 0], [-1, 1]])
    got = moe_plan(indices.to(backend.device), 2, block=block)
    same_plan([t.cpu() for t in got], reference_moe_plan(indices, 2, block=block))


def test_large_plan_on_the_device(backend):
    indices = torch.randint(-1, 5, (17001, 4), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    same_plan([t.cpu() for t in moe_plan(indices.to(backend.device), 5)], reference_moe_plan(indices, 5))


# ---- messages -------------------------------------------------------------------------------------------------------

WRONG = [
    (lambda: moe_plan(torch.zeros(2), 2), r"indices must be a \(T, k\) int64 or int32 tensor, got \(2,\) torch.float"),
    (lambda: moe_plan(torch.tensor([[0, 2]]), 2), r"indices\[0, 1\] = 2 is outside \[-1, 2\)"),
    (lambda: moe_plan(torch.tensor([[-2, 0]]), 2), r"indices\[0, 0\] = -2 is outside \[-1, 2\)"),
    (lambda: moe_plan(torch.tensor([[0]]), 0), "num_experts must be at least 1, got 0"),
    (lambda: moe_plan(torch.tensor([[0]]), 1, block=0), "block must be at least 1, got 0"),
    (lambda: moe_plan(torch.tensor([[0]]), 1, block=-1), "block must be at least 1, got -1"),
    (lambda: moe_plan(torch.tensor([[0]]), 1, block=2**20 + 1), "block must be 1 to 1048576, got 1048577"),
    (lambda: moe_plan(torch.tensor([[0, 1]]), 2, block=4).block_experts(3), "block must be the plan's own, got 3 for"),
    (lambda: moe_plan(torch.tensor([[0, 1]]), 2, block=4).block_experts(0), "block must be the plan's own, got 0 for"),
    (lambda: moe_plan(torch.tensor([[0, 1]]), 2, block=2).block_experts(4), "block must be the plan's own, got 4 for"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
