#!/usr/bin/env bash
# torch.autocast: a weight that is changed inside the context goes on being the old one, even by an in-place copy.
#
# Autocast casts each trainable float32 weight once and keeps the cast until the outermost context is left. The cast is
# looked up by the tensor, not by its version: after `weight.copy_(...)` or `weight.data = ...` (a reference model swapped
# in, an EMA, merged adapters, an optimizer's step) layers compute with the weight as it was. No error, no warning.
# Right: leave the context first, or open it with cache_enabled=False.
#
# Seen with torch 2.13.0 (CPU), a layer of ones on ones (4 before), its weight then set to 0:
#   cached       before 4.0  after copy_ 4.0  in a new context 0.0
#   not cached   before 4.0  after copy_ 0.0  in a new context 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch

found = {}
for name, cached in (("cached", True), ("not cached", False)):
    layer, x = torch.nn.Linear(4, 1, bias=False), torch.ones(1, 4)
    torch.nn.init.ones_(layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
        before = layer(x).item()
        with torch.no_grad():
            layer.weight.copy_(torch.zeros(1, 4))
        after = layer(x).item()
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
        anew = layer(x).item()
    found[name] = [before, after, anew]
    print(f"{name:12} before {before}  after copy_ {after}  in a new context {anew}")
assert found == {"cached": [4.0, 4.0, 0.0], "not cached": [4.0, 0.0, 0.0]}, found
PYTHON
