"""interval_linear and interval_conv2d: training steps of bounds beside center and radius written by hand, and intervals
for weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

import warpup
from bench.harness.measure import Comparison, Work, differentiable, expected
from bench.harness.timing import Candidate
from tests.support.cases import OPS
from warpup.interval.margin_bounds import margin_cross_entropy

MLP = {"full": (256, (784, 512, 512), 10), "quick": (4, (8, 6, 6), 3)}
CNN = {  # batch, side, filters and strides, width of the hidden layer, classes
    "full": (64, 32, ((64, 1), (64, 1), (128, 2), (128, 1), (128, 1)), 512, 10),
    "quick": (3, 4, ((4, 1), (4, 2)), 5, 3),
}
WEIGHTS = {"full": (128, 784, 1000), "quick": (4, 7, 5)}
GEMMS = {"forward": 1, "forward+backward": 3}  # a product, its two gradients
PRODUCT = "one product"
EPS = 2 / 255
FLIPS = 5e-3


def cases(device: str, size: str) -> Iterator[Comparison]:
    quick = size == "quick"
    kind = "quick" if quick else "full"
    for loss in ("margin", "bounds"):
        goals = {"by hand": 1 / 0.6} if not quick and loss == "margin" else {}
        name = f"interval MLP {loss} forward+backward {[*MLP[kind][1], MLP[kind][2]]} B={MLP[kind][0]}"
        yield Comparison(name, partial(network, device, kind, "mlp", loss), goals)
        goals = {"by hand": 1 / 0.75} if not quick and loss == "margin" else {}
        name = f"interval CNN-7 BN {loss} forward+backward {CNN[kind][1]}x{CNN[kind][1]} B={CNN[kind][0]}"
        yield Comparison(name, partial(network, device, kind, "cnn", loss), goals)
    for mode in ("midpoint", "exact"):
        for direction in GEMMS:
            goals = {PRODUCT: 1 / 3.2} if not quick and mode == "midpoint" else {}
            name = f"interval weights {mode} {direction} {list(WEIGHTS[kind])}"
            yield Comparison(name, partial(weights, device, WEIGHTS[kind], mode, direction), goals)


def test_interval_linear(case, measure):
    measure(case)


# ---- Networks -------------------------------------------------------------------------------------------------------


def linear_by_hand(c, r, x, w, b):
    return F.linear(c, w, b), F.linear(r, w.abs()), None if x is None else F.linear(x, w, b)


def conv_by_hand(c, r, x, w, b, stride):
    return F.conv2d(c, w, b, stride, 1), F.conv2d(r, w.abs(), None, stride, 1), F.conv2d(x, w, b, stride, 1)


def norm_by_hand(c, r, x, gamma, beta):
    dims, shape = [d for d in range(x.dim()) if d != 1], (-1, *[1] * (x.dim() - 2))
    var, mean = torch.var_mean(x, dims, correction=0)
    scale = gamma * (var + 1e-5).rsqrt()
    c, r = c * scale.view(shape) + (beta - mean * scale).view(shape), r * scale.abs().view(shape)
    c, r, _ = relu_by_hand(c, r, None)
    return c, r, F.batch_norm(x, None, None, gamma, beta, True).relu()


def relu_by_hand(c, r, x):
    low, high = (c - r).relu(), (c + r).relu()
    return (low + high) / 2, (high - low) / 2, None


def margin_by_hand(c, r, w, b, labels):
    """Elision by sample: a matrix (K - 1, H) for each."""
    classes = w.shape[0]
    others = torch.arange(classes, device=c.device).expand(len(labels), -1)
    others = others[others != labels.unsqueeze(1)].view(len(labels), classes - 1)
    rows = w[labels].unsqueeze(1) - w[others]
    low = torch.bmm(rows, c.unsqueeze(2)) - torch.bmm(rows.abs(), r.unsqueeze(2))
    low = low.squeeze(2) + b[labels].unsqueeze(1) - b[others]
    return F.cross_entropy(F.pad(-low, (1, 0)), torch.zeros_like(labels))


BY_HAND = (linear_by_hand, conv_by_hand, norm_by_hand, relu_by_hand, margin_by_hand)


def linear(c, r, x, w, b):
    found = warpup.interval_linear(c, r, w, b, clean=x)
    return found if x is not None else (*found, None)


def conv(c, r, x, w, b, stride):
    return warpup.interval_conv2d(c, r, w, b, stride=stride, padding=1, clean=x)


def norm(c, r, x, gamma, beta):
    return warpup.interval_batch_norm(c, r, None, None, gamma, beta, clean=x, training=True, relu=True)


def relu(c, r, x):
    return (*warpup.interval_relu(c, r), None)


OURS = (linear, conv, norm, relu, margin_cross_entropy)


def mlp(steps: tuple[Callable, ...], loss: str, x: Tensor, labels: Tensor, **parameters: Tensor):
    linear, _, _, relu, margin = steps
    *layers, last = pairs(parameters)
    c, r, none = x, torch.full_like(x, EPS), None
    for w, b in layers:
        c, r, none = relu(*linear(c, r, none, w, b))
    return margin(c, r, *last, labels) if loss == "margin" else linear(c, r, None, *last)[:2]


def cnn(steps: tuple[Callable, ...], loss: str, strides: tuple, x: Tensor, labels: Tensor, **parameters: Tensor):
    linear, conv, norm, _, margin = steps
    layers = pairs(parameters)
    c, r, clean = x, torch.full_like(x, EPS), x
    for stride in strides:
        c, r, clean = norm(*conv(c, r, clean, *next(layers), stride), *next(layers))
    c, r, clean = (t.flatten(1) for t in (c, r, clean))
    c, r, clean = norm(*linear(c, r, clean, *next(layers)), *next(layers))
    last = next(layers)
    return margin(c, r, *last, labels) if loss == "margin" else linear(c, r, None, *last)[:2]


def pairs(parameters: dict[str, Tensor]):
    values = iter(parameters.values())
    return iter(list(zip(values, values, strict=True)))


@cache
def made(device: str, kind: str, network: str):
    """(the network as a function of the steps and the loss, its inputs): x, labels and parameters by name."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape):
        fan = torch.Size(shape[1:]).numel()
        return torch.randn(shape, generator=generator).div_(fan**0.5).to(device)

    parameters = {}

    def add(*values):
        for v in values:
            parameters[f"p{len(parameters)}"] = v

    if network == "mlp":
        batch, widths, classes = MLP[kind]
        x = torch.rand(batch, widths[0], generator=generator)
        for i, o in zip(widths, (*widths[1:], classes), strict=True):
            add(weight(o, i), torch.zeros(o, device=device))
        function = mlp
    else:
        batch, side, filters, hidden, classes = CNN[kind]
        x, channels = torch.rand(batch, 3, side, side, generator=generator), 3
        for o, stride in filters:
            add(weight(o, channels, 3, 3), torch.zeros(o, device=device))
            add(torch.ones(o, device=device), torch.zeros(o, device=device))
            channels, side = o, -(-side // stride)
        add(weight(hidden, channels * side**2), torch.zeros(hidden, device=device))
        add(torch.ones(hidden, device=device), torch.zeros(hidden, device=device), weight(classes, hidden))
        add(torch.zeros(classes, device=device))
        strides = tuple(s for _, s in filters)
        function = lambda steps, loss, **inputs: cnn(steps, loss, strides, **inputs)  # noqa: E731
    labels = torch.randint(classes, (batch,), generator=generator).to(device)
    return function, {"x": x.to(device), "labels": labels, **parameters}


def network(device: str, kind: str, name: str, loss: str) -> Work:
    function, inputs = made(device, kind, name)
    wrt = [k for k in inputs if k.startswith("p")]
    if name == "cnn":  # a bias before a normalisation by its own mean has no gradient but rounding
        last = len(wrt) - 2
        wrt = [k for i, k in enumerate(wrt) if i % 4 != 1 or i >= last]
    if kind == "full":
        print(f"{name}, {loss}: kept for the backward, MiB: {kept(function, inputs, wrt, loss)}")
    forms = {"warpup": partial(function, OURS, loss), "by hand": partial(function, BY_HAND, loss)}
    if name == "cnn":
        last = inputs | {"x": inputs["x"].contiguous(memory_format=torch.channels_last)}
        forms["by hand, channels_last"] = lambda **x: function(BY_HAND, loss, **(x | {"x": last["x"]}))
    forms["torch.compile"] = torch.compile(forms["by hand"], dynamic=False)
    candidates = {n: differentiable(f, inputs, wrt, "forward+backward") for n, f in forms.items()}
    size = sum(v.numel() * v.element_size() for v in inputs.values())

    def reference():
        wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        both = differentiable(partial(function, BY_HAND, loss), wide, wrt, "forward+backward")
        return both.run(*both.arguments())

    # Of 10 million boxes some end within a rounding of 0, where a ReLU's derivative jumps: moving the input by 1e-6 of
    # itself moves the exact gradients of the first layers by 2e-3 of themselves.
    return Work(candidates, bytes=3 * size, reference=reference, tolerance=FLIPS if name == "cnn" else 0.0)


def kept(function, inputs, wrt, loss) -> dict[str, float]:
    """Of memory that is no parameter's, each once."""
    found = {}
    inputs = {k: v.detach().requires_grad_() if k in wrt else v for k, v in inputs.items()}
    parameters = {v.untyped_storage().data_ptr() for v in inputs.values()}
    for name, steps in (("warpup", OURS), ("by hand", BY_HAND)):
        seen = {}
        pack = lambda t, seen=seen: seen.setdefault(t.untyped_storage().data_ptr(), t) is None or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function(steps, loss, **inputs)
        sizes = (t.untyped_storage().nbytes() for p, t in seen.items() if p not in parameters)
        found[name] = round(sum(sizes) / 2**20, 1)
    return found


# ---- Intervals for weights ------------------------------------------------------------------------------------------


def weights(device: str, shape: tuple[int, int, int], mode: str, direction: str) -> Work:
    op = OPS["interval_weights"]
    inputs = op.inputs(shape, torch.float32, device, 0, mode)
    inputs = {k: v for k, v in inputs.items() if k not in ("clean", "bias")}
    wrt = ("center", "radius", "weight", "weight_radius")
    forms = {"warpup": op.call, "eager": op.reference}
    if mode == "exact" and torch.Size(shape).numel() > 1e6:
        forms.pop("eager")  # four tensors of rows x columns x width
    candidates = {n: differentiable(f, inputs, wrt, direction) for n, f in forms.items()}
    x, w = inputs["center"], inputs["weight"]
    y, dx, dw = x @ w.t(), torch.empty_like(x), torch.empty_like(w)

    def product():
        torch.mm(x, w.t(), out=y)
        if "backward" in direction:
            torch.mm(y, w, out=dx)
            torch.mm(y.t(), x, out=dw)

    candidates[PRODUCT] = Candidate(product, result=None)
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}

    def reference():
        both = differentiable(op.reference if "eager" in forms else op.call, wide, wrt, "forward+backward")
        return expected(direction, both.run(*both.arguments()), len(wrt))

    products = {"forward": 3, "forward+backward": 9}[direction]
    size = sum(v.numel() * 4 for v in inputs.values() if isinstance(v, Tensor))
    flops = 2 * torch.Size(shape).numel() * products
    return Work(candidates, bytes=size * GEMMS[direction], reference=reference, flops=flops)
