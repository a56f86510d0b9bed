"""Sound boxes hold in exact arithmetic where plain ones do not: against float64 and fractions, on sums that cancel."""

import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from warpup import interval_batch_norm, interval_conv2d, interval_linear, interval_relu
from warpup.interval import bound, margins


def cancelling(generator, rows, width, columns, dtype, spread=8.0):
    """Sums whose terms are of very different sizes and whose second halves take the first away but for a little."""
    x = torch.randn(rows, width, generator=generator) * torch.exp2(
        torch.randn(rows, width, generator=generator) * spread
    )
    w = torch.randn(columns, width, generator=generator)
    half = width // 2
    x[:, half : 2 * half] = -x[:, :half] * (1 + 1e-6 * torch.randn(rows, half, generator=generator))
    w[:, half : 2 * half] = w[:, :half]
    order = torch.randperm(width, generator=generator)
    return x[:, order].to(dtype), w[:, order].to(dtype), torch.randn(columns, generator=generator).to(dtype)


def outside(c, r, exact, error):
    """Coordinates whose exact value, known up to `error`, is certainly outside of |y - c| <= r. The difference of
    float64 numbers is rounded: a unit in its last place goes to `error`."""
    off = (exact - c.double()).abs()
    return int((off - r.double() > error + off * 2**-52).sum())


def held(c, r, exact, error):
    """Coordinates that are inside, whatever the error of the float64 value."""
    off = (exact - c.double()).abs()
    return int((off + error + off * 2**-52 <= r.double()).sum())


def checked(x, r0, w, b, wr=None, **options):
    """(violations, held, coordinates) at the center and at the corners that move it most either way, for float32 and
    16-bit operands: their products are exact in float64, whose sum of K errs by at most K 2^-53 of the sum of sizes."""
    c, r = interval_linear(x, r0, w, b, weight_radius=wr, **options)
    size = (x.double().abs() + r0.double()) @ (w.double().abs() + (0 if wr is None else wr.double())).t()
    error = (x.shape[1] + 2) * 2**-52 * (size + (0 if b is None else b.double().abs()))
    bias = 0 if b is None else b.double()
    bad = good = count = 0
    middle = x.double() @ w.double().t() + bias
    reach = r0.double() @ w.double().abs().t()
    if wr is not None:
        reach = reach + (x.double().abs() + r0.double()) @ wr.double().t()
    for exact in (middle, middle + reach, middle - reach):  # the ends of the true midpoint-radius box
        bad += outside(c, r, exact, 2 * error)
        good += held(c, r, exact, 2 * error)
        count += exact.numel()
    return bad, good, count


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [0.0, 1e-4, 2 / 255])
def test_no_violation_in_a_million_coordinates(dtype, radius):
    generator = torch.Generator().manual_seed(0)
    bad = {False: 0, True: 0}
    good = total = 0
    spread = 2.0 if dtype == torch.float16 else 8.0
    for trial in range(6):
        x, w, b = cancelling(generator, 256, 64 + 31 * trial, 256, dtype, spread)
        r0 = torch.full_like(x, radius)
        for sound in (False, True):
            found, inside, count = checked(x, r0, w, b, sound=sound)
            bad[sound] += found
            good += inside if sound else 0
            total += count if sound else 0
    assert total >= 1_000_000
    assert bad[True] == 0
    assert bad[False] > total / 100  # the plain mode shows them
    assert good == total  # float64 is fine enough to tell that each of them is inside


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wide_result_is_tighter(dtype):
    x, w, b = cancelling(torch.Generator().manual_seed(1), 64, 128, 64, dtype, 2.0)
    r0 = torch.full_like(x, 1e-3)
    wide, narrow = (interval_linear(x, r0, w, b, sound=True, out_dtype=t) for t in (torch.float32, None))
    assert wide[0].dtype == wide[1].dtype == torch.float32
    assert narrow[1].dtype == dtype
    assert checked(x, r0, w, b, sound=True, out_dtype=torch.float32)[0] == 0
    assert (wide[1] <= narrow[1].float()).all()


def test_interval_weights():
    generator = torch.Generator().manual_seed(2)
    x, w, b = cancelling(generator, 128, 100, 128, torch.float32)
    r0, wr = torch.rand(x.shape, generator=generator) * 1e-6, torch.rand(w.shape, generator=generator) * 1e-9
    bad = {sound: checked(x, r0, w, b, wr, sound=sound)[0] for sound in (False, True)}
    assert bad[True] == 0
    assert bad[False] > 0


