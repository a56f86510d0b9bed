#!/usr/bin/env bash
# Mamba in transformers: the whole attention mask beside a cache is silently wrong for rows with padding.
#
# Every attention model is called with the mask of all tokens so far when it decodes with a cache, so a decoding loop of
# one's own does the same for a Mamba. There the mask is multiplied onto the one new token's states by broadcasting: no
# error, logits of the right shape, and for a row that was padded on the left other logits than those of the row alone.
# A row without padding is right. Right everywhere: no mask at all once the cache holds the prompt (what `generate`
# does by itself), or the mask's last column.
#
# Seen with torch 2.13.0 (CPU), transformers 5.24.0, a random Mamba of two layers:
#   no mask       (2, 1, 64) off by 1.8e-07 (padded row), 1.5e-07 (other row)
#   whole mask    (2, 1, 64) off by 4.1e-01 (padded row), 2.4e-07 (other row)
#   last column   (2, 1, 64) off by 1.8e-07 (padded row), 1.5e-07 (other row)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers

torch.manual_seed(0)
config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
model = transformers.MambaForCausalLM(config).eval()
prompt, token = torch.randint(3, 64, (2, 6)), torch.randint(3, 64, (2, 1))
mask = torch.ones(2, 7, dtype=torch.long)
mask[0, :2] = 0  # the first row has two tokens of padding on its left
rows = [torch.cat([prompt[0, 2:], token[0]]), torch.cat([prompt[1], token[1]])]
found = {}
with torch.no_grad():
    alone = torch.stack([model(row[None]).logits[0, -1] for row in rows])
    for name, given in (("no mask", None), ("whole mask", mask), ("last column", mask[:, -1:])):
        begun = model(prompt, attention_mask=mask[:, :6], use_cache=True)
        step = model(token, attention_mask=given, cache=begun.cache, use_cache=True).logits
        off = (step[:, -1] - alone).abs().amax(1).tolist()
        print(f"{name:12}  {tuple(step.shape)} off by {off[0]:.1e} (padded row), {off[1]:.1e} (other row)")
        found[name] = [value > 1e-3 for value in off]
assert found == {"no mask": [False, False], "whole mask": [True, False], "last column": [False, False]}, found
PYTHON
