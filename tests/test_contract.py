"""What every op promises, for every entry of the case table."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from tests.conftest import BACKENDS, DEVICES
from tests.support.cases import CASES, gradients_of, leaves, name_of


def each(*names, of=CASES, on="backend", where=lambda case, *values: True, **more):
    """Runs a test for each case `of` the table, on each backend (or device) that the case and this machine have.
    `names` ("variant", "dtype") and `more` (name=values) add arguments: all combinations `where` the test applies."""
    rows = [
        pytest.param(case, *values, place, id="-".join([case.op, *map(name_of, values), place]))
        for case in of
        for values in product(*(getattr(case, f"{name}s") for name in names), *more.values())
        for place in (BACKENDS if on == "backend" else DEVICES)
        if place in case.backends and where(case, *values)
    ]
    return pytest.mark.parametrize(("case", *names, *more, on), rows, indirect=[on])


DIFFERENTIABLE = [case for case in CASES if case.differentiable]


def same_bits(got, want):
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True, msg=lambda m, i=i: f"result {i}: {m}")


@each("variant", "dtype")
def test_reference(case, variant, dtype, backend):
    for seed in range(2):
        case.check(case.make("small", dtype, backend.device, seed, variant))


@each("variant", of=DIFFERENTIABLE, where=lambda case, variant: variant not in case.stopped)
def test_gradcheck(case, variant, backend):
    """The host executor is slow: there along random directions, not one element at a time; a wrong element of a
    gradient shows in those too."""
    check = partial(torch.autograd.gradcheck, fast_mode=backend.name == "hostcuda")
    inputs = case.make("grad", torch.float64, backend.device, variant=variant)
    varied = tuple(inputs[k].requires_grad_() for k in case.differentiable)

    def call(*values, output=None):
        outputs = leaves(case.call(**{**inputs, **dict(zip(case.differentiable, values, strict=True))}))
        return tuple(o for i, o in enumerate(outputs) if o.requires_grad and output in (None, i))

    # -inf logits are left alone: a finite difference there is NaN.
    finite = tuple(v.detach().nan_to_num(neginf=-8.0).requires_grad_() for v in varied)
    kept = tuple(v.isfinite() for v in varied)

    def masked(*values, output=None):
        return call(*(v.where(k, -torch.inf) for v, k in zip(values, kept, strict=True)), output=output)

    count = len(call(*varied))
    assert count > 0
    assert check(masked, finite)
    for i in range(count if count > 1 else 0):  # each alone: an undefined gradient of the others
        assert check(lambda *values, i=i: masked(*values, output=i), finite)


@each("variant", "dtype", on="device")
def test_opcheck(case, variant, dtype, device):
    """Schema, registration and fake in each dtype; what is traced from them, which takes long, in the first."""
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += ["test_aot_dispatch_dynamic"] if dtype == case.dtypes[0] else []
    for name, arguments in case.raw(torch.ops.warpup, case.make("small", dtype, device, variant=variant)):
        torch.library.opcheck(getattr(torch.ops.warpup, name).default, arguments, test_utils=checks)


@each("variant", on="device")
def test_compile(case, variant, device):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("inductor" if variant == case.variants[0] else "aot_eager")
    compiled = torch.compile(case.call, fullgraph=True, dynamic=True, backend=counter)
    for size in ("small", "grad"):
        compilations = counter.frame_count
        inputs = case.make(size, torch.float32, device, variant=variant)
        same_bits(case.run(inputs, compiled), case.run(inputs))
    assert compilations == counter.frame_count > 0, "another shape compiled anew"


@each(on="device")
def test_raw_op_has_no_gradient(case, device):
    for name, arguments in case.raw(torch.ops.warpup, case.make(device=device)):
        if name.endswith("_"):
            continue
        traced = [
            a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
            for a in arguments
        ]
        outputs = leaves(getattr(torch.ops.warpup, name)(*traced))
        assert not any(o.requires_grad for o in outputs)
        with pytest.raises(RuntimeError, match="does not require grad"):
            outputs[0].sum().backward()


# moe_gather is linear; linear_policy_loss makes its gradients in the forward, they are constants to autograd.
@each(of=DIFFERENTIABLE, on="device", where=lambda case: case.op not in ("moe_gather", "linear_policy_loss"))
def test_second_derivative_is_an_error(case, device):
    inputs = case.make(device=device)
    sources = [inputs[k].requires_grad_() for k in case.differentiable]
    outputs = [o for o in leaves(case.call(**inputs)) if o.requires_grad]
    gradients = torch.autograd.grad(outputs, sources, gradients_of(outputs), create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        sum(g.mul_(0.5).square().sum() for g in gradients if g is not None).backward()


@each(of=DIFFERENTIABLE, on="device", create_graph=(False, True))
def test_activation_checkpointing(case, create_graph, device):
    """Checkpointing lets what was saved be read but once a backward; without it the same bits."""
    inputs = case.make(device=device)
    sources = [inputs[k].requires_grad_() for k in case.differentiable]

    def gradients(call):
        outputs = [o for o in leaves(call()) if o.requires_grad]
        return torch.autograd.grad(
            outputs,
            sources,
            gradients_of(outputs),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )

    want = gradients(lambda: case.call(**inputs))
    got = gradients(lambda: checkpoint(lambda: case.call(**inputs), use_reentrant=False))
    same_bits(got, want)


@each(of=DIFFERENTIABLE, on="device")
def test_backward_inside_autocast(case, device):
    """Autocast is for the forward: a backward that happens to run in it gives the same bits."""
    inputs = case.make(device=device)
    sources = [inputs[k].requires_grad_() for k in case.differentiable]

    def gradients(autocast):
        outputs = [o for o in leaves(case.call(**inputs)) if o.requires_grad]
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(
                outputs, sources, gradients_of(outputs), allow_unused=True, materialize_grads=True
            )

    same_bits(gradients(True), gradients(False))


@each(of=DIFFERENTIABLE, on="device")
def test_functional_gradients(case, device):
    """torch.func.grad, which runs a backward with create_graph, gives what autograd gives, without a graph."""
    inputs = case.make(device=device)
    names = case.differentiable

    def loss(*values):
        outputs = [
            o for o in leaves(case.call(**inputs | dict(zip(names, values, strict=True)))) if o.is_floating_point()
        ]
        return sum((o * g).nan_to_num(0, 0, 0).sum() for o, g in zip(outputs, gradients_of(outputs), strict=True))

    values = [inputs[name].detach() for name in names]
    got = torch.func.grad(loss, tuple(range(len(names))))(*values)
    values = [v.clone().requires_grad_() for v in values]
    want = torch.autograd.grad(loss(*values), values)
    assert not any(g.requires_grad for g in got)
    same_bits(got, want)


@each("variant")
def test_deterministic(case, variant, backend, threads):
    size = "small" if backend.name == "hostcuda" else "threads"  # the host executor runs each time in another order
    inputs = case.make(size, torch.float32, backend.device, variant=variant)
    want = case.run(inputs)
    for count in (1, 2, 3, 3) if not case.products else (torch.get_num_threads(),) * 3:
        threads(count)
        same_bits(case.run(inputs), want)


# ---- _core: the pybind11 module on arrays of any framework -----------------------------------------------------------

PAD = 3  # elements on each side; odd, so that the outputs are misaligned too
SENTINEL = 77


class Outputs:
    """Poisoned outputs inside of larger buffers whose margins must stay as they were."""

    def __init__(self, framework: str, device: str):
        self.framework, self.device, self.buffers = framework, device, []

    def __call__(self, shape, dtype):
        count = int(np.prod(shape))
        stored = torch.uint8 if dtype == "bool" else getattr(torch, dtype)
        buffer = torch.full((count + 2 * PAD,), SENTINEL, dtype=stored, device=self.device)
        view = buffer[PAD : PAD + count].view(shape)
        view.fill_(torch.nan if view.is_floating_point() else torch.iinfo(stored).max)
        view = view.view(getattr(torch, dtype))
        self.buffers.append(buffer)
        return view if self.framework == "torch" else view.numpy()

    def check_margins(self):
        for buffer in self.buffers:
            assert (buffer[:PAD] == SENTINEL).all(), "written before an output"
            assert (buffer[len(buffer) - PAD :] == SENTINEL).all(), "written past an output"


def converter(framework: str):
    if framework == "torch":
        return lambda value: value
    if framework == "numpy":
        return lambda value: value.numpy() if isinstance(value, torch.Tensor) else value
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)  # else it has no int64
    cpu = jax.devices("cpu")[0]
    return lambda value: jax.device_put(value.numpy(), cpu) if isinstance(value, torch.Tensor) else value


@each(
    "variant", "dtype", on="device", framework=("torch", "numpy", "jax"),
    of=[case for case in CASES if case.core],  # the others are composed in Python
    where=lambda case, variant, dtype, framework: framework == "torch" or dtype != torch.bfloat16,  # NumPy has none
)  # fmt: skip
def test_core_equals_torch(case, variant, dtype, framework, device):
    if framework != "torch" and device != "cpu":
        pytest.skip("NumPy has no GPU")
    inputs = case.make("small", dtype, device, variant=variant)
    want = case.run(inputs)
    count = len(want) - len(case.differentiable)
    convert = converter(framework)
    new = Outputs(framework, device)
    gradients = tuple(convert(g) for g in gradients_of(want[:count]))
    forward, backward = case.core({k: convert(v) for k, v in inputs.items()}, gradients, new)
    got = (*forward(), *(backward() if case.differentiable else ()))
    same_bits([torch.as_tensor(g, device=device) for g in got], want)
    new.check_margins()