def fraction_dot(x, w, b):
    return sum((Fraction(p) * Fraction(q) for p, q in zip(x, w, strict=True)), Fraction(b))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_fractions(dtype):
    """Exact arithmetic, the only oracle for float64."""
    x, w, b = cancelling(torch.Generator().manual_seed(3), 12, 40, 12, dtype)
    bad = {False: 0, True: 0}
    for sound in bad:
        c, r = interval_linear(x, torch.zeros_like(x), w, b, sound=sound)
        for i, row in enumerate(x.tolist()):
            for j, (weights, bias) in enumerate(zip(w.tolist(), b.tolist(), strict=True)):
                off = abs(fraction_dot(row, weights, bias) - Fraction(c[i, j].item()))
                bad[sound] += off > Fraction(r[i, j].item())
    assert bad[True] == 0
    assert bad[False] > 36


def test_numbers_that_underflow_and_overflow():
    generator = torch.Generator().manual_seed(4)
    x, w = (torch.randn(32, 48, generator=generator) * 1e-22 for _ in range(2))  # products are subnormal
    assert checked(x, torch.zeros_like(x), w, None, sound=True)[0] == 0
    assert checked(x, torch.zeros_like(x), w, None, sound=False)[0] > 0
    c, r = interval_linear(x * 1e60, x.abs() * 0, w * 1e60, sound=True)
    assert (r[~c.isfinite()] == torch.inf).all() or c.isfinite().all()
    huge = torch.full((1, 4), 3e38)
    c, r = interval_linear(huge, huge * 0, huge, sound=True)
    assert c.item() == r.item() == torch.inf


def test_convolutions_are_direct_sums():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 8, 12, 12, generator=generator) * torch.exp2(torch.randn(4, 8, 12, 12, generator=generator) * 6)
    w = torch.randn(16, 4, 3, 3, generator=generator)
    places = {"padding": 1, "stride": 2, "groups": 2}
    r0 = torch.full_like(x, 1e-5)
    conv = torch.nn.functional.conv2d
    exact, size = (conv(f(x.double()), f(w.double()), None, 2, 1, 1, 2) for f in (torch.clone, torch.abs))
    reach = conv(r0.double(), w.double().abs(), None, 2, 1, 1, 2)
    bad = {}
    for sound in (False, True):
        c, r = interval_conv2d(x, r0, w, sound=sound, **places)
        bad[sound] = sum(outside(c, r, exact + s * reach, 40 * 2**-52 * size) for s in (-1, 0, 1))
    assert bad[True] == 0
    assert bad[False] > 0


