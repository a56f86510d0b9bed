"""The Triton kernels of grouped_mm under Triton's interpreter, on CPU tensors; on a GPU as they are.

What bfloat16 proves under the interpreter is which rows, columns and experts a tile has, not its arithmetic: the
interpreter (3.9) makes meaningless products of bfloat16 operands, so there the kernel widens them first, and its casts
cut where a GPU rounds, hence two eps. Sums are proved in float64 and float32, rounding to bfloat16 on a GPU alone.
"""

import math
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton", reason="no Triton here: pip install triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the others run here")
def test_under_the_interpreter():
    """In a process of its own: Triton reads the switch when a kernel is defined."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


here = pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="runs in test_under_the_interpreter")
SHAPES = [(37, 5, 19, 22), (130, 3, 150, 40), (5, 9, 1, 1), (0, 2, 3, 4), (66, 1, 129, 33), (8, 2, 4, 0)]
# The interpreter is slow: what adds up in float32 and what does in float64 on every shape, the other dtypes on one.
problems = pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, dtype) for shape in SHAPES for dtype in (torch.bfloat16, torch.float64)]
    + [(SHAPES[0], dtype) for dtype in (torch.float32, torch.float16)],
)


def problem(shape, dtype, seed=0):
    rows, experts, n, k = shape
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(rows + 1, (experts,), generator=generator).sort().values
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), cuts])

    def normal(*size):
        return torch.randn(size, generator=generator).to(dtype).to(DEVICE)

    at = torch.randint(11, (rows,), generator=generator)
    return normal(rows, k), normal(11, k), normal(experts, n, k), normal(rows, n), normal(11, n), offsets, at


def near(got, want, depth):
    double = got.dtype == torch.float64  # where `want` errs as much
    rtol, wide = (1e-12, 1e-13) if double else (2 * torch.finfo(got.dtype).eps, 1e-6)  # sums of products of order 1
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=8 * wide * max(depth, 1) ** 0.5)


@here
@problems
def test_nt(shape, dtype):
    from warpup.moe import grouped_mm_triton

    x, source, w, *_, offsets, at = problem(shape, dtype)
    for transposed in (False, True):
        w = w.mT.contiguous().mT if transposed else w
        for operand, rows in ((x, None), (source, at)):
            moved = None if rows is None else rows.to(DEVICE)
            got = grouped_mm_triton.grouped_mm_nt(operand, w, offsets.to(DEVICE), moved)
            sorted_rows = operand if rows is None else operand[moved]
            for e, (a, b) in enumerate(pairwise(offsets.tolist())):
                near(got[a:b], sorted_rows[a:b].double() @ w[e].double().t(), shape[3])


@pytest.mark.skipif(INTERPRETED, reason="launches nothing, or more than an interpreter has time for")
def test_more_rows_than_the_second_dimension_of_a_grid_has_blocks_for(monkeypatch):
    """65535 tiles of 64 rows are 4.2 million; on a GPU the last rows are really computed."""
    from warpup.moe import grouped_mm_triton

    rows, n, grids = 65536 * grouped_mm_triton.ROWS + 1, grouped_mm_triton.COLUMNS + 1, []
    if DEVICE == "cuda":
        x, w, offsets = (t.to(DEVICE) for t in (torch.randn(rows, 2), torch.randn(2, n, 2), torch.tensor([0, 5, rows])))
        torch.testing.assert_close(grouped_mm_triton.grouped_mm_nt(x, w, offsets)[-100:], x[-100:] @ w[1].t())
        return

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *operands, **options: None

    monkeypatch.setattr(grouped_mm_triton, "_nt_kernel", Recorder())
    x, w = torch.empty(rows, 2, device="meta"), torch.empty(2, n, 2, device="meta")
    grouped_mm_triton.grouped_mm_nt(x, w, torch.tensor([0, 5, rows]))
    (grid,) = grids
    assert all(blocks <= 65535 for blocks in grid[1:])
    assert math.prod(grid) >= 2 * 65537


@here
@problems
def test_tn(shape, dtype):
    from warpup.moe import grouped_mm_triton

    x, x_source, _, dy, dy_source, offsets, at = problem(shape, dtype)
    moved, bounds = at.to(DEVICE), offsets.tolist()
    for first, dy_rows in ((dy, None), (dy_source, moved)):
        for second, x_rows in ((x, None), (x_source, moved)):
            got = grouped_mm_triton.grouped_mm_tn(first, second, offsets.to(DEVICE), dy_rows, x_rows)
            mine = first if dy_rows is None else first[dy_rows]
            other = second if x_rows is None else second[x_rows]
            want = [mine[a:b].double().t() @ other[a:b].double() for a, b in pairwise(bounds)]
            near(got, torch.stack(want), max(b - a for a, b in pairwise(bounds)))


@pytest.mark.skipif(INTERPRETED, reason="compiles as for a GPU")
@pytest.mark.parametrize("kind", ["bf16", "fp64"])
def test_compiles_for_a_gpu_without_one(kind):
    compiler = pytest.importorskip("triton.compiler")
    from triton import language as tl
    from triton.backends.compiler import GPUTarget

    from warpup.moe import grouped_mm_triton

    common = {"widen": False, "exact": False, "wide": tl.float64 if kind == "fp64" else tl.float32}
    common |= {"ROWS": 16, "COLUMNS": 32, "DEPTH": 16}
    for kernel, switches in (
        (grouped_mm_triton._nt_kernel, {"gathered": True, "EXPERTS": 64}),
        (grouped_mm_triton._tn_kernel, {"a_gathered": True, "b_gathered": False}),
    ):
        fixed = common | switches
        kinds = dict.fromkeys(("a", "b", "out"), f"*{kind}")
        kinds |= dict.fromkeys(("offsets", "a_rows", "b_rows"), "*i64") | dict.fromkeys(fixed, "constexpr")
        signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
        source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=fixed)
        assert "cubin" in compiler.compile(source, target=GPUTarget("cuda", 80, 32)).asm
