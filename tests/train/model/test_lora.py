"""Adapters: trained alone, resumed bit for bit, reloaded, merged; the frozen base is the reference."""

import contextlib
import json

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.support.mixtures import mixture_of
from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    Killed,
    gpt2,
    killer,
    llama,
    log_of,
    mixture,
    rlvr,
    same,
    warmup,
    weights,
)
from warpup.train import Recipe, TrainError, evaluate, load_model, newest_model
from warpup.train.config import TrainConfig
from warpup.train.model.heads import Head
from warpup.train.model.load_model import start_model
from warpup.train.model.lora import LoRA, add_adapters, add_before_rounding, describe_reach, merged, reach

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")


def adapted(tmp_path, **settings):
    """A llama that was saved, as a run's start is, with adapters."""
    if not (tmp_path / "start").exists():
        llama().save_pretrained(tmp_path / "start")
        TOKENIZER.save_pretrained(tmp_path / "start")
    model, _ = load_model(tmp_path / "start")
    torch.manual_seed(0)
    return add_adapters(model, LoRA(**{"r": 4} | settings))


def stages():
    return [warmup(steps=4, save_every=2), rlvr(steps=3, kl_coef=0.1, save_every=1)]


def test_only_adapters_are_trained_and_the_head_stays_linear(tmp_path):
    model = adapted(tmp_path)
    assert Head(model).form == "linear"
    before = {name: value.clone() for name, value in weights(model).items()}
    Recipe(stages()).run(model, TOKENIZER, tmp_path / "run")
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert {name for name in before if "lora_" in name} == changed


def test_killed_and_resumed_bit_for_bit(tmp_path):
    whole = weights(Recipe(stages()).run(adapted(tmp_path), TOKENIZER, tmp_path / "whole"))
    for at in (3, 2):
        with pytest.raises(Killed):
            Recipe(stages()).run(adapted(tmp_path), TOKENIZER, tmp_path / "run", report=killer(at))
    resumed = weights(Recipe(stages()).run(adapted(tmp_path), TOKENIZER, tmp_path / "run"))
    assert same(whole, resumed)


def test_the_run_is_loaded_sampled_and_evaluated(tmp_path):
    model = Recipe(stages()[:1]).run(adapted(tmp_path), TOKENIZER, tmp_path / "run")
    folder = newest_model(tmp_path / "run")
    assert not (folder / "model.safetensors").exists()  # adapters only
    loaded, tokenizer = load_model(folder)
    ids = torch.tensor([tokenizer(EXAMPLES[0]["prompt"])["input_ids"]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    found = evaluate(loaded, tokenizer, EXAMPLES[:3], "warpup.data:verify", samples=1, max_new_tokens=8)
    assert found.examples == 3


def test_a_merged_model_has_the_same_logits(tmp_path):
    model = Recipe(stages()[:1], merge=True).run(adapted(tmp_path), TOKENIZER, tmp_path / "run")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "model")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_the_kl_of_fresh_adapters_is_to_the_base(tmp_path):
    Recipe([rlvr(steps=3, kl_coef=0.1)]).run(adapted(tmp_path), TOKENIZER, tmp_path / "run")
    kl = [line["ref_kl"] for line in log_of(tmp_path / "run") if "ref_kl" in line]
    assert abs(kl[0]) < 1e-7
    assert kl[-1] > 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": -1}, "lora.r: expected at least 0, got -1"),
        ({"targets": ("q_prog",)}, "no linear layer is called 'q_prog'; this model has .*q_proj"),
        ({"alpha": 0.0}, "expected alpha > 0"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
    ],
)
def test_wrong_settings(tmp_path, settings, message):
    with pytest.raises(TrainError, match=message):
        adapted(tmp_path, **settings)


def test_frozen_weights_are_held_in_bfloat16_and_rotary_frequencies_are_not(tmp_path):
    """A buffer that loses its digits moves every position: 2**-8 of position 1000 are four tokens."""
    adapted(tmp_path)
    config = TrainConfig(model=str(tmp_path / "start"), dtype="bfloat16", lora=LoRA(r=4), device="cpu")
    model, _ = start_model(config)
    kinds = {"lora_" in name: p.dtype for name, p in model.named_parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32}
    base, _ = load_model(tmp_path / "start")
    wanted = dict(base.named_buffers())
    for name, buffer in model.get_base_model().named_buffers():
        assert torch.equal(buffer, wanted[name])
    assert any(buffer.is_floating_point() for buffer in wanted.values())


def test_a_tied_output_layer_is_refused():
    with pytest.raises(TrainError, match="lm_head shares its weight with embed_tokens; leave it out"):
        add_adapters(llama(tie_word_embeddings=True), LoRA(r=2, targets=("lm_head",)))


def test_an_older_peft_is_refused(monkeypatch):
    monkeypatch.setattr(peft, "__version__", "0.18.1")
    with pytest.raises(TrainError, match=r"adapters need the package peft: pip install .*version 0\.18\.1 is here"):
        add_adapters(llama(), LoRA(r=2))


def test_settings_without_a_rank_are_refused():
    with pytest.raises(TrainError, match=r"lora.r is 0 and there are no adapters; set lora.r"):
        LoRA(alpha=8.0).check()


def test_adapters_whose_base_is_gone_say_so(tmp_path):
    Recipe(stages()[:1]).run(adapted(tmp_path), TOKENIZER, tmp_path / "run")
    path = tmp_path / "run" / "model" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "gone"}
    path.write_text(json.dumps(config))
    with pytest.raises(TrainError, match="adapters of the model gone, which is not there any more"):
        load_model(tmp_path / "run" / "model")


