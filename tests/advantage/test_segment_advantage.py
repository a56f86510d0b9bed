"""`segment_ids` and `segment_advantage`, token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.advantage.inputs import coin, normal
from tests.support.inputs import moved_to
from warpup import segment_advantage, segment_ids

NAN = math.nan


def segments_of(probs, mask, threshold, every):
    """Token by token, as the paper has it."""
    cuts, out = 0, []
    for p, live in zip(probs, mask, strict=True):
        cuts += live and p < threshold
        out.append((cuts - 1) // every if live and cuts else -1)
    return out


@given(
    probs=st.lists(st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0]), max_size=25), data=st.data(), every=st.integers(1, 4)
)
@settings(max_examples=60)
def test_segments(backend, probs, data, every):
    n = len(probs)
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    row = {"probs": torch.tensor([probs]), "mask": torch.tensor([mask], dtype=torch.bool)}
    got = segment_ids(**moved_to(backend.device, row), every=every)
    want = segments_of(probs, mask, 0.9, every)
    assert got.tolist() == [want]
    count = max(want, default=-1) + 1
    values, reward = normal(1, count + 1), 0.75  # a column more than is used
    values[0, count] = NAN
    options = {"rewards": torch.tensor([reward]), "values": values, **row}
    advantages, loss_mask, segments = segment_advantage(**moved_to(backend.device, options), every=every)
    assert segments.tolist() == [want]
    ends = [*values[0, 1:count].tolist(), reward]
    expected = [0.0 if k < 0 else ends[k] - values[0, k].item() for k in want]
    torch.testing.assert_close(advantages.cpu(), torch.tensor([expected]).view(1, n))
    assert loss_mask.tolist() == [[m and p <= torch.tensor(0.9) for m, p in zip(mask, probs, strict=True)]]


def test_segments_by_hand(backend):
    """Unsure throughout, a cut before every fifth token: V goes .25, .75 and ends in a reward of -2."""
    row = {"rewards": torch.tensor([-2.0]), "values": torch.tensor([[0.25, 0.75]])}
    options = moved_to(backend.device, row | {"probs": torch.full((1, 7), 0.5), "mask": torch.ones(1, 7)})
    got = segment_advantage(**options)
    assert got.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert got.advantages.tolist() == [[0.5] * 5 + [-2.75] * 2]
    sure = segment_advantage(**{**options, "probs": torch.ones(1, 7, device=backend.device)})
    assert (sure.advantages == 0).all()
    assert not sure.loss_mask.any()
    one = segment_advantage(**{**options, "values": options["values"][:, :1]})  # the last column takes all that follow
    assert one.advantages.tolist() == [[-2.25] * 7]


def test_segments_compiled(device):
    def call(x, y, m):
        return tuple(segment_advantage(x[:, 0], y[:, :3], x.sigmoid(), m, every=2))

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((6, 11), (9, 14)):
        inputs = [x.to(device) for x in (normal(*shape), normal(*shape, seed=1), coin(*shape))]
        for got, want in zip(compiled(*inputs), call(*inputs), strict=True):
            assert torch.equal(got, want)


def test_no_gradient(backend):
    x = normal(4, 6).to(backend.device).requires_grad_()
    outputs = segment_advantage(x[:, 0], x, x.sigmoid(), torch.ones(4, 6, device=backend.device))
    assert not any(o.requires_grad for o in outputs)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty(backend, shape):
    x, mask = torch.zeros(shape, device=backend.device), torch.zeros(shape, dtype=torch.bool, device=backend.device)
    outputs = segment_advantage(x.new_zeros(shape[0]), x.new_zeros(shape[0], 2), x, mask)
    assert all(o.shape == shape for o in outputs)


X, M, V = torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(3)
ERRORS = [
    (lambda: segment_ids(V, V), r"probs must have shape \(B, T\), got \(3,\)"),
    (lambda: segment_ids(X, M, every=0), r"every must be at least 1, got 0"),
    (lambda: segment_advantage(V[:2], X, X, M), r"rewards must have shape \(3,\), got \(2,\)"),
    (lambda: segment_advantage(V, X[:, :0], X, M), r"values must have shape \(3, S\) with S >= 1, got \(3, 0\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