def ends(c, r):
    return [(Fraction(p) - Fraction(q), Fraction(p) + Fraction(q)) for p, q in zip(c.tolist(), r.tolist(), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_relu(dtype, backend):
    generator = torch.Generator().manual_seed(6)
    options = {"generator": generator, "dtype": torch.float64}
    c = (torch.randn(4000, **options) * torch.exp2(8 * torch.randn(4000, **options))).to(dtype)
    r = (c.double().abs() * torch.rand(4000, **options) * 2).to(dtype)
    c[:200] *= torch.finfo(dtype).tiny  # subnormal
    r[:200] = c[:200].abs() * 1.5
    keep = c.isfinite() & r.isfinite() & ((c.double() + r.double()) < torch.finfo(dtype).max / 4)
    c, r = c[keep], r[keep]
    bad = {}
    for sound in (False, True):
        out = interval_relu(c.to(backend.device), r.to(backend.device), sound=sound)
        bad[sound] = sum(
            low > max(l0, 0) or high < max(u0, 0)
            for (l0, u0), (low, high) in zip(ends(c, r), ends(*(t.cpu() for t in out)), strict=True)
        )
        if sound:
            plain = interval_relu(c.to(backend.device), r.to(backend.device))
            room = 1 + 4 * torch.finfo(dtype).eps
            assert (out[1].double() <= plain[1].double() * room + 4 * torch.finfo(dtype).tiny).all()
    assert bad[True] == 0
    assert bad[False] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm(dtype, relu, backend):
    """eps = 0 and a variance that is a square: what is right is a fraction."""
    generator = torch.Generator().manual_seed(7)
    rows, channels = 200, 6
    c = (torch.randn(rows, channels, generator=generator) * 100).to(dtype)
    r = (torch.rand(rows, channels, generator=generator) * 1e-6).to(dtype)
    root = torch.tensor([3.0, 7.0, 0.3125, 11.0, 5.0, 13.0])
    mean, weight, bias = (torch.randn(channels, generator=generator).to(dtype) * s for s in (100, 1, 30))
    parameters = [t.to(dtype).to(backend.device) for t in (mean, root * root, weight, bias)]
    bad = {}
    for sound in (False, True):
        out_c, out_r = interval_batch_norm(
            c.to(backend.device), r.to(backend.device), *parameters, eps=0.0, relu=relu, sound=sound
        )
        bad[sound] = 0
        for k in range(channels):
            s = Fraction(weight[k].item()) / Fraction(root[k].item())
            shift = Fraction(bias[k].item()) - Fraction(mean[k].item()) * s
            got = ends(out_c[:, k].cpu(), out_r[:, k].cpu())
            for (low, high), (p, q) in zip(got, zip(c[:, k].tolist(), r[:, k].tolist(), strict=True), strict=True):
                middle, reach = s * Fraction(p) + shift, abs(s) * Fraction(q)
                want = [middle - reach, middle + reach]
                want = [max(v, 0) for v in want] if relu else want
                bad[sound] += low > want[0] or high < want[1]
    assert bad[True] == 0
    assert bad[False] > 0


backends, ANY = torch.backends, "cuda|mkldnn"
REDUCED = [  # what is set, to what, and which of torch's settings the message names
    (None, "high", ANY), (None, "medium", ANY),
    (backends, "tf32", ANY), (backends, "bf16", "mkldnn"), (backends.mkldnn, "bf16", "mkldnn"),
    (backends.mkldnn.matmul, "bf16", "mkldnn"), (backends.mkldnn.matmul, "tf32", "mkldnn"),
    (backends.cuda.matmul, "tf32", "cuda"),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "precision", "named"), REDUCED)
def test_needs_products_of_full_precision(owner, precision, named):
    x = torch.ones(2, 3)
    module = torch.nn.Linear(3, 4)

    def calls():
        yield lambda: interval_linear(x, x, x, sound=True)
        yield lambda: interval_conv2d(x[None, None], x[None, None], x[None, None], sound=True)
        yield lambda: margins(module, x, x, torch.tensor([0, 1]), sound=True)  # no product but the last one

    try:
        if owner is None:
            torch.set_float32_matmul_precision(precision)
        else:
            owner.fp32_precision = precision
        for call in calls():
            with pytest.raises(ValueError, match=rf"({named}).matmul.fp32_precision.*set_float32_matmul_precision"):
                call()
        if owner is not None:  # full in the end, whatever is set for all
            backends.mkldnn.matmul.fp32_precision = backends.cuda.matmul.fp32_precision = "ieee"
            for call in calls():
                call()
    finally:
        if owner is None:
            torch.set_float32_matmul_precision("highest")
        for each in (backends, backends.mkldnn, backends.mkldnn.matmul, backends.cuda.matmul):
            each.fp32_precision = "none"


def sound_calls():
    x, module = torch.full((2, 3), -1.3e-38), torch.nn.Linear(3, 4)
    square, radius, label = x[None, None], torch.full((2, 3), 2e-38), torch.tensor([0, 1])
    yield lambda: interval_relu(x, radius, sound=True)
    yield lambda: interval_batch_norm(x, radius, x[0], -x[0], sound=True)
    yield lambda: interval_linear(x, radius, x, sound=True)
    yield lambda: interval_conv2d(square, radius[None, None], square, sound=True)
    yield lambda: bound(torch.nn.Hardtanh(), x, radius, sound=True)  # no operator with a sound mode of its own
    yield lambda: margins(module, x, radius, label, sound=True)


def test_flushed_denormals_are_refused():
    x, radius = torch.tensor([-1.3e-38]), torch.tensor([2e-38])
    c, r = interval_relu(x, radius, sound=True)
    assert Fraction(c.item()) + Fraction(r.item()) >= Fraction(x.item()) + Fraction(radius.item()) > 6.9e-39
    for call in sound_calls():
        call()
    assert torch.set_flush_denormal(True)
    try:
        for call in sound_calls():
            with pytest.raises(ValueError, match=r"call torch\.set_flush_denormal\(False\)"):
                call()
        interval_relu(x, radius)  # plain bounds are what they were
    finally:
        torch.set_flush_denormal(False)


def test_threads_that_started_under_the_flag_are_found():
    """They keep it when it is off again; in a process of its own, whose threads start there."""
    program = """
import torch, warpup
torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(1 << 20).mul(0.5)
torch.set_flush_denormal(False)
assert int((torch.full((1 << 20,), 1.2e-38) * 0.5 == 0).sum()) == 1 << 19
try:
    warpup.interval_relu(torch.zeros(2), torch.ones(2), sound=True)
except ValueError as error:
    assert "threads that torch started under the flag keep it" in str(error)
else:
    raise SystemExit("was not refused")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_gradient_is_the_plain_one():
    generator = torch.Generator().manual_seed(8)
    operands = [torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator)]
    operands = [t.requires_grad_() for t in (*operands, torch.randn(5, 6, generator=generator))]
    grads = []
    for sound in (False, True):
        c, r = interval_linear(*operands, sound=sound)
        grads.append(torch.autograd.grad(c.sum() + r.sum(), operands))
    for got, want in zip(*grads, strict=True):
        assert torch.equal(got, want)
