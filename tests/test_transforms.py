"""torch.func's transforms and dual numbers: for every differentiable operator the right value, or an error that says
so; never a silent zero."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from tests.support.cases import CASES, gradients_of, leaves
from warpup import replay_logprob, token_logprob

DIFFERENTIABLE = [case for case in CASES if case.differentiable]
# What an operator may answer: its own words, torch's of a Function without such a rule, torch's on values under vmap.
CLEAR = "no forward-mode derivative|must implement the jvp|does not have vmap support|vmap: It looks like you're"
FORWARD = {"token_logprob", "divergence", "topk_divergence", "interval_activation", "policy_loss"}
each = pytest.mark.parametrize(
    ("case", "variant"),
    [
        pytest.param(c, v, id=f"{c.op}-{v}")
        for c in DIFFERENTIABLE
        for v in dict.fromkeys((c.variants[0], c.variants[-1]))
    ],
)


def loss_of(case, inputs) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A number of all results that have a gradient, as a function of the inputs that get one, and these."""
    names = case.differentiable
    sample = leaves(case.call(**{k: v.clone().requires_grad_() if k in names else v for k, v in inputs.items()}))
    weights = [g if o.requires_grad else None for o, g in zip(sample, gradients_of(sample), strict=True)]

    def loss(*values):
        outputs = leaves(case.call(**{**inputs, **dict(zip(names, values, strict=True))}))
        parts = [(o * w).nan_to_num(0, 0, 0).sum() for o, w in zip(outputs, weights, strict=True) if w is not None]
        return sum(parts)

    return loss, [inputs[name].detach() for name in names]


def right_or_clear(found: Callable, want, right: bool = True) -> None:
    """`found()` is `want`, or raises a clear error where it need not be right."""
    try:
        got = found()
    except (RuntimeError, NotImplementedError) as error:
        message = str(error)
    else:
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)
        return
    assert not right, message
    assert re.search(CLEAR, message), message


def inputs_of(case, variant):
    inputs = case.make("grad", torch.float64, variant=variant)
    return {k: v.nan_to_num(neginf=-8.0) if k in case.differentiable else v for k, v in inputs.items()}


@each
def test_forward_mode(case, variant):
    loss, values = loss_of(case, inputs_of(case, variant))
    tangents = gradients_of(values, seed=2)
    gradients = torch.autograd.grad(loss(*(leaf := [v.clone().requires_grad_() for v in values])), leaf)
    want = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))

    def dual():
        with forward_ad.dual_level():
            made = loss(*(forward_ad.make_dual(v, t) for v, t in zip(values, tangents, strict=True)))
            return forward_ad.unpack_dual(made).tangent

    right = case.op in FORWARD
    right_or_clear(lambda: jvp(loss, tuple(values), tuple(tangents))[1], want, right)
    right_or_clear(dual, want, right)
    first, *rest = values  # one input alone
    right_or_clear(
        lambda: jvp(lambda v: loss(v, *rest), (first,), (tangents[0],))[1], (gradients[0] * tangents[0]).sum(), right
    )


@each
@pytest.mark.parametrize("dim", [0, -1])
def test_vmap(case, variant, dim):
    """All floating tensors batched, or those that get a gradient alone; values, gradients through it and inside it."""
    inputs = inputs_of(case, variant)
    loss, values = loss_of(case, inputs)
    scales = (1.0, 0.5, 0.25)
    batched = tuple(torch.stack([v * s for s in scales], dim) for v in values)
    want = torch.stack([loss(*(v * s for v in values)) for s in scales])
    leaf = [[(v * s).requires_grad_() for v in values] for s in scales]
    gradients = [torch.autograd.grad(loss(*of), of) for of in leaf]
    gradients = tuple(torch.stack(g, dim) for g in zip(*gradients, strict=True))
    every = tuple(range(len(values)))

    def through():
        leaf = [b.clone().requires_grad_() for b in batched]
        return torch.autograd.grad(vmap(loss, dim)(*leaf).sum(), leaf)

    right_or_clear(lambda: vmap(loss, dim)(*batched), want)
    right_or_clear(through, gradients)
    right_or_clear(lambda: grad(lambda *v: vmap(loss, dim)(*v).sum(), every)(*batched), gradients)
    right_or_clear(lambda: vmap(grad(loss, every), dim, dim)(*batched), gradients)
    # Some batched, some not.
    first, *rest = batched
    right_or_clear(
        lambda: vmap(lambda v: loss(v, *(r.select(dim, 0).contiguous() for r in rest)), dim)(first)[:1], want[:1], False
    )


