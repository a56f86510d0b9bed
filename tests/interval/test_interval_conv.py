"""Convolutions of boxes beyond the contract: as linear maps of windows, layouts, messages. (What they have in common
with linear maps is in test_interval_linear.py.)"""

import pytest
import torch
from torch.nn import functional as F

from tests.support.cases import OPS
from warpup import interval_conv1d, interval_conv2d, interval_linear

CONVS = {1: interval_conv1d, 2: interval_conv2d}


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("mode", ["midpoint", "exact"])
@pytest.mark.parametrize("padding", [2, "same", "valid"])
def test_convolutions_are_linear_maps_of_windows(dims, mode, padding, backend):
    """Without weight radius, with one, grouped, dilated; against linear maps made of unit inputs."""
    generator = torch.Generator().manual_seed(3)
    shape, kernel = (2, 4, 7, 6)[: 2 + dims], (3, 3)[:dims]
    c = torch.randn(shape, generator=generator, dtype=torch.float64)
    w = torch.randn(6, 2, *kernel, generator=generator, dtype=torch.float64)
    r, q = torch.rand(c.shape, generator=generator).double(), torch.rand(w.shape, generator=generator).double()
    places = {"padding": padding, "dilation": 2, "groups": 2}
    conv = {1: F.conv1d, 2: F.conv2d}[dims]
    units = torch.eye(c[0].numel(), dtype=torch.float64).view(-1, *shape[1:])
    dense, radius = (conv(units, t, **places).flatten(1).t().contiguous() for t in (w, q))
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    want = interval_linear(c.flatten(1), r.flatten(1), dense, weight_radius=radius, mode=mode)
    c, r, w, q, bias = (t.to(backend.device) for t in (c, r, w, q, bias))
    got = CONVS[dims](c, r, w, bias, weight_radius=q, mode=mode, **places)
    each = bias.view(-1, *[1] * dims)
    for g, wanted in zip((got[0] - each, got[1]), want, strict=True):
        torch.testing.assert_close(g.flatten(1).cpu(), wanted)


def test_images_come_out_channels_last_on_a_cpu():
    x = OPS["interval_conv2d"].make("small")
    for t in interval_conv2d(**x):
        assert t.is_contiguous(memory_format=torch.channels_last)


def test_messages():
    x = OPS["interval_conv2d"].make("small")
    with pytest.raises(ValueError, match="groups that divide N"):
        interval_conv2d(**{**x, "groups": 5})
    with pytest.raises(ValueError, match="take 1 or 2 numbers"):
        interval_conv2d(**{**x, "stride": (1, 2, 3)})
    with pytest.raises(ValueError, match="'same' needs stride 1"):
        interval_conv2d(**{**x, "stride": 2, "padding": "same"})
    with pytest.raises(ValueError, match="interval_conv2d: mode 'exact' is for boxes of weights"):
        interval_conv2d(**{**x, "mode": "exact"})
