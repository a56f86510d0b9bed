"""Products in 16 bits on a CPU: by the library, and by conversion to float32, piece by piece."""

import pytest
import torch

import warpup
from tests.support.cases import OPS, upcast
from tests.support.inputs import within
from warpup import _products, info
from warpup._products import add_mm, library_has, mm, path_of
from warpup.divergence.linear_divergence import reference_linear_divergence
from warpup.moe.grouped_mm import cpu_kernel, cpu_kernels

CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]


def force(monkeypatch, path):
    monkeypatch.setattr(_products, "FORCED", path)
    for dtype in cpu_kernels:
        monkeypatch.setitem(cpu_kernels, dtype, cpu_kernel(dtype))


@pytest.fixture(params=["library", "float32"])
def path(request, monkeypatch):
    force(monkeypatch, request.param)
    return request.param


@pytest.fixture
def cut(monkeypatch):
    """Pieces so small that there are several of each kind, of unequal sizes."""
    monkeypatch.setattr(_products, "FORCED", "float32")
    monkeypatch.setattr(_products, "CUT", 5)


def operands(rows, depth, columns, dtype, transposed=False):
    generator = torch.Generator().manual_seed(rows + depth + columns)
    a, b = torch.randn(rows, depth, generator=generator), torch.randn(depth, columns, generator=generator)
    a, b = a.to(dtype), b.to(dtype)
    return (a.t().contiguous().t(), b.t().contiguous().t()) if transposed else (a, b)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (3, 4, 0), (1, 1, 1), (5, 5, 5), (6, 11, 13), (16, 3, 1)])
def test_pieces_make_the_product_rounded_once(cut, shape, transposed, dtype):
    a, b = operands(*shape, dtype, transposed)
    bias, out = torch.arange(shape[2]).to(dtype), torch.full((shape[0], shape[2]), torch.nan, dtype=dtype)
    exact = a.double() @ b.double()
    step = torch.finfo(dtype).eps / 2 * 1.001  # of one rounding, and what float32 sums lose
    torch.testing.assert_close(mm(a, b, out).double(), exact, rtol=step, atol=1e-5)
    torch.testing.assert_close(mm(a, b, out, bias).double(), exact + bias.double(), rtol=step, atol=1e-5)
    total = torch.ones(out.shape)
    add_mm(total, a, b)
    torch.testing.assert_close(total.double(), exact + 1, rtol=1e-6, atol=1e-5)


def test_what_is_alive_in_float32_is_bounded(cut, monkeypatch):
    sizes = []
    widen = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: sizes.append(x.shape) or widen(x))
    a, b = operands(12, 17, 9, torch.bfloat16)
    mm(a, b, torch.empty(12, 9, dtype=torch.bfloat16))
    assert len(sizes) > 12
    assert max(max(shape) for shape in sizes) <= 5


@pytest.mark.parametrize(
    "name",
    ["linear_logprob", "linear_policy_loss", "grouped_mm", "moe_experts", "interval_linear", "interval_conv2d"],
)
@pytest.mark.parametrize("dtype", HALVES)
def test_both_paths_keep_to_the_contract(path, name, dtype):
    op = OPS[name]
    for variant in op.variants:
        x = op.make("small", dtype, "cpu", variant=variant)
        got, want, naive = op.run(x), op.run(upcast(x), op.reference), op.run(x, op.reference)
        for g, w, n in zip(got, want, naive, strict=True):
            within(g, w, n)


@pytest.mark.parametrize("shape", [(3, 2050, 2060), (2050, 5, 7)])
@pytest.mark.parametrize("dtype", HALVES)
def test_pieces_of_a_log_prob(monkeypatch, shape, dtype):
    """More rows, columns or depth than there are in a piece: `linear_logprob` cuts them itself."""
    force(monkeypatch, "float32")
    rows, width, vocab = shape
    hidden, weight = operands(rows, width, vocab, dtype)
    weight = (weight.t() / width**0.5).to(dtype)
    bias, targets = torch.linspace(-1, 1, vocab).to(dtype), torch.arange(rows) % vocab
    got = warpup.linear_logprob(hidden, weight, targets, bias=bias)
    logits = hidden.double() @ weight.double().t() + bias.double()
    want = torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(got, want.float(), rtol=0, atol=0.03)  # logits around 1, rounded


@pytest.mark.parametrize("dtype", HALVES)
def test_both_paths_of_linear_divergence(path, dtype):
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(n, 12, generator=generator).to(dtype) for n in (9, 40, 9, 40)]

    def run(function, to):
        x = [t.to(to).requires_grad_() for t in sides]
        value = function(*x)
        return (value, *torch.autograd.grad(value.sum(), x[:2]))

    results = (run(f, to) for f, to in (
        (warpup.linear_divergence, dtype), (reference_linear_divergence, torch.float64),
        (reference_linear_divergence, dtype),
    ))  # fmt: skip
    for got, want, naive in zip(*results, strict=True):
        within(got, want, naive)


