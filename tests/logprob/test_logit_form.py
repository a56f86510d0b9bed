"""scale and softcap: what every function that takes them makes of a logit, digit by digit, and what it refuses."""

import pytest
import torch

import warpup
from warpup.logprob.logit_form import formed
from warpup.reflection.batch import ReflectionBatch

# Small, about where the cap begins to hold, and far beyond it.
POINTS = torch.cat([torch.tensor([0.0, 1e-30, 1e-6]), torch.logspace(-4, 3, 400), torch.tensor([1e10, 3e38])])
POINTS = torch.cat([POINTS, -POINTS])


@pytest.mark.parametrize("form", [{"softcap": 30.0}, {"softcap": 0.5, "scale": 3.0}, {"scale": 0.0625}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_logit_and_its_slope_have_all_their_digits(backend, form, dtype):
    """Of a row with one logit the log-sum-exp is that logit. The slope is 4 / (e^y + e^-y)^2 with y = scale x / cap,
    which has digits where 1 - tanh^2 has none left."""
    x = POINTS.to(backend.device, dtype)[POINTS.to(dtype).isfinite()].unsqueeze(1).requires_grad_()
    targets = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    _, z = warpup.token_logprob(x, targets, lse=True, **form)
    (slope,) = torch.autograd.grad(z.sum(), x)
    exact, scale = x.detach().double(), form.get("scale", 1.0)
    if "softcap" in form:
        y = scale * exact / form["softcap"]
        want_z, want_slope = form["softcap"] * torch.tanh(y), scale / torch.cosh(y.clamp(-300, 300)).square()
    else:
        want_z, want_slope = scale * exact, torch.full_like(exact, scale)
    eps, out = torch.finfo(z.dtype).eps, torch.finfo(dtype).eps
    finite = want_z.squeeze(1).abs() <= torch.finfo(z.dtype).max
    torch.testing.assert_close(z.double()[finite], want_z.squeeze(1)[finite], rtol=4 * eps, atol=0)
    least = 1e-36 if dtype != torch.float16 else 2.0**-24  # what float32 or the result flushes to 0
    spread = 1 + (scale * exact / form.get("softcap", torch.inf)).abs()  # a rounding of y is multiplied by it
    error = (slope.double() - want_slope).abs()
    assert (error <= (16 * eps * spread + out) * want_slope + least).all()


def test_a_token_that_is_ruled_out_stays_so(backend):
    """A logit of -inf has no probability, also where tanh would make a finite number of it."""
    x = torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf] * 3], device=backend.device, requires_grad=True)
    targets = torch.tensor([0, 1], device=backend.device)
    logp = warpup.token_logprob(x, targets, softcap=2.0)
    want = torch.log_softmax(2 * torch.tanh(torch.tensor([1.0, 2.0]) / 2), 0)[0].item()
    assert logp.tolist() == [pytest.approx(want), 0]
    logp.sum().backward()
    assert x.grad[0, 1] == 0
    assert (x.grad[1] == 0).all()
    slots = torch.tensor([0], device=backend.device)
    step = ReflectionBatch(1, device=backend.device).sample(x.detach()[:1], slots, softcap=2.0)
    assert step.token.item() != 1
    assert step.logp.item() == pytest.approx(torch.log_softmax(formed(x.detach(), 1.0, 2.0)[0], 0)[step.token].item())


def test_one_draw_and_its_replay_agree(backend):
    """What sample_step drew under a cap, a scale, a temperature and a filter is replayed with ratio 1."""
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(64, 500, generator=generator)).to(backend.device)
    batch = ReflectionBatch(64, device=backend.device)
    batch.set_sampling(range(64), 0.8, top_k=40, seed=3)
    form = {"scale": 0.7, "softcap": 15.0}
    step = batch.sample(logits, **form)
    kept = formed(logits, **form) >= step.least[:, None] - 1e-4
    logp = warpup.replay_logprob(logits, step.token, temperature=0.8, kept_mask=kept, **form)
    torch.testing.assert_close(logp, step.logp, rtol=1e-5, atol=1e-5)


def calls():
    logits, ids = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    hidden, weight = torch.zeros(2, 3), torch.zeros(5, 3)
    batch, one = ReflectionBatch(2), torch.ones(2)
    kept = warpup.KeptTokens.from_mask(torch.ones(2, 5, dtype=torch.bool))
    return {
        "token_logprob": lambda **o: warpup.token_logprob(logits, ids, **o),
        "replay_logprob": lambda **o: warpup.replay_logprob(logits, ids, kept=kept, **o),
        "linear_logprob": lambda **o: warpup.linear_logprob(hidden, weight, ids, **o),
        "linear_policy_loss": lambda **o: warpup.linear_policy_loss(
            hidden[None], weight, ids[None], one[None], one[:1], one[None].bool(), **o
        ),
        "divergence": lambda **o: warpup.divergence(logits, logits, **o),
        "linear_divergence": lambda **o: warpup.linear_divergence(hidden, weight, hidden, weight, **o),
        "sample_step": lambda **o: batch.sample(logits, **o),
    }


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize(
    "options", [{"softcap": 0.0}, {"softcap": -1.0}, {"softcap": torch.nan}, {"scale": 0.0}, {"scale": -2.0}]
)
def test_messages(name, options):
    (option,) = options
    with pytest.raises(ValueError, match=f"{option} must be above 0"):
        calls()[name](**options)


@pytest.mark.parametrize("options", [{"softcap": torch.inf}, {"softcap": 1e-30}, {"scale": 1e300}], ids=str)
@pytest.mark.parametrize("name", calls())
def test_what_float32_cannot_be_divided_by(name, options):
    """By kernels and by kept tokens, whose logits are formed in torch: 1e300 gave NaN there."""
    (option,) = options
    with pytest.raises(ValueError, match=rf"{option} must be in \[1.08.*, 9.22"):
        calls()[name](**options)


@pytest.mark.parametrize("name", ["divergence", "linear_divergence"])
@pytest.mark.parametrize("option", ["teacher_softcap", "teacher_scale"])
def test_messages_name_the_side(name, option):
    with pytest.raises(ValueError, match=f"{option} must be above 0"):
        calls()[name](**{option: -1.0})
