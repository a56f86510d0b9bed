"""Small configurations of transformers' mixture models, for the tests of what works on any of them."""

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")
import warpup.integrations.transformers  # noqa: E402, F401

COMMON = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
DEEPSEEK = {**LATENT, "intermediate_size": 24, "moe_intermediate_size": 12, "first_k_dense_replace": 1}
DEEPSEEK |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 4, "topk_group": 2}
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10, "head_dim": 8}
MODELS = {
    "qwen3_moe": ("Qwen3MoeConfig", QWEN, "silu"),
    "qwen3_moe gelu": ("Qwen3MoeConfig", {**QWEN, "hidden_act": "gelu_pytorch_tanh"}, "gelu_tanh"),
    "olmoe": ("OlmoeConfig", {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 10}, "silu"),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 10}, "silu"),
    "deepseek_v2": ("DeepseekV2Config", {**DEEPSEEK, "topk_method": "group_limited_greedy"}, "silu"),
    "deepseek_v3": ("DeepseekV3Config", DEEPSEEK, "silu"),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "intermediate_size": 12, "head_dim": 8}, "swiglu_oai"),
    "gpt_oss, another limit": (
        "GptOssConfig",
        {"num_local_experts": 4, "intermediate_size": 12, "head_dim": 8, "swiglu_limit": 0.2},
        None,  # composed around the module's own activation
    ),
}


def mixture_of(name):
    """A model of MODELS, as initialised; skips the test where transformers lacks it."""
    kind, options, _ = MODELS[name]
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**COMMON, **options)
    return transformers.AutoModelForCausalLM.from_config(config, experts_implementation="warpup")
