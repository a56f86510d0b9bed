"""transformers' mixture models on experts_implementation="warpup": the outputs and gradients of their eager path."""

import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")

from tests.support.mixtures import COMMON, MODELS, QWEN, mixture_of  # noqa: E402
from warpup.integrations import transformers_moe  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def run(model, ids, implementation):
    model.set_experts_implementation(implementation)
    model.zero_grad()
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_same_as_eager(name, backend):
    model = mixture_of(name).double().to(backend.device)
    for p in model.parameters():  # as initialised, some are 0 or too small to matter
        torch.nn.init.normal_(p, std=0.3)
    experts = [m for m in model.modules() if hasattr(m, "is_transposed")]
    assert experts
    assert {transformers_moe.kind_of(m) for m in experts} == {MODELS[name][2]}
    ids = torch.randint(3, 31, (2, 9), device=backend.device)
    got, want = run(model, ids, "warpup"), run(model, ids, "eager")
    torch.testing.assert_close(got[0], want[0], rtol=1e-9, atol=1e-9)
    assert got[1].keys() == want[1].keys()
    assert any("experts" in key for key in want[1])
    for key in want[1]:
        torch.testing.assert_close(got[1][key], want[1][key], rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "gpt_oss, another limit"])
def test_autocast(name):
    """Experts of float32 weights in bfloat16: no further from float64 than twice what eager is."""
    model = mixture_of(name)
    experts = next(m for m in model.modules() if hasattr(m, "is_transposed"))
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, weights = torch.randn(33, 16, requires_grad=True), torch.rand(33, 2, requires_grad=True)
    indices, gradient = torch.rand(33, experts.num_experts).topk(2).indices, torch.randn(33, 16)

    def results(implementation, enabled):
        model.set_experts_implementation(implementation)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = experts(x, indices, weights)
        leaves = [x, weights, *experts.parameters()]
        grads = torch.autograd.grad(out, leaves, gradient.to(out.dtype))
        assert all(g.dtype == torch.float32 for g in grads)
        return [out.detach(), *grads]

    want, eager = results("eager", False), results("eager", True)
    for got, naive, w in zip(results("warpup", True), eager, want, strict=True):
        assert got.isfinite().all()
        assert (got - w).abs().max() <= 2 * (naive - w).abs().max() + 2**-7 * w.abs().max()


def test_another_implementation_than_eager_really_runs(monkeypatch):
    called = []
    monkeypatch.setattr(transformers_moe, "moe_experts", lambda x, *args, **options: called.append(options) or x)
    config = transformers.Qwen3MoeConfig(**COMMON, **QWEN)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="warpup")
    model(input_ids=torch.randint(3, 31, (1, 5)))
    assert len(called) == 2


def test_experts_outside_of_the_interface_are_said_once(monkeypatch):
    """There the name is taken and nothing asks for it: Llama4's experts run their own code."""
    monkeypatch.setattr(transformers_moe, "_said", set())

    def llama4(**options):
        config = transformers.Llama4TextConfig(
            **COMMON, num_local_experts=4, intermediate_size=12, intermediate_size_mlp=12, head_dim=8
        )
        return transformers.Llama4ForCausalLM._from_config(config, **options)

    with pytest.warns(UserWarning, match="no effect on Llama4.*Llama4TextExperts outside .*own code runs"):
        llama4(experts_implementation="warpup")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        llama4(experts_implementation="warpup")
        for name in ("qwen3_moe", "gpt_oss"):
            mixture_of(name).set_experts_implementation("warpup")
        dense = transformers.LlamaConfig(**COMMON, intermediate_size=12)
        transformers.LlamaForCausalLM._from_config(dense, experts_implementation="warpup")
        monkeypatch.setattr(transformers_moe, "_said", set())
        model = llama4()
    with pytest.warns(UserWarning, match="no effect on Llama4"):
        model.set_experts_implementation("warpup")


def test_experts_of_other_ranks_are_dropped():
    """transformers marks them with an id past the last."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**COMMON, **QWEN)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="warpup")
    experts = next(m for m in model.modules() if hasattr(m, "is_transposed"))
    x, weights = torch.randn(5, 16), torch.rand(5, 2)
    indices = torch.tensor([[0, 6], [1, 2], [6, 6], [3, 5], [6, 4]])
    got = experts(x, indices, weights)
    want = experts(x, indices.clamp_max(5), weights * (indices < 6))
    torch.testing.assert_close(got, want)


def test_without_a_gate(monkeypatch):
    nemotron = pytest.importorskip("transformers.models.nemotron_h.modeling_nemotron_h")
    torch.manual_seed(0)
    config = transformers.NemotronHConfig(
        hidden_size=16, n_routed_experts=4, moe_intermediate_size=12, moe_latent_size=None, num_experts_per_tok=2
    )
    config._experts_implementation = "warpup"
    experts = nemotron.NemotronHExperts(config).double()
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, weights = torch.randn(7, 16, dtype=torch.float64), torch.rand(7, 2, dtype=torch.float64)
    indices = torch.rand(7, 4).topk(2).indices
    results = []
    for implementation in ("warpup", "eager"):
        config._experts_implementation = implementation
        out = experts(x, indices, weights)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(experts.parameters()))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
