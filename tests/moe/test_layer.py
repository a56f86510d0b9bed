"""warpup.moe.DeepSeekMoE against a loop over its experts, its balance losses against formulas, and that it learns."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from warpup.moe.glu import glu
from warpup.moe.layer import DeepSeekMoE
from warpup.moe.moe_experts import moe_experts

H, I, E, K = 12, 10, 6, 2


def made(**options):
    torch.manual_seed(0)
    return DeepSeekMoE(H, I, E, K, **{"num_shared": 2, **options}).double()


def plain(m, x):
    rows = x.reshape(-1, H)
    scores = (rows.float() @ m.router.float().t()).softmax(-1)
    weights, indices = scores.topk(K, -1)
    out = torch.zeros_like(rows)
    for t in range(len(rows)):
        for w, e in zip(weights[t], indices[t].tolist(), strict=True):
            gate, up = (m.w_gate_up[e] @ rows[t]).chunk(2)
            out[t] = out[t] + w.double() * (m.w_down[e] @ (F.silu(gate) * up))
    gate, up = (rows @ m.shared_gate_up.t()).chunk(2, -1)
    return (out + (F.silu(gate) * up) @ m.shared_down.t()).view(x.shape), scores, indices


def test_outputs_and_gradients(backend):
    m = made().to(backend.device)
    x = torch.randn(3, 5, H, dtype=torch.float64, device=backend.device, requires_grad=True)
    parameters = [x, *m.parameters()]
    out, (want, *_) = m(x), plain(m, x)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)  # the router's scores are float32
    gradient = torch.randn_like(out)
    grads = (torch.autograd.grad(o, parameters, gradient) for o in (out, want))
    for got, w in zip(*grads, strict=True):
        torch.testing.assert_close(got, w, rtol=1e-5, atol=1e-5)


def test_autocast_leaves_the_router_as_it_is():
    """Experts in bfloat16, scores in float32: no token goes to another expert; gradients in the parameters' dtype."""
    m, x = made().float(), torch.randn(40, H)
    m(x)
    want = m.last_route
    with torch.autocast("cpu", torch.bfloat16):
        out = m(x)
    for name in ("weights", "indices", "mean_score"):
        assert torch.equal(getattr(m.last_route, name), getattr(want, name)), name
    low = [p.detach().bfloat16() for p in (m.w_gate_up, m.w_down, m.shared_gate_up, m.shared_down)]
    y = moe_experts(x.bfloat16(), want.weights, want.indices, *low[:2], weight_placement="down")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, y + F.linear(glu(F.linear(x.bfloat16(), low[2])), low[3]))
    (out.float().square().mean() + m.balance_loss(expert=0.1)).backward()
    for name, p in m.named_parameters():
        assert p.grad.dtype == torch.float32
        assert p.grad.any(), name


@pytest.mark.parametrize("options", [{}, {"score": "sigmoid", "correction": True, "groups": (3, 2, "top2")}])
def test_compiles_to_one_graph_each_way(options):
    """Forward, balance loss and backward as one graph, the same as without."""
    torch.compiler.reset()
    m, x = made(**options), torch.randn(3, 5, H, dtype=torch.float64)

    def loss_of(x):
        return m(x).square().mean() + m.balance_loss(expert=0.1, device=0.1, z=0.1, devices=3)

    results = []
    for run in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        mine = x.clone().requires_grad_()
        loss = run(mine)
        results.append((loss.detach(), *torch.autograd.grad(loss, [mine, *m.parameters()]), m.last_route.indices))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_balance_losses():
    m, x = made(), torch.randn(40, H, dtype=torch.float64)
    m(x)
    with torch.no_grad():
        _, scores, indices = plain(m, x)
    f = torch.bincount(indices.flatten(), minlength=E) * E / (K * 40)
    p = scores.mean(0)
    torch.testing.assert_close(m.load(), f / E)
    assert m.balance_loss(expert=0.3).item() == pytest.approx(0.3 * (f * p).sum().item(), rel=1e-5)
    on_device = sum(f[d : d + 2].mean() * p[d : d + 2].sum() for d in (0, 2, 4))
    assert m.balance_loss(device=0.2, devices=3).item() == pytest.approx(0.2 * on_device.item(), rel=1e-5)
    z = (x @ m.router.t()).logsumexp(-1).square().mean()
    assert m.balance_loss(z=0.1).item() == pytest.approx(0.1 * z.item(), rel=1e-5)
    with pytest.raises(ValueError, match="divide 6 experts, got 4"):
        m.balance_loss(device=1.0, devices=4)
    with pytest.raises(ValueError, match="devices=3 needs a coefficient, device="):
        m.balance_loss(expert=1.0, devices=3)
    assert m.balance_loss(device=0.0, devices=3).item() == 0  # a coefficient that is 0 is one
    m.balance_loss(expert=1.0).backward()
    assert m.router.grad.abs().sum() > 0
    assert m.w_down.grad is None


