"""`group_plan`, against a stable sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warpup import group_plan
from warpup.advantage.group_plan import reference_group_plan

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(
    pool=st.lists(INT64, min_size=1, max_size=20),
    picks=st.lists(st.integers(0, 19), max_size=200),
    narrow=st.booleans(),
)
@settings(max_examples=150)
def test_group_plan(pool, picks, narrow, device):
    values = [pool[i % len(pool)] for i in picks]
    ids = torch.tensor([v % 2**31 for v in values] if narrow else values, dtype=torch.int32 if narrow else torch.int64)
    order, offsets = (x.cpu() for x in group_plan(ids.to(device)))
    n, groups = len(ids), len(set(ids.tolist()))
    assert order.tolist() == sorted(range(n), key=lambda row: (ids[row].item(), row))
    assert offsets.shape == (n + 1,)
    assert (offsets[groups:] == n).all()
    for a, b in zip(offsets[:groups].tolist(), offsets[1 : groups + 1].tolist(), strict=True):
        assert len(set(ids[order[a:b]].tolist())) == 1
    for got, want in zip((order, offsets), reference_group_plan(ids), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("bits", [1, 11, 12, 22, 23, 32, 33, 63])
def test_group_plan_of_many_rows(bits):
    """Each number of digits, keys packed beside their rows or not."""
    ids = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5000,), generator=torch.Generator().manual_seed(bits))
    for values in (ids, ids.sort().values, ids.flip(0), ids * 0 - 5):
        for got, want in zip(group_plan(values), reference_group_plan(values), strict=True):
            assert torch.equal(got, want)


R12, IDS12 = torch.zeros(12), torch.zeros(12, dtype=torch.int64)
ERRORS = [
    (lambda: group_plan(R12), r"ids must be a \(N,\) int64 or int32 tensor, got \(12,\) torch.float32"),
    (lambda: group_plan(IDS12.view(3, 4)), r"ids must be .* got \(3, 4\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
