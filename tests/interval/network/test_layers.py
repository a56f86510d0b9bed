"""Rules of layers and functions: they hold by sampling, are the hull at the corners where they say so, and are the
layer itself without a radius; in sound mode they hold or refuse by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from warpup.interval import UnsupportedLayer, bound, crown_margins, margins

pytestmark = pytest.mark.usefixtures("one_thread")
SEQUENCE, IMAGE, VOLUME, FLAT = (2, 4, 7), (2, 4, 6, 5), (2, 2, 4, 5, 3), (3, 6)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("shift", torch.linspace(-1, 1, 6))

    def forward(self, x):
        return self.function(x)


def weighted(layer):
    """With a bias and weights of both signs, and statistics that are not the first ones."""
    for name, t in (*layer.named_parameters(), *layer.named_buffers()):
        if t.is_floating_point():
            nn.init.uniform_(t, 0.3 if "var" in name else -1, 1)
    return layer


def resized(**options):
    return lambda: Calls(lambda x: F.interpolate(x, **options))


LINEAR = {  # name: (module, shape of the input)
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2), SEQUENCE),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 3, (3, 2), (2, 1), (1, 0), dilation=(1, 2)), IMAGE),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2, 2, bias=False), VOLUME),
    "transposed": (lambda: Calls(lambda x: F.conv_transpose1d(x, torch.ones(4, 2, 3) - 1.5, stride=2)), SEQUENCE),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, (1, 2, 1), "valid", groups=2), VOLUME),
    "conv3d_same": (lambda: nn.Conv3d(2, 3, 3, padding="same"), VOLUME),
    "avg_pool3d": (lambda: nn.Sequential(nn.AvgPool3d(2, 1, 1), nn.AdaptiveAvgPool3d(2)), VOLUME),
    "batch_norm3d": (lambda: nn.BatchNorm3d(2), VOLUME),
    "instance_norm_running": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    "circular": (lambda: nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular"), SEQUENCE),
    "reflect": (lambda: nn.Conv2d(4, 3, 3, padding=(2, 1), padding_mode="reflect"), IMAGE),
    "replicate": (lambda: nn.Conv2d(4, 3, (3, 1), padding="same", padding_mode="replicate"), IMAGE),
    "pads": (lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(2)), IMAGE),
    "constant_pad": (lambda: nn.Sequential(nn.ConstantPad1d((1, 2), 0.7), nn.ZeroPad1d((-1, 1))), SEQUENCE),
    "pad": (lambda: Calls(lambda x: F.pad(x, (1, 1), value=-2.0) + F.pad(x, (1, 1), "circular")[..., :1]), SEQUENCE),
    "nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "bilinear": (lambda: nn.Upsample((9, 11), mode="bilinear", align_corners=True), IMAGE),
    "trilinear": (resized(scale_factor=1.5, mode="trilinear"), VOLUME),
    "linear_down": (resized(size=3, mode="linear"), SEQUENCE),
    "nearest_exact": (resized(size=(4, 9), mode="nearest-exact"), IMAGE),
    "unbatched_conv2d": (lambda: nn.Conv2d(4, 3, 3, padding=1), IMAGE[1:]),
    "unbatched_conv1d": (lambda: nn.Conv1d(4, 3, 3, padding=1, padding_mode="reflect"), SEQUENCE[1:]),
    "unbatched_linear": (lambda: nn.Linear(6, 3), FLAT[1:]),
    "sum": (lambda: Calls(lambda x: torch.sum(x, dim=(3, 2)).sum(1, keepdim=True)), IMAGE),
    "sum_keepdim": (lambda: Calls(lambda x: x.sum(1, keepdim=True) * torch.ones(1, 3, 1, 1)), IMAGE),
    "mean": (lambda: Calls(lambda x: x.mean((2, 3))), IMAGE),
    "pieces": (lambda: Calls(lambda x: torch.stack([x.chunk(3, 1)[2], x.split([2, 4], 1)[0], x[:, 2:4]], 1)), FLAT),
    "unbind": (lambda: Calls(lambda x: torch.cat([x.unbind(1)[2], -torch.split(x, 1, 1)[0].squeeze(1)], 1)), SEQUENCE),
    "casts": (lambda: Calls(lambda x: x.double().to(torch.float32).type_as(x) + x.to(x.device, x.dtype)), FLAT),
}  # fmt: skip


REPEATED = ("reflect", "replicate", "unbatched_conv1d")  # an element is read in several places, which boxes forget
SINGLE = ("transposed", "casts")  # in float32


def sampled(x, radius, count=400):
    """Points of the box, half of them corners."""
    noise = 2 * torch.rand(count, *x.shape, dtype=x.dtype) - 1
    noise[::2] = noise[::2].sign()
    return x + radius * noise


def assert_holds(module, x, radius, **options):
    """The box holds every sampled output; returns (lower, upper, outputs)."""
    center, width, *clean = bound(module, x, radius, clean=x, **options)
    outputs = torch.stack([module(point) for point in sampled(x, radius)])
    slack = 1e-9 if x.dtype == torch.float64 else 1e-4
    assert ((outputs - center).abs() <= width + slack * (1 + center.abs())).all()
    torch.testing.assert_close(clean[0], module(x))
    return center - width, center + width, outputs


@pytest.mark.parametrize("name", LINEAR)
@torch.no_grad()
def test_linear_layers_have_their_exact_bounds(name):
    """Each output's least value is at the corner that its own gradient points away from."""
    torch.manual_seed(0)
    make, shape = LINEAR[name]
    dtype = torch.float32 if name in SINGLE else torch.float64
    module = weighted(make()).to(dtype).eval()
    x, radius = torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype)
    low, high, _ = assert_holds(module, x, radius)
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(module, x).flatten(low.dim())
    reach = (jacobian.abs() @ radius.flatten()).view(low.shape)
    options = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    if name in REPEATED:
        assert (low <= module(x) - reach + 1e-9).all()
        return
    torch.testing.assert_close(low, module(x) - reach, **options)
    torch.testing.assert_close(high, module(x) + reach, **options)


