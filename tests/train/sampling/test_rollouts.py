"""The sampler is honest."""

import math

import pytest
import torch
import transformers

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    completion_logprob,
    gpt2,
    llama,
)
from warpup.train import (
    TrainError,
    rollout,
)
from warpup.train.model.batch import collate
from warpup.train.model.heads import Head
from warpup.train.model.tokens import encode_pair
from warpup.train.sampling.decoding import DecodingState, DecodingStrategy, Filters

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.filterwarnings("error")  # a cache under an old name of the argument, for one
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_log_probs_equal_teacher_forcing(make, temperature):
    model = make().eval()
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:5]]
    assert len({len(p) for p in prompts}) > 1  # left padding is at work
    rolls = rollout(
        model, prompts, eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=24, copies=6, temperature=temperature,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert 0 < rolls.finished.sum() < 30  # rows were dropped on the way
    for row in range(30):
        completion = rolls.completion(row)
        batch = collate([(prompts[row // 6], completion)], [0], pad=0)
        logp = completion_logprob(model, batch, temperature)
        torch.testing.assert_close(rolls.logp[row, : len(completion)], logp, atol=2e-5, rtol=1e-5)
        assert (completion[-1] == TOKENIZER.eos_token_id) == bool(rolls.finished[row])
        assert TOKENIZER.eos_token_id not in completion[:-1]
        assert not rolls.tokens[row, len(completion) :].any()
        assert not rolls.logp[row, len(completion) :].any()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_greedy_rollout_equals_generate(make):
    model = make().eval()
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:6]]
    rolls = rollout(model, prompts, eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=20, temperature=0)
    for row, prompt in enumerate(prompts):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20, do_sample=False
        )
        assert rolls.completion(row) == expected[0, len(prompt) :].tolist()


SHAPE = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0,
    "eos_token_id": TOKENIZER.eos_token_id, "bos_token_id": TOKENIZER.bos_token_id,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1}
RECURRENT = {
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Mamba": {"state_size": 8},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1, "expand": 2},
    "FalconH1": MAMBA | {"mamba_d_ssm": 64, "head_dim": 8},
    "GraniteMoeHybrid": MAMBA
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
       "shared_intermediate_size": 32},
    "Qwen3Next": {
        "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    },
    "Gemma3Text": {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_hybrid_and_sliding_window_models(name):
    """Their caches are of several kinds; rows are copied, drawn in a batch with padding, and dropped."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config", None)
    if config is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config(**SHAPE | RECURRENT[name])).eval()
    prompts, head = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11]], Head(model)
    rolls = rollout(
        model, prompts, eos=[2, 7, 9, 11, 13], pad=0, max_new_tokens=12, copies=3,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert rolls.finished.sum() > 0
    for row in range(9):
        completion = rolls.completion(row)
        batch = collate([(prompts[row // 3], completion)], [0], pad=0)
        want = completion_logprob(head, batch)
        torch.testing.assert_close(rolls.logp[row, : len(completion)], want, atol=1e-4, rtol=1e-4)


def test_a_model_that_cannot_generate_is_named():
    model = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    )
    with pytest.raises(TrainError, match="RwkvForCausalLM: its forward takes none of cache"):
        rollout(model, [[5]], eos=2, pad=0, max_new_tokens=3)


def test_finished_rows_leave_the_batch():
    model = llama().eval()
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_token_id] *= 3  # many rows end early
    sizes, forward = [], model.forward
    model.forward = lambda **inputs: sizes.append(len(inputs["input_ids"])) or forward(**inputs)
    rolls = rollout(
        model, [[5, 6]], eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=40, copies=64,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert sizes[0] == 1  # the prompt ran once
    assert sum(sizes[1:]) <= rolls.lengths.sum().item() * 1.12  # not 64 * longest
    assert sum(sizes[1:]) < 0.7 * 64 * rolls.lengths.max().item()


def test_filters_keep_to_the_nucleus_and_the_log_prob_is_that_of_what_is_left():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(2000, 1)
    seeds, rows = torch.arange(2000), torch.arange(2000)

    def drawn(**filters):
        return DecodingState(DecodingStrategy(), [[]] * 2000, seeds, Filters(**filters)).sample(logits, rows)

    assert set(drawn(top_p=0.75).token.tolist()) == {0, 1}
    assert set(drawn(top_k=3).token.tolist()) == {0, 1, 2}
    assert set(drawn(min_p=0.2).token.tolist()) == {0, 1, 2}
    assert set(drawn().token.tolist()) == {0, 1, 2, 3}
    share = (drawn(temperature=0.5).token == 0).float().mean().item()
    assert share == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.04)
    step = drawn(top_p=0.75)
    torch.testing.assert_close(step.logp, torch.tensor([0.5 / 0.8, 0.3 / 0.8]).log()[step.token])
    torch.testing.assert_close(step.kept, torch.full((2000,), 0.8))


def test_rows_bound_the_batch_and_change_nothing():
    model = llama().eval()
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:3]]
    sizes, forward = [], model.forward
    model.forward = lambda **inputs: sizes.append(len(inputs["input_ids"])) or forward(**inputs)

    def sampled(rows):
        generator = torch.Generator().manual_seed(3)
        return rollout(
            model, prompts, eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=16, copies=4, rows=rows,
            generator=generator,
        )  # fmt: skip

    whole = sampled(None)
    for rows in (1, 3, 5):  # less than a group, and cut through groups
        sizes.clear()
        part = sampled(rows)
        assert max(sizes) == rows
        assert torch.equal(part.tokens, whole.tokens)
        assert torch.equal(part.finished, whole.finished)
        torch.testing.assert_close(part.logp, whole.logp)


def test_nan_logits_name_the_place():
    model = llama().eval()
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(TrainError, match="logits are NaN at generated token 0"):
        rollout(model, [[5]], eos=2, pad=0, max_new_tokens=3)


def test_layers_sample_in_eval_mode_and_go_back():
    """Checkpointed ones are in training mode, in which older transformers leave their cache out."""
    model, seen = llama().eval(), set()
    layer = model.model.layers[0]
    layer.training = True
    layer.register_forward_pre_hook(lambda module, _: seen.add(module.training))
    rollout(model, [[5, 6]], eos=2, pad=0, max_new_tokens=3)
    assert seen == {False}
    assert [module for module in model.modules() if module.training] == [layer]
