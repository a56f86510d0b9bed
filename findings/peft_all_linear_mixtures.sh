#!/usr/bin/env bash
# peft's target_modules="all-linear" on mixtures: the router of one family, no routed expert of another, without a word.
#
# "all-linear" is documented as every linear layer but the output layer, and transformers keeps the experts of all these
# models as fused parameters, which are no linear layers, and so the router of most. Yet in Qwen3-MoE, Mixtral and OLMoE
# it reaches both the fused experts and the router, whose adapter changes which experts a token meets; in Qwen2-MoE it
# reaches the shared expert and its gate, but neither router nor routed experts; in gpt-oss and Granite's mixture the
# attention alone. Nothing is said of what was left out. Right: names in target_modules and target_parameters, and a
# look at what got an adapter.
#
# Seen with torch 2.13.0 (CPU), transformers 5.24.0, peft 0.21.2, random models of one layer:
#   Qwen3Moe    attention, experts, router
#   Mixtral     attention, experts, router
#   Olmoe       attention, experts, router
#   Qwen2Moe    attention, shared expert
#   GptOss      attention
#   GraniteMoe  attention
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import peft
import transformers

common = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "num_key_value_heads": 2, "eos_token_id": 2, "intermediate_size": 10, "num_experts_per_tok": 2}
inner = {"moe_intermediate_size": 10, "num_experts": 6}
models = {
    "Qwen3Moe": inner | {"head_dim": 8}, "Mixtral": {"num_local_experts": 4}, "Olmoe": {"num_experts": 6},
    "Qwen2Moe": inner | {"shared_expert_intermediate_size": 10}, "GptOss": {"num_local_experts": 4, "head_dim": 8},
    "GraniteMoe": {"num_local_experts": 4},
}
parts = {"attention": "self_attn", "experts": "mlp.experts", "shared expert": "shared_expert", "router": "mlp.gate."}
found = {}
for name, options in models.items():
    config = getattr(transformers, f"{name}Config")(**common | options)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted = [n for n, _ in model.named_parameters() if "lora_A" in n]
    found[name] = [part for part, where in parts.items() if any(where in n for n in adapted)]
    print(f"{name:11} {', '.join(found[name])}")
want = [["attention", "experts", "router"]] * 3 + [["attention", "shared expert"]] + [["attention"]] * 2
assert list(found.values()) == want, found
PYTHON
