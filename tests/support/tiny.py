"""Models of a few thousand parameters and short stages for them, for the tests of the trainer."""

import json

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from warpup.data import example, knights_and_knaves, word_tokenizer
from warpup.train import RLVR, Warmup
from warpup.train.model.heads import Head
from warpup.train.model.load_model import use_experts

TOKENIZER = word_tokenizer()

EXAMPLES = [example(puzzle) for puzzle in knights_and_knaves(40, seed=1)]


def llama(seed=0, **overrides):
    """A model of a few thousand parameters; attention reaches everywhere, so padding mistakes would show."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": TOKENIZER.pad_token_id,
        "eos_token_id": TOKENIZER.eos_token_id,
        "bos_token_id": TOKENIZER.bos_token_id,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | overrides))


def mixture(seed=0, **overrides):
    """Routed and shared experts, on warpup's operators."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "initializer_range": 0.2,
        "router_aux_loss_coef": 0.05, "pad_token_id": TOKENIZER.pad_token_id,
        "eos_token_id": TOKENIZER.eos_token_id, "bos_token_id": TOKENIZER.bos_token_id,
    }  # fmt: skip
    return use_experts(Qwen2MoeForCausalLM(Qwen2MoeConfig(**settings | overrides)))


def gpt2(seed=0):
    """Another architecture: learned absolute positions, tied embeddings."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.2,
        pad_token_id=TOKENIZER.pad_token_id, eos_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def completion_logprob(model, batch, temperature=1.0, **replay):
    """(N,) log-probs of a batch's completion tokens, one row after the other; of a model or its `Head`."""
    head = model if isinstance(model, Head) else Head(model)
    return head.logprob(head.hidden(batch), batch.completion, temperature, **replay)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_of(out, name):
    return [(line["step"], line[name]) for line in log_of(out) if name in line]


def warmup(**overrides):
    return Warmup(
        **{"data": EXAMPLES, "steps": 8, "batch_size": 4, "lr": 1e-2, "lr_warmup": 2, "save_every": 3} | overrides
    )


def length_reward(completion, example):
    return len(set(completion.split())) / 8


def rlvr(**overrides):
    settings = {
        "data": EXAMPLES, "reward": length_reward, "steps": 6, "prompts": 3, "samples": 4, "max_new_tokens": 8,
        "lr": 1e-2, "save_every": 2,
    }  # fmt: skip
    return RLVR(**settings | overrides)


class Killed(BaseException):
    pass


def killer(at):
    """A report that dies after a step, as a kill would: nothing of that step is saved."""

    def report(stage, step, steps, numbers):
        if step == at:
            raise Killed

    return report