@pytest.mark.parametrize("name", [name for name in LINEAR if "unbatched" not in name])
@torch.no_grad()
def test_crown_of_linear_layers_is_exact(name):
    torch.manual_seed(0)
    make, shape = LINEAR[name]
    net = nn.Sequential(weighted(make()), nn.Flatten(), nn.LazyLinear(3)).eval()
    x, labels = torch.randn(shape), torch.tensor([0, 2, 1][: shape[0]])
    net(x)
    if name == "instance_norm_running":
        with pytest.raises(UnsupportedLayer, match=r"InstanceNorm2d.*: CROWN-IBP has no rule for it"):
            crown_margins(net, x, x.abs(), labels)
        return
    radius = torch.rand(shape)
    crown, ibp = crown_margins(net, x, radius, labels)
    with torch.enable_grad():
        rows = torch.autograd.functional.jacobian(net, x)
    for i, label in enumerate(labels):
        rest = [k for k in range(3) if k != label]
        a = (rows[i, label, i] - rows[i, rest, i]).flatten(1)
        logits = net(x)[i]
        torch.testing.assert_close(
            crown[i], logits[label] - logits[rest] - a.abs() @ radius[i].flatten(), rtol=1e-3, atol=1e-3
        )
    assert (ibp <= crown + 1e-4).all()


