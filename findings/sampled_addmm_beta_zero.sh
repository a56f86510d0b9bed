#!/usr/bin/env bash
# torch.sparse.sampled_addmm: with beta=0 the input's NaN and inf come through, where torch.addmm ignores them.
#
# sampled_addmm makes the products at the places of a sparse matrix, alpha * (a @ b) + beta * input. torch.addmm documents
# that with beta=0 the input is not read. Here it is multiplied by 0, so a pattern whose values were never written (an
# empty tensor) can turn the result into NaN by chance. Give the pattern zeros.
#
# Seen with torch 2.13.0 (CPU), products of ones over 3 columns:
#   input 0.0  sampled_addmm [3.0, 3.0]  addmm 3.0
#   input nan  sampled_addmm [nan, nan]  addmm 3.0
#   input inf  sampled_addmm [nan, nan]  addmm 3.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import math
import warnings

import torch

warnings.simplefilter("ignore")
a, b, found = torch.ones(2, 3), torch.ones(3, 2), {}
for value in (0.0, math.nan, math.inf):
    pattern = torch.sparse_csr_tensor([0, 1, 2], [0, 1], torch.full((2,), value), (2, 2))
    sparse = torch.sparse.sampled_addmm(pattern, a, b, beta=0.0).values()
    dense = torch.addmm(torch.full((2, 2), value), a, b, beta=0.0)
    print(f"input {value}  sampled_addmm {sparse.tolist()}  addmm {dense[0, 0].item()}")
    found[str(value)] = (bool(sparse.isnan().any()), bool(dense.isnan().any()))
assert found == {"0.0": (False, False), "nan": (True, False), "inf": (True, False)}, found
PYTHON
