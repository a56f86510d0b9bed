#!/usr/bin/env bash
# torch.set_flush_denormal reaches the calling thread alone: of one operation some elements are flushed, others not.
#
# The function returns True and sets a flag of the CPU core that its own thread runs on. torch's other threads go on
# without it, whether they were started before or after. So the result of one elementwise operation depends on which
# thread an element fell to, and on the number of threads; small tensors, which one thread computes, are flushed as a
# whole. On one thread all are.
#
# Seen with torch 2.13.0 (CPU), 2^20 times 5e-41, the share that is not 0:
#   1 thread    before 1.0  under the flag 0.0
#   2 threads   before 1.0  under the flag 0.5
set -euo pipefail
[ "$(nproc)" -ge 2 ] || { echo "needs two CPUs"; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/show.py" <<'PYTHON'
import sys

import torch

threads = int(sys.argv[1])
torch.set_num_threads(threads)
small = torch.full((1 << 20,), 1e-40)
shares = []
for flag in (False, True):
    assert torch.set_flush_denormal(flag)
    shares.append((small * 0.5).view(torch.int32).ne(0).double().mean().item())
print(f"{threads} thread{'s' * (threads > 1):3} before {shares[0]}  under the flag {shares[1]}")
assert shares == ([1.0, 0.0] if threads == 1 else [1.0, 0.5]), shares
PYTHON
for threads in 1 2; do "$folder/venv/bin/python" "$folder/show.py" "$threads"; done