ELEMENTWISE = {  # the box is the hull: found by a fine grid over each element's interval
    "abs": Calls(lambda x: x.abs()), "abs_function": Calls(lambda x: abs(x)),
    "prelu": nn.PReLU(6, 0.25), "prelu_falls": nn.PReLU(1, -0.7), "mish": nn.Mish(),
    "softplus": nn.Softplus(2.0), "maximum": Calls(lambda x: torch.maximum(x, torch.linspace(-1, 1, 6))),
    "minimum": Calls(lambda x: torch.min(torch.linspace(-1, 1, 6).to(x.dtype), x)),
    "square": Calls(lambda x: x**2), "cube": Calls(lambda x: torch.pow(x, 3)), "exponential": Calls(lambda x: 0.5**x),
    "sqrt": Calls(lambda x: (x.abs() + 0.1).sqrt()), "log": Calls(lambda x: torch.log(abs(x) + 0.1)),
    "log1p": Calls(lambda x: x.square().log1p()), "rsqrt": Calls(lambda x: torch.rsqrt(x.abs() + 0.1)),
    "inverse": Calls(lambda x: 1 / (x.abs() + 0.1)), "reciprocal": Calls(lambda x: (-x.abs() - 0.1).reciprocal()),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
@torch.no_grad()
def test_elementwise_functions_have_their_hull(name):
    torch.manual_seed(0)
    module, x = ELEMENTWISE[name].double(), 2 * torch.randn(40, 6, dtype=torch.float64)
    radius = torch.rand_like(x) * 2
    center, width, clean = bound(module, x, radius, clean=x)
    grid = torch.linspace(-1, 1, 4001, dtype=torch.float64).view(-1, 1, 1)
    outputs = module((x + radius * grid).flatten(0, 1)).unflatten(0, (-1, 40))
    least, most = outputs.amin(0), outputs.amax(0)
    if name != "mish":  # a kink at 0, between two points of the grid
        kink = torch.where(x.abs() < radius, module(0 * x), least)
        least, most = torch.minimum(least, kink), torch.maximum(most, kink)
    torch.testing.assert_close(center - width, least, rtol=0, atol=1e-5)
    torch.testing.assert_close(center + width, most, rtol=0, atol=1e-5)
    assert (center - width <= least + 1e-12).all()
    torch.testing.assert_close(clean, module(x))
    torch.testing.assert_close(bound(module, x, 0 * x)[0], module(x))


PAIRS = {
    "product": lambda x: x[:, :3] * x[:, 3:],
    "quotient": lambda x: x[:, :3] / (0.1 * x[:, 3:] - 1),
    "maximum": lambda x: torch.max(x[:, :3], x[:, 3:]),
    "minimum": lambda x: torch.minimum(x[:, :3], other=x[:, 3:]),
}


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_functions_of_two_are_the_hull_of_their_corners(name):
    torch.manual_seed(0)
    module, x = Calls(PAIRS[name]), torch.randn(60, 6, dtype=torch.float64)
    radius = torch.rand_like(x) * 1.5
    low, high, _ = assert_holds(module, x, radius)
    corners = torch.stack(
        [
            module(torch.cat([x[:, :3] + s * radius[:, :3], x[:, 3:] + t * radius[:, 3:]], 1))
            for s in (-1, 1)
            for t in (-1, 1)
        ]
    )
    torch.testing.assert_close(low, corners.amin(0))
    torch.testing.assert_close(high, corners.amax(0))


OTHERS = {
    "group_norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "group_norm_plain": (lambda: nn.GroupNorm(4, 4, affine=False), IMAGE),
    "instance_norm1d": (lambda: nn.InstanceNorm1d(4, affine=True), SEQUENCE),
    "instance_norm_alone": (lambda: nn.InstanceNorm2d(4), IMAGE[1:]),
    "instance_norm3d": (lambda: nn.InstanceNorm3d(2), VOLUME),
    "max_pool3d": (lambda: nn.MaxPool3d(2, 1, 1), VOLUME),
    "amax": (lambda: Calls(lambda x: x.amax((1, 2)) - x.amin(1).sum(1)), SEQUENCE),
    "square": (lambda: Calls(lambda x: x * x - x.abs() * 0.5), FLAT),
    "gated": (lambda: Calls(lambda x: F.mish(x[:, :3]) * x[:, 3:].sigmoid()), FLAT),
    "narrow": (lambda: Calls(lambda x: x.bfloat16().float() * 2), FLAT),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_the_others_hold(name):
    torch.manual_seed(0)
    make, shape = OTHERS[name]
    module = weighted(make()).eval()
    for width in (0.0, 1e-3, 0.3, 3.0):
        x = torch.randn(shape)
        slack = 0.05 if name == "narrow" else 0  # plain bounds are up to rounding, here bfloat16's
        center, radius = bound(module, x, torch.full_like(x, width))
        outputs = torch.stack([module(point) for point in sampled(x, torch.full_like(x, width), 100)])
        assert ((outputs - center).abs() <= radius + slack + 1e-4 * (1 + center.abs())).all()
        if width == 0:
            torch.testing.assert_close(center, module(x), rtol=1e-3, atol=1e-4)


SOUND = {
    "product": lambda x: x[:, :3] * x[:, 3:] - 0.3, "abs": lambda x: (x - 0.1).abs(), "maximum": PAIRS["maximum"],
    "sum": lambda x: (x * 1e3).sum(1, keepdim=True) - x, "pad": lambda x: F.pad(x, (1, 1), value=0.1) * 0.1,
    "wide_constant": lambda x: x - torch.full((), 0.3, dtype=torch.float64) + 0.7,
    "nearest": lambda x: F.interpolate(x[:, None], 11)[:, 0] / 3, "bfloat16": lambda x: x.bfloat16(),
    "prelu": lambda x: F.prelu(x, torch.tensor([-0.3])), "cube": lambda x: x**3, "sqrt": lambda x: x.abs().sqrt(),
    "square": lambda x: x**2, "log": lambda x: (x.abs() + 1).log(), "inverse": lambda x: 1 / (x.abs() + 1),
    "quotient": lambda x: x[:, :3] / (x[:, 3:].abs() + 1), "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "power": lambda x: (x.abs() * 1e25 + 1e-30) ** 0.9,  # as far as float32 goes: 0.9 in it is another exponent
    "exponential": lambda x: 2.0 ** (x / 64).clamp(-8, 8), "log1p": lambda x: x.abs().log1p(),
    "pieces": lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1) * 0.7,
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
@torch.no_grad()
def test_sound_boxes_hold_what_float64_computes(name):
    """The exact function of points of the box, in float64, of float32 weights; plain bounds miss some."""
    torch.manual_seed(0)
    module, x = Calls(SOUND[name]), torch.randn(500, 6) * torch.exp2(4 * torch.randn(500, 6))
    missed = {}
    for sound in (False, True):
        missed[sound] = 0
        for radius in (torch.zeros_like(x), x.abs() * 1e-7, x.abs() * 0.1):
            center, width = (t.double() for t in bound(module, x, radius, sound=sound))
            for point in sampled(x.double(), radius.double(), 6):
                exact = exactly(name, point)
                missed[sound] += int(((exact - center).abs() > width * (1 + 2**-50)).sum())
    assert missed[True] == 0
    assert missed[False] > 0


def test_a_constant_loses_nothing_in_sound_mode():
    """0.3 in float64 beside a box of float32: what it loses there is all that is left of the difference."""
    three = torch.full((), 0.3, dtype=torch.float64)
    x = three.float().expand(1, 1).clone()
    center, radius = bound(Calls(lambda x: x - three), x, 0 * x, sound=True)
    left = float(x) - float(three)
    assert 1e-8 < abs(left) < 2e-8
    assert abs(left - float(center)) <= float(radius) < 2.1e-8


def exactly(name, x):
    """The function with every constant as float32 has it, and no rounding but float64's."""
    single = {value: float(torch.tensor(value)) for value in (0.3, 0.1, 0.7)}
    if name == "product":
        return x[:, :3] * x[:, 3:] - single[0.3]
    if name == "wide_constant":
        return x - 0.3 + 0.7
    if name == "abs":
        return (x - single[0.1]).abs()
    if name == "pad":
        return F.pad(x, (1, 1), value=single[0.1]) * single[0.1]
    if name == "bfloat16":
        return x
    if name == "prelu":
        return torch.where(x > 0, x, -single[0.3] * x)
    if name == "pieces":
        return torch.cat([x[:, 3:], x[:, :3]], 1) * single[0.7]
    return SOUND[name](x)


@pytest.mark.parametrize(
    "name", ["transposed1d", "conv3d", "bilinear", "trilinear", "group_norm", "instance_norm1d", "gated"]
)
def test_what_has_no_sound_bounds_says_so(name):
    make, shape = (LINEAR | OTHERS)[name]
    with pytest.raises(UnsupportedLayer, match="it has no sound bounds: leave sound=True out"):
        bound(make().eval(), torch.zeros(shape), torch.ones(shape), sound=True)


# ---- CROWN-IBP through max-pooling


POOLS = [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((3, 2), (1, 2), (1, 0), (2, 1), ceil_mode=True)]


@pytest.mark.parametrize("number", range(len(POOLS)))
@torch.no_grad()
def test_crown_through_max_pooling(number):
    torch.manual_seed(0)
    pool = POOLS[number]
    functional = Calls(lambda x: F.max_pool2d(x, pool.kernel_size, pool.stride, padding=pool.padding,
                                              dilation=pool.dilation, ceil_mode=pool.ceil_mode))  # fmt: skip
    tighter = 0
    for seed in range(15):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), pool, nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
        )
        x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 3, 1])
        net(x)
        for eps in (0.0, 0.02, 0.3):
            radius = torch.full_like(x, eps)
            crown, ibp = crown_margins(net, x, radius, labels)
            torch.testing.assert_close(
                crown_margins(nn.Sequential(net[0], functional, *net[2:]), x, radius, labels)[0], crown
            )
            torch.testing.assert_close(ibp, margins(net, x, radius, labels))
            logits = net(sampled(x, radius, 60).flatten(0, 1)).unflatten(0, (60, 3))
            for row, label in enumerate(labels):
                rest = [k for k in range(4) if k != label]
                assert (crown[row] <= (logits[:, row, label, None] - logits[:, row, rest]).amin(0) + 1e-5).all()
            if eps == 0:
                torch.testing.assert_close(crown, ibp, rtol=1e-4, atol=1e-5)
            tighter += float((crown > ibp + 1e-6).float().mean()) if eps == 0.02 else 0
    assert tighter > 7


@torch.no_grad()
def test_crown_of_pooling_is_its_definition():
    """One window [(0 +- 1), (3 +- 1), (-5 +- 1), (2.5 +- 1)]: 3 +- 1 is not always the largest, so it is the lower
    bound and 4 the upper one. With 6 +- 1 in place of 3 +- 1 it always is."""
    net = nn.Sequential(nn.MaxPool1d(4), nn.Flatten(), nn.Linear(1, 2, bias=False))
    net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
    x, one = torch.tensor([[[0.0, 3.0, -5.0, 2.5]]]), torch.ones(1, 1, 4)
    assert crown_margins(net, x, one, torch.tensor([0]))[0].item() == 2
    assert crown_margins(net, x, one, torch.tensor([1]))[0].item() == -4
    x[0, 0, 1] = 6
    assert crown_margins(net, x, one, torch.tensor([0]))[0].item() == 5
    assert crown_margins(net, x, one, torch.tensor([1]))[0].item() == -7
