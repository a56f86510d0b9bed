"""peft's adapters on fused experts by their factors: its results, and no tensor of the weights' size."""

from itertools import pairwise

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")
peft = pytest.importorskip("peft")

from tests.support.largest import Largest  # noqa: E402
from tests.support.mixtures import MODELS, mixture_of  # noqa: E402
from warpup.integrations.transformers_moe import low_rank_experts, low_rank_mm  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
TARGETS = ["experts.gate_up_proj", "experts.down_proj"]


def adapted(name, targets=TARGETS, dtype=torch.float64, **options):
    """A model with adapters that change something."""
    config = peft.LoraConfig(r=3, lora_alpha=12, target_modules=[], target_parameters=targets, **options)
    model = peft.get_peft_model(mixture_of(name).to(dtype), config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3, generator=generator)
    return model


def results(model, ids):
    model.zero_grad()
    logits = model(input_ids=ids).logits
    logits.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert all("lora_" in name for name in gradients)
    return logits.detach(), gradients


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:1], TARGETS[1:]], ids=["both", "gate_up", "down"])
@pytest.mark.parametrize("name", MODELS)
def test_results_are_pefts(name, targets):
    ids = torch.randint(3, 31, (3, 9), generator=torch.Generator().manual_seed(1))
    model = adapted(name, targets)
    want = results(model, ids)
    with model.disable_adapter():
        assert not torch.allclose(model(input_ids=ids).logits, want[0])
    low_rank_experts(model)
    torch.testing.assert_close(results(model, ids), want, rtol=1e-9, atol=1e-11)
    assert len(want[1]) == sum("lora_" in n for n, _ in model.named_parameters()) >= 2 * len(targets)


def test_what_stays_pefts():
    """Checkpointed activations, another implementation, adapters that are off, and a merge."""
    ids = torch.randint(3, 31, (3, 9), generator=torch.Generator().manual_seed(1))
    model = adapted("qwen3_moe")
    want = results(model, ids)
    low_rank_experts(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(results(model.train(), ids), want, rtol=1e-9, atol=1e-11)
    model.get_base_model().set_experts_implementation("eager")
    torch.testing.assert_close(results(model, ids), want, rtol=1e-9, atol=1e-11)
    model.get_base_model().set_experts_implementation("warpup")
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, want[0], rtol=1e-9, atol=1e-11)


def test_no_tensor_has_the_size_of_the_weights():
    model = adapted("qwen3_moe", dtype=torch.float32)
    experts = next(m for n, m in model.named_modules() if n.endswith("experts") and hasattr(m, "parameter_name"))
    size = experts.get_param().numel()
    x, weights = torch.randn(4, 16), torch.rand(4, 2)
    indices = torch.tensor([[0, 1], [1, 2], [3, 0], [5, 4]])
    found = []
    for change in (lambda m: m, low_rank_experts):
        change(model)
        with Largest() as largest:
            experts(x, indices, weights).sum().backward()
        found.append(largest.elements)
    assert found[0] >= size > 2 * found[1]


def in_plain_torch(x, w, down, up, scaling, offsets):
    parts = zip(pairwise(offsets.tolist()), w, down, up, strict=True)
    return torch.cat([x[a:b] @ m.t() + scaling * (x[a:b] @ d.t()) @ u.t() for (a, b), m, d, u in parts])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_as_near_as_plain_torch(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 16), (3, 20, 16), (3, 4, 16), (3, 20, 4), (64, 20))
    *operands, g = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    found = []
    for function, to in ((in_plain_torch, torch.float64), (in_plain_torch, dtype), (low_rank_mm, dtype)):
        inputs = [t.detach().to(to).requires_grad_() for t in operands]
        out = function(*inputs, 2.0, torch.tensor([0, 20, 20, 64]))
        found.append([out.detach(), *torch.autograd.grad(out, inputs, g.to(to))])
    for exact, near, got in zip(*found, strict=True):
        slack = 2 * exact.abs().max() * torch.finfo(dtype).eps
        assert (got - exact).abs().max() <= 2 * (near - exact).abs().max() + slack


def test_a_model_without_is_refused():
    message = r"has no adapter on experts with experts_implementation=.warpup.: give LoraConfig target_parameters"
    with pytest.raises(ValueError, match=message):
        low_rank_experts(mixture_of("qwen3_moe"))


def test_an_older_peft_is_refused(monkeypatch):
    monkeypatch.setattr(peft, "__version__", "0.19.1")
    message = r"low_rank_experts needs peft: pip install 'warpup\[lora\]' \(version 0\.19\.1 is here"
    with pytest.raises(ModuleNotFoundError, match=message):
        low_rank_experts(mixture_of("qwen3_moe"))
