"""grouped_mm beyond the contract: shapes, layouts, what is kept, messages; its CPU kernel beside the library."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import warpup
from tests.support.cases import OPS, upcast
from tests.support.inputs import within
from warpup import arrays
from warpup.moe.grouped_mm import grouped_mm_nt, grouped_mm_tn

GROUPED = OPS["grouped_mm"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def problems(draw):
    experts, n, k = (draw(st.sampled_from(s)) for s in ([1, 2, 5], [1, 5, 6, 13, 64, 70], [0, 1, 2, 7, 63, 64, 130]))
    counts = draw(st.lists(st.sampled_from([0, 1, 2, 5, 6, 7, 31, 49, 100]), min_size=experts, max_size=experts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype, beyond = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([0, 3]))
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
    transposed = draw(st.booleans())
    w = torch.randn(experts, *((k, n) if transposed else (n, k)), generator=generator).to(dtype)
    x = torch.randn(int(offsets[-1]) + beyond, k + 3, generator=generator).to(dtype)
    x = x[:, 1 : k + 1] if draw(st.booleans()) else x[:, :k].contiguous()  # rows apart, not aligned
    return {"x": x, "w": w.mT if transposed else w, "offsets": offsets}


@given(x=problems())
@settings(max_examples=80)
def test_grouped_mm_on_any_shape(backend, x):
    x = {k: v.to(backend.device) for k, v in x.items()}
    want, naive = GROUPED.run(upcast(x), GROUPED.reference), GROUPED.run(x, GROUPED.reference)
    for got, w, n in zip(GROUPED.run(x), want, naive, strict=True):
        within(got, w, n)


def test_the_gradient_of_a_transposed_view_has_its_layout(backend):
    """Of the view itself: for a leaf, autograd would copy it into the leaf's layout."""
    for dtype in (torch.float32, torch.bfloat16):
        x = GROUPED.make("small", dtype, backend.device, variant="transposed")
        w = x["w"].mT.contiguous().requires_grad_().mT
        (g,) = torch.autograd.grad(warpup.grouped_mm(x["x"], w, x["offsets"]).sum(), w)
        assert g.stride() == w.stride()


def test_grouped_mm_messages():
    x, w, offsets = torch.randn(4, 3), torch.randn(2, 5, 3), torch.tensor([0, 1, 4])
    for arguments, part in (
        ((x, w[0], offsets), r"x must be \(S, K\) and w \(E, N, K\)"),
        ((x[:, :2], w, offsets), r"got \(4, 2\) and \(2, 5, 3\)"),
        ((x, w.double(), offsets), "w must be torch.float32"),
        ((x.int(), w.int(), offsets), "x must be float32"),
        ((x, w, offsets[:2]), r"offsets must be int64 of shape \(3,\)"),
        ((x, w, offsets.int()), "offsets must be int64"),
    ):
        with pytest.raises(ValueError, match=f"grouped_mm: .*{part}"):
            warpup.grouped_mm(*arguments)
    for dtype in (torch.float32, torch.bfloat16):  # the library's products, our kernel
        for bounds in ([0, 1, 5], [0, 3, 1], [1, 3, 4]):
            with pytest.raises(ValueError, match=r"grouped_mm: offsets must (rise from 0 to at most 4|begin with 0)"):
                warpup.grouped_mm(x.to(dtype), w.to(dtype), torch.tensor(bounds))


def test_the_kernel_and_the_library_agree(threads):
    """bfloat16 gradients by our kernel beside the library's products, at a size that streams its stores past the cache,
    and the same bits on any number of threads."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 0, 50, 51, 133, 140])
    dy, x = (torch.randn(140, n, generator=generator).bfloat16() for n in (1024, 2048))
    w = torch.randn(5, 1024, 2048, generator=generator).bfloat16()
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append((grouped_mm_tn(dy, x, offsets), grouped_mm_nt(dy, w.mT, offsets)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    bounds = offsets.tolist()
    for e, (a, b) in enumerate(pairwise(bounds)):
        for got, want in (
            (results[0][0][e], dy[a:b].float().t() @ x[a:b].float()),
            (results[0][1][a:b], dy[a:b].float() @ w[e].float()),
        ):
            torch.testing.assert_close(got.float(), want, rtol=2**-8, atol=1e-3)


def test_what_is_kept():
    """x for the gradient of w only, and no copy of either."""
    for x_trained, w_trained in ((True, False), (False, True), (True, True)):
        x, w = torch.randn(6, 4, requires_grad=x_trained), torch.randn(2, 3, 4, requires_grad=w_trained)
        kept = set()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.add(t.data_ptr()) or t, lambda t: t):
            out = warpup.grouped_mm(x, w, torch.tensor([0, 2, 5]))
        assert (x.data_ptr() in kept) == w_trained
        out.sum().backward()
        assert (x.grad is not None, w.grad is not None) == (x_trained, w_trained)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"layout": "tt"}, "layout must be nt, nn or tn, got tt"),
        ({"a": torch.zeros(4, 3).double()}, "a must be float32, bfloat16, float16, got float64"),
        ({"b": torch.zeros(2, 5, 4).bfloat16()}, r"b must have shape \(2, 5, 3\), got \(2, 5, 4\)"),
        ({"offsets": torch.tensor([0, 1, 5])}, "offsets must rise from 0 to at most 4, got 1 and then 5"),
        ({"offsets": torch.tensor([0, 3, 1])}, "offsets must rise from 0 to at most 4, got 3 and then 1"),
        ({"offsets": torch.tensor([1, 3, 4])}, "offsets must begin with 0, got 1"),
        ({"offsets": torch.zeros(0, dtype=torch.int64)}, "offsets must have groups . 1 entries, got none"),
        ({"a_rows": torch.tensor([0, 1, 2, 4])}, "a_rows must hold 0 to 3, got 4"),
        ({"b_rows": torch.arange(4)}, "b_rows is for layout tn"),
        ({"out": torch.zeros(4, 6).bfloat16()}, r"out must have shape \(4, 5\), got \(4, 6\)"),
    ],
)
def test_messages_of_the_kernel(change, part):
    """What `grouped_mm` has checked before, and the arrays module has not."""
    x = {"a": torch.zeros(4, 3).bfloat16(), "b": torch.zeros(2, 5, 3).bfloat16(), "offsets": torch.tensor([0, 1, 4])}
    x |= {"layout": "nt", "out": torch.zeros(4, 5).bfloat16()}
    arrays.grouped_mm(**x)
    with pytest.raises(ValueError, match=f"grouped_mm: {part}"):
        arrays.grouped_mm(**x | change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expanded_gradients(dtype):
    """What `.sum().backward()` hands down has no strides; torch's own grouped_mm refuses it on a CPU."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in ((8, 4), (3, 5, 4)))
    offsets = torch.tensor([0, 2, 5, 8])
    got = torch.autograd.grad(warpup.grouped_mm(x, w, offsets).sum(), (x, w))
    want = torch.autograd.grad(warpup.grouped_mm(x, w, offsets), (x, w), torch.ones(8, 5, dtype=dtype))
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)
        assert g.count_nonzero() == g.numel()