def test_sequences_and_masked_tokens():
    m, x = made(num_shared=0), torch.randn(3, 8, H, dtype=torch.float64)
    mask = torch.rand(3, 8) < 0.7
    out = m(x, token_mask=mask, sequences=8)
    assert m.last_route.counts.shape == (3, E)
    assert m.load().sum().item() == pytest.approx(1)
    assert not out[~mask].any()
    torch.testing.assert_close(out[mask], m(x)[mask])
    alone = []
    for i in range(3):
        m(x[i], token_mask=mask[i])
        alone.append(m.balance_loss(expert=1.0))
    m(x, token_mask=mask, sequences=8)
    torch.testing.assert_close(m.balance_loss(expert=1.0), torch.stack(alone).mean())


def test_the_expert_loss_evens_the_load():
    m = made(num_shared=0)
    with torch.no_grad():
        m.router[0] += 0.5  # a favourite, on inputs with a positive mean
    x = torch.randn(200, H, dtype=torch.float64) + 0.5
    m(x)
    before = m.load().max().item()
    optimizer = torch.optim.Adam([m.router], lr=0.02)
    for _ in range(60):
        m(x)
        optimizer.zero_grad()
        m.balance_loss(expert=1.0).backward()
        optimizer.step()
    m(x)
    assert m.load().max().item() < min(0.3, before)


def test_the_correction_evens_the_load_without_a_gradient():
    m = made(num_shared=0, correction=True)
    with torch.no_grad():
        m.router[0] += 0.5
    x = torch.randn(200, H, dtype=torch.float64) + 0.5
    m(x)
    before, weights = m.load().max().item(), m.last_route.weights
    for _ in range(100):
        m.update_correction(0.01)
        m(x)
    assert m.load().max().item() < min(0.25, before)
    assert "correction" in dict(m.named_buffers())
    chosen = m.last_route.indices
    scores = (x @ m.router.t()).softmax(-1)
    torch.testing.assert_close(m.last_route.weights, scores.gather(-1, chosen))  # unbiased
    assert weights.requires_grad
    assert not m.correction.requires_grad
    with pytest.raises(ValueError, match="correction=True"):
        made().update_correction()


def test_replay_takes_the_given_experts_with_live_weights():
    m, x = made(num_shared=0), torch.randn(2, 4, H, dtype=torch.float64)
    indices = torch.randint(E, (2, 4, K))
    m(x, replay_indices=indices)
    assert torch.equal(m.last_route.indices, indices.view(-1, K))
    scores = (x.view(-1, H) @ m.router.t()).softmax(-1)
    torch.testing.assert_close(m.last_route.weights, scores.gather(-1, indices.view(-1, K)))


