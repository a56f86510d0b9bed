"""glu beyond the contract: special values, the gradient of its weights, messages."""

import pytest
import torch

from tests.support.cases import OPS
from warpup import glu
from warpup.moe.glu import ACTIVATIONS, reference_glu


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_far_from_zero(backend, activation):
    """Gates of any size: nothing overflows, the tails vanish; and so do the slopes."""
    gate = torch.tensor([-3e38, -1e4, -89.0, -30.0, -6.0, -0.0, 0.0, 6.0, 30.0, 89.0, 1e4], device=backend.device)
    h = torch.stack([gate, torch.ones_like(gate)], 1).requires_grad_()
    wide = h.detach().double().requires_grad_()
    a, want = glu(h, activation=activation), reference_glu(wide, activation=activation)
    torch.testing.assert_close(a.double(), want, rtol=3e-6, atol=1e-6)
    (got,) = torch.autograd.grad(a.sum(), h)
    (slopes,) = torch.autograd.grad(want.sum(), wide)
    torch.testing.assert_close(got.double(), slopes, rtol=3e-6, atol=1e-6)


def test_glu_gives_nan_for_nan(backend):
    for activation in ACTIVATIONS:
        h = torch.tensor([[torch.nan, 1.0], [1.0, torch.nan]], device=backend.device)
        assert glu(h, activation=activation).isnan().all(), activation


def test_the_gradient_of_glus_weights(backend):
    x = OPS["glu"].make("small", torch.float64, backend.device, variant="weighted")
    grads = []
    for function in (glu, reference_glu):
        weights = x["weights"].clone().requires_grad_()
        (function(**{**x, "weights": weights}) ** 2).sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(*grads)


def test_glu_messages():
    h, w, p = torch.randn(3, 4), torch.rand(5), torch.tensor([0, -1, 4])
    for options, part in (
        ({"h": h[:, :3]}, "even number of columns"),
        ({"h": h, "activation": "tanh"}, "activation must be silu, .* got tanh"),
        ({"h": h, "weights": w}, "weights and permutation must be given together"),
        ({"h": h, "weights": w, "permutation": p + 1}, "permutation must hold -1 to 4, got 5"),
        ({"h": h, "weights": w, "permutation": p[:2]}, r"permutation must have shape \(3\)"),
        ({"h": h.int()}, "h must be float32"),
    ):
        with pytest.raises(ValueError, match=part):
            glu(**options)
