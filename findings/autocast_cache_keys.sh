#!/usr/bin/env bash
# transformers under torch.autocast: the key/value cache of a model with rotary positions holds keys in float32.
#
# Generating under autocast to bfloat16 one counts 2 bytes a number for the cache. The rotation is no matrix product, so
# autocast leaves it alone: its cosines are float32, as the embeddings are, and bfloat16 keys times them are float32
# again. Values are not rotated and stay bfloat16. So the cache takes 1.5 times what was counted. Learned positions
# (GPT-2) and weights that are bfloat16 themselves give what one expects.
#
# Seen with torch 2.13.0 (CPU), transformers 5.24.0, random models:
#   Llama, autocast          keys torch.float32   values torch.bfloat16
#   Llama, weights bfloat16  keys torch.bfloat16  values torch.bfloat16
#   GPT-2, autocast          keys torch.bfloat16  values torch.bfloat16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers

llama = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)
gpt2 = transformers.GPT2Config(
    vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
)
models = {
    "Llama, autocast": (transformers.LlamaForCausalLM(llama), True),
    "Llama, weights bfloat16": (transformers.LlamaForCausalLM(llama).bfloat16(), False),
    "GPT-2, autocast": (transformers.GPT2LMHeadModel(gpt2), True),
}
found = {}
for name, (model, cast) in models.items():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=cast):
        layer = model.eval()(torch.tensor([[1, 2, 3]]), use_cache=True).cache.layers[0]
    print(f"{name:23}  keys {str(layer.keys.dtype):14}  values {layer.values.dtype}")
    found[name] = (layer.keys.dtype, layer.values.dtype)
half = torch.bfloat16
assert found == dict(zip(models, [(torch.float32, half), (half, half), (half, half)], strict=True)), found
PYTHON