def test_it_learns_what_one_expert_of_its_size_cannot():
    """Four clusters of inputs, a linear map of its own for each."""
    torch.manual_seed(0)
    centers, maps = 3 * torch.randn(4, H), torch.randn(4, H, H) / H**0.5

    def batch(n):
        which = torch.randint(4, (n,))
        x = centers[which] + 0.3 * torch.randn(n, H)
        return x, torch.einsum("nij,nj->ni", maps[which], x)

    def fit(module):
        optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
        for _ in range(250):
            x, y = batch(64)
            loss = F.mse_loss(module(x), y) + module.balance_loss(expert=0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x, y = batch(512)
        return F.mse_loss(module(x), y).item()

    torch.manual_seed(1)
    alone = fit(DeepSeekMoE(H, 4, 1, 1))
    many = fit(DeepSeekMoE(H, 4, 8, 2, num_shared=1))
    assert many < 0.5 * alone, (many, alone)


def test_copies_and_parametrized_layers():
    """After a forward, whose graph cannot be copied; an effective weight of the copy is that of the original."""
    m, x = made(correction=True), torch.randn(7, H, dtype=torch.float64)
    for _ in range(2):  # first plain, then with a weight that is made of others
        m(x).sum().backward()
        other = copy.deepcopy(m)
        assert other.last_route is None
        assert torch.equal(other(x), m(x))
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
        assert m(x).any()
        parametrizations.weight_norm(m, "w_down")


def test_from_meta():
    """`reset_parameters` writes all that `to_empty` left, the correction too."""
    with torch.device("meta"):
        m = DeepSeekMoE(H, I, E, K, num_shared=2, correction=True)
    assert all(t.is_meta for t in m.state_dict().values())
    m.to_empty(device="cpu")
    with torch.no_grad():
        for t in m.state_dict().values():
            t.fill_(torch.nan)
    torch.manual_seed(0)
    m.reset_parameters()
    torch.manual_seed(0)
    want = DeepSeekMoE(H, I, E, K, num_shared=2, correction=True).state_dict()
    assert want.keys() == m.state_dict().keys()
    assert all(torch.equal(m.state_dict()[name], t) for name, t in want.items())


def test_the_correction_is_float32_whatever_the_rest_is():
    m = DeepSeekMoE(H, I, E, K, correction=True, dtype=torch.bfloat16)
    m(torch.randn(5, H).bfloat16())
    m.update_correction(0.01)
    assert m.correction.dtype == torch.float32
    assert m.correction.any()


def test_weights_of_transformers():
    """By the names in the docstring: DeepSeek-V3's layer gives the same."""
    v3 = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    options = {"hidden_size": H, "moe_intermediate_size": I, "n_routed_experts": E, "num_experts_per_tok": K}
    options |= {"n_shared_experts": 2, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
    config = v3.DeepseekV3Config(**options)
    config._experts_implementation = "eager"
    theirs = v3.DeepseekV3MoE(config)
    for t in theirs.state_dict().values():
        torch.nn.init.normal_(t, std=0.3)
    groups = (3, 2, "top2")
    m = DeepSeekMoE(
        H, I, E, K, num_shared=2, score="sigmoid", renormalize=True, groups=groups, scale=2.5, correction=True
    )
    t = theirs.state_dict()
    gate, up = (t[f"shared_experts.{name}_proj.weight"] for name in ("gate", "up"))
    state = {"router": t["gate.weight"], "correction": t["gate.e_score_correction_bias"]}
    state |= {"w_gate_up": t["experts.gate_up_proj"], "w_down": t["experts.down_proj"]}
    m.load_state_dict(
        {**state, "shared_gate_up": torch.cat([gate, up]), "shared_down": t["shared_experts.down_proj.weight"]}
    )
    x = torch.randn(2, 9, H)
    torch.testing.assert_close(m(x), theirs(x))


WRONG = [
    ({"k": 7}, "k must be 1 to num_experts, 6, got 7"),
    ({"k": 0}, "k must be 1 to num_experts, 6, got 0"),
    ({"num_experts": 0}, "must be at least 1 and num_shared at least 0, got 12, 10, 0 and 0"),
    ({"num_shared": -1}, "num_shared at least 0, got 12, 10, 6 and -1"),
    ({"num_experts": 1025}, "of 1 to 1024 experts, got 1025"),
    ({"score": "tanh"}, "score must be softmax, sigmoid or sqrt_softplus, got tanh"),
    ({"order": "topk"}, r"order must be one of \('softmax_topk', 'topk_softmax'\), got 'topk'"),
    ({"score": "sigmoid", "order": "topk_softmax"}, "order topk_softmax needs score softmax"),
    ({"groups": (4, 2, "top2")}, "groups must be 1 to 32 and divide the 6 experts, got 4"),
    ({"groups": (6, 1, "top1")}, "the groups kept must .* have k = 2 experts"),
    ({"groups": (3, 2)}, "groups must be "),
    ({"activation": "tanh"}, "activation must be one of silu, .* got 'tanh'"),
    ({"weight_placement": "up"}, "weight_placement must be one of combine, .* got 'up'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_settings_are_told_by_the_constructor(change, message):
    arguments = {"hidden_size": H, "intermediate_size": I, "num_experts": E, "k": K} | change
    with pytest.raises(ValueError, match=message):
        DeepSeekMoE(**arguments)


def test_messages():
    with pytest.raises(RuntimeError, match="nothing was routed yet"):
        made().balance_loss(expert=1.0)
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., 12\), got \(3, 11\)"):
        made()(torch.zeros(3, 11))
    shown = repr(made(score="sigmoid", groups=(3, 2, "top2"), correction=True))
    assert "12, 10, 6 experts, 2 a token, 2 shared" in shown
    options = ("score=sigmoid", "groups=(3, 2, 'top2')", "correction=True", "activation=silu")
    for part in (*options, "weight_placement=down"):
        assert part in shown