def test_which_path_a_cpu_takes(monkeypatch):
    """By its instructions alone, and by WARPUP_PRODUCTS (FORCED) before them."""
    monkeypatch.setattr(_products, "FORCED", None)
    monkeypatch.delenv("WARPUP_CPU", raising=False)

    def a_cpu_with(bfloat16, float16=(), avx512=True):
        monkeypatch.setitem(_products.AVAILABLE, torch.bfloat16, list(bfloat16))
        monkeypatch.setitem(_products.AVAILABLE, torch.float16, list(float16))
        monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
        monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
        dtypes = (torch.float32, *HALVES, torch.float64)
        return [library_has(t, CPU) for t in dtypes], [cpu_kernel(t) for t in dtypes]

    panels, amx = "float32 panels", ["AMX", "AVX512-BF16"]
    assert a_cpu_with([], avx512=False) == ([True, False, False, True], [panels, panels, panels, None])
    assert a_cpu_with([]) == ([True, False, False, True], [None, panels, panels, None])
    assert a_cpu_with(["AVX512-BF16"]) == ([True, True, False, True], [None, "AVX512-BF16", panels, None])
    assert a_cpu_with(amx) == ([True, True, False, True], [None, None, panels, None])
    assert a_cpu_with(amx, ["AMX-FP16"]) == ([True] * 4, [None] * 4)
    monkeypatch.setenv("WARPUP_CPU", "x86-64-v3")
    assert a_cpu_with(["AVX512-BF16"]) == ([True, True, False, True], [None, panels, panels, None])
    monkeypatch.setattr(_products, "FORCED", "float32")
    assert a_cpu_with(amx, ["AMX-FP16"]) == ([True, False, False, True], [panels, panels, panels, None])
    monkeypatch.setattr(_products, "FORCED", "library")
    assert a_cpu_with([], avx512=False) == ([True] * 4, [None] * 4)


def test_the_path_that_is_asked_for():
    assert [path_of(value) for value in (None, "", "library", "float32")] == [None, None, "library", "float32"]
    with pytest.raises(ValueError, match="WARPUP_PRODUCTS: expected library or float32, got 'fast'"):
        path_of("fast")


def test_the_path_is_no_graph_break(path):
    layer = warpup.moe.DeepSeekMoE(16, 8, 4, 2, num_shared=1, dtype=torch.bfloat16)
    x = torch.randn(5, 16).bfloat16()
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


def test_info_tells_the_path(monkeypatch):
    for path, plain, grouped in (
        ("library", "the library's", "the library's, one an expert"),
        ("float32", "the library's in float32, by pieces", "own kernel (float32 panels)"),
    ):
        force(monkeypatch, path)
        assert info.cpu_products()["CPU bfloat16"] == f"products {plain}; grouped_mm {grouped}"


def boxes(dtype, *shapes):
    generator = torch.Generator().manual_seed(0)
    found = [(torch.randn(s, generator=generator), 0.1 * torch.rand(s, generator=generator)) for s in shapes]
    return [(c.to(dtype), r.to(dtype)) for c, r in found]


BOXES = {
    "interval_matmul": lambda a, b, image: warpup.interval_matmul(a, (b[0].mT, b[1].mT)),
    "interval_attention": lambda a, b, image: warpup.interval_attention(a, b, b),
    "sound interval_linear": lambda a, b, image: warpup.interval_linear(*a, b[0][0], clean=a[1], sound=True),
    "sound interval_conv2d": lambda a, b, image: warpup.interval_conv2d(*image, image[0], clean=image[1], sound=True),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", BOXES)
def test_no_product_of_boxes_is_left_to_a_slow_library(path, name, dtype, monkeypatch):
    """And what it gives is right on both paths."""
    operands = boxes(dtype, (2, 5, 8), (2, 7, 8), (3, 4, 6, 6))
    naive = BOXES[name](*operands) if path == "library" else None
    want = BOXES[name](*[tuple(t.double() for t in box) for box in operands])
    widen, widened = torch.Tensor.float, []
    monkeypatch.setattr(torch.Tensor, "float", lambda x: widened.append(x) or widen(x))
    found = BOXES[name](*operands)
    assert bool(widened) == (path == "float32")
    for i, (g, w, n) in enumerate(zip(found, want, naive or found, strict=True)):
        assert g.dtype == dtype
        if name.startswith("sound") and i == 1:
            assert (g >= w).all()  # it covers the rounding to 16 bits, too
        else:
            within(g, w, n if path == "library" else w.to(dtype))


def test_interval_matmul_under_autocast(path):
    a, b = boxes(torch.float32, (5, 8), (7, 8))
    b = tuple(t.mT for t in b)
    with torch.autocast("cpu", torch.bfloat16):
        found = warpup.interval_matmul(a, b)
    for g, w in zip(found, warpup.interval_matmul(*[[t.bfloat16() for t in box] for box in (a, b)]), strict=True):
        assert g.dtype == torch.bfloat16
        assert torch.equal(g, w)