def test_adapters_that_change_the_frozen_weights_are_refused(tmp_path):
    """peft subtracts what PiSSA and OLoRA begin with from the base: `disable_adapter` is no reference there."""
    adapted(tmp_path).save_pretrained(tmp_path / "adapters")
    path = tmp_path / "adapters" / "adapter_config.json"
    for kind in ("pissa", "pissa_niter_4", "olora"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": kind}))
        with pytest.raises(TrainError, match=f"init_lora_weights = '{kind}', which changes the frozen weights"):
            load_model(tmp_path / "adapters")


def with_delta(size, bias, frozen, convolution=False):
    """peft's model of one layer whose adapter adds `size` of the weights' size, and that product in float64."""
    torch.manual_seed(0)
    layer = Conv1D(256, 512) if convolution else nn.Linear(512, 256, bias=bias)
    model = nn.Sequential(layer)
    nn.init.normal_(layer.weight, std=512**-0.5)
    model = model.to(frozen)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["0"]))
    module = adapted.base_model.model[0]
    up, down = module.lora_B["default"].weight, module.lora_A["default"].weight
    nn.init.normal_(up, std=1.0)
    nn.init.normal_(down, std=size / 512**0.5 / 8**0.5 / 2)
    x = torch.randn(2, 1024, 512)
    return adapted, module, x, 2 * x.bfloat16().double() @ down.double().T @ up.double().T


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("frozen", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
def test_a_small_delta_arrives_under_bfloat16(bias, frozen, convolution):
    """The share of it that is in the layer's output, by projection: 6 % by peft, all of it here."""
    adapted, module, x, delta = with_delta(1e-4, bias, frozen, convolution)

    def out():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return adapted(x)

    def share():
        up, on = module.lora_B["default"].weight, out()
        kept, up.data = up.data, torch.zeros_like(up)
        off, up.data = out(), kept
        assert on.dtype == torch.bfloat16
        return float(((on.double() - off.double()) * delta).sum() / delta.square().sum())

    assert share() < 0.2
    add_before_rounding(adapted)
    assert share() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_and_values_are_those_of_peft(dropout):
    """Of a delta as large as the weights: in float32 the same bits, under bfloat16 to its rounding."""
    for dtype, close in ((None, 0.0), (torch.bfloat16, 2e-2)):
        found = []
        for ours in (False, True):
            adapted, module, x, _ = with_delta(1.0, True, torch.float32)
            module.lora_dropout["default"] = nn.Dropout(dropout)
            if ours:
                add_before_rounding(adapted)
            torch.manual_seed(1)
            x.requires_grad_()
            with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
                out = adapted(x)
            out.float().square().mean().backward()
            found.append([out, x.grad, *(p.grad for p in adapted.parameters() if p.requires_grad)])
        for one, other in zip(*found, strict=True):
            assert one.dtype == other.dtype
            assert float((one - other).norm() / one.norm()) <= close


def test_merged_weights_keep_a_small_delta():
    """Frozen weights lie on bfloat16's grid; the merged ones are float32."""
    adapted, *_ = with_delta(1e-4, True, torch.bfloat16)
    base = adapted.get_base_model()[0].base_layer.weight.float()
    change = merged(adapted)[0].weight - base
    assert change.dtype == torch.float32
    assert float(change.norm() / base.norm()) == pytest.approx(1e-4, rel=0.3)
    assert adapted.get_base_model()[0].base_layer.weight.dtype == torch.bfloat16


def test_layers_of_gpt2_are_reached_by_name():
    """They are Conv1D, not Linear."""
    model = add_adapters(gpt2(), LoRA(r=2, targets=("c_attn",)))
    assert reach(model)[0] == {"attn.c_attn": 2}
    assert "adapters on 2 x attn.c_attn; none on transformer.wte (" in describe_reach(model)


def test_what_has_no_adapter_is_said():
    """Of a mixture by peft: here the shared experts but not the fused ones, there the fused ones but neither the dense
    layer nor the shared experts."""
    got, left = reach(add_adapters(mixture(), LoRA(r=2)))
    assert got["shared_expert.gate_proj"] == got["self_attn.q_proj"] == 2
    assert "experts.gate_up_proj" in left
    assert not got & left
    got, left = reach(add_adapters(mixture_of("deepseek_v3"), LoRA(r=2)))
    assert got["experts.gate_up_proj"] == 1
    assert left["mlp.gate_proj"] == left["mlp.up_proj"] == 16 * 24
    assert left["shared_experts.down_proj"] == 16 * 12
    with pytest.raises(TrainError, match="lora: peft refuses this model: Cannot convert PEFT target"):
        add_adapters(mixture_of("deepseek_v3"), LoRA(r=2, targets=("gate_proj",)))


def test_a_model_that_peft_refuses():
    config = MambaConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(TrainError, match=r"lora: peft refuses this model: .*incompatible with Mamba"):
        add_adapters(MambaForCausalLM(config), LoRA(r=2))


@pytest.mark.parametrize(
    "make", [gpt2, mixture, lambda: mixture_of("qwen3_moe"), lambda: llama(tie_word_embeddings=True)]
)
def test_merged_logits_are_those_beside_the_weights(make):
    """Fused experts, convolutions, a tied output layer; after their adapters have become something."""
    torch.manual_seed(0)
    model = add_adapters(make(), LoRA(r=2)).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    base = model(ids).logits
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    beside = model(ids).logits
    torch.testing.assert_close(merged(model)(ids).logits, beside, rtol=1e-4, atol=1e-5)
    assert float((beside - base).detach().abs().max()) > 1e-3
    beside.logsumexp(-1).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not silent