@each
def test_a_batch_of_upstream_gradients(case, variant):
    """torch.autograd.grad(..., is_grads_batched=True), whose vmap is another than torch.func's."""
    loss, values = loss_of(case, inputs_of(case, variant))
    scales = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)

    def gradients(**options):
        leaf = [v.clone().requires_grad_() for v in values]
        return torch.autograd.grad(loss(*leaf), leaf, **options)

    want = tuple(torch.stack([g * s for s in scales]) for g in gradients())
    right_or_clear(lambda: gradients(grad_outputs=scales, is_grads_batched=True), want)


def logprob_of(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    return logits, torch.randint(7, (4, 5), generator=generator)


def test_vmap_over_arguments_of_any_kind():
    """Some have a batch and some not; a token_set has no leading dimensions."""
    z, y = logprob_of()
    temperatures, sets = (0.5, 1.0, 2.0), torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    got = vmap(lambda y: token_logprob(z[0], y))(y)
    torch.testing.assert_close(got, torch.stack([token_logprob(z[0], each) for each in y]))
    got = vmap(lambda t: token_logprob(z, y, temperature=t))(torch.tensor(temperatures))
    torch.testing.assert_close(got, torch.stack([token_logprob(z, y, temperature=t) for t in temperatures]))
    got = vmap(lambda s: replay_logprob(z, y, token_set=s, delta=2.0))(sets)
    torch.testing.assert_close(got, torch.stack([replay_logprob(z, y, token_set=s, delta=2.0) for s in sets]))
    got = vmap(vmap(token_logprob))(z, y)
    torch.testing.assert_close(got, token_logprob(z, y))
    assert vmap(lambda z: token_logprob(z, y, entropy=True), 1)(torch.stack([z, z], 1))[1].shape == (2, 4, 5)


def test_inplace_backward_writes_nothing_that_a_transform_shows():
    z, y = logprob_of()
    before = z.clone()
    got = grad(lambda z: vmap(partial(token_logprob, inplace_backward=True))(z, y).sum())(z)
    torch.testing.assert_close(got, grad(lambda z: token_logprob(z, y).sum())(z))
    torch.testing.assert_close(z, before, rtol=0, atol=0)


@pytest.mark.parametrize("order", ["hessian", "jvp_of_jvp", "grad_of_jvp", "dual_of_backward"])
def test_second_derivative_is_an_error(order):
    z, y = logprob_of()

    def f(z):
        return token_logprob(z, y).sum()

    def dual_of_backward():
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(z.clone().requires_grad_(), z)
            torch.autograd.grad(f(dual), dual)

    def along(z):
        return jvp(f, (z,), (torch.ones_like(z),))[1]

    run = {
        "hessian": lambda: torch.func.hessian(f)(z),
        "jvp_of_jvp": lambda: jvp(along, (z,), (z,)),
        "grad_of_jvp": lambda: grad(along)(z),
        "dual_of_backward": dual_of_backward,
    }[order]
    with pytest.raises(RuntimeError, match="no second derivative"):
        run()


def test_compiled_transforms_are_not_zero():
    """Dynamo cannot trace these Functions. What compiles a transform gets eager torch's value, or Dynamo's error where
    it goes on to compile between the transform and us."""
    z, y = logprob_of()

    def f(z):
        return token_logprob(z, y).sum()

    want = grad(f)(z)
    for compiled, right in (
        (lambda: torch.compile(grad(f), backend="eager")(z), want),
        (lambda: torch.compile(lambda z, t: jvp(f, (z,), (t,))[1], backend="eager")(z, z), (want * z).sum()),
    ):
        torch.compiler.reset()
        try:
            got = compiled()
        except (torch._dynamo.exc.TorchDynamoException, AssertionError):
            continue
        torch.testing.assert_close(got, right)
