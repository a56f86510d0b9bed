#!/usr/bin/env bash
# torch.fx: `y += 1` on a view is traced as `y + 1`, so the traced module computes something else, silently.
#
# symbolic_trace records Python's in-place operators through their out-of-place form, since a proxy has no __iadd__. In the
# module the tensor behind the view changes; in the trace nothing does, and the line is dead code. `y.add_(1)` is recorded
# as it is. Whoever bounds, quantizes or prunes a module by its fx graph works on another function. torch.export is right.
#
# Seen with torch 2.13.0 (CPU):
#   operator  module [20.0, 30.0]  fx [10.0, 20.0]  export [20.0, 30.0]
#   method    module [20.0, 30.0]  fx [20.0, 30.0]  export [20.0, 30.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/show.py" <<'PYTHON'
import torch


class Operator(torch.nn.Module):
    def forward(self, x):
        view = x.view(-1)
        view += 1
        return x * 10


class Method(torch.nn.Module):
    def forward(self, x):
        view = x.view(-1)
        view.add_(1)
        return x * 10


x, found = torch.tensor([1.0, 2.0]), {}
for module in (Operator(), Method()):
    name = type(module).__name__.lower()
    traced = torch.fx.symbolic_trace(module)
    exported = torch.export.export(module, (x.clone(),)).module()
    found[name] = [each(x.clone()).tolist() for each in (module, traced, exported)]
    print(f"{name:9} module {found[name][0]}  fx {found[name][1]}  export {found[name][2]}")
right, wrong = [20.0, 30.0], [10.0, 20.0]
assert found == {"operator": [right, wrong, right], "method": [right, right, right]}, found
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
