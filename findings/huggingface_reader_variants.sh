#!/usr/bin/env bash
# torch's HuggingFaceStorageReader reads all safetensors files of a folder: of a name that is in two, either one.
#
# A folder of Hugging Face may hold more than one set of weights: save_pretrained(variant="ema") writes
# model.ema.safetensors beside model.safetensors, and from_pretrained takes the latter unless it is told. The reader of
# torch.distributed.checkpoint for this format looks neither at names nor at an index file. It opens every file that ends
# in .safetensors, and where a tensor is in several keeps the last that the directory lists, an order that nobody
# chooses. Shapes fit, so nothing is said. The same goes for files that an earlier checkpoint left behind.
#
# Seen with torch 2.13.0 (CPU), transformers 5.24.0, 8 folders with a variant each, on ext4 (another file
# system may list in another order):
#   model.safetensors is what was read
#   from_pretrained           8 of 8
#   HuggingFaceStorageReader  2 of 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import torch
import torch.distributed.checkpoint as dcp
import transformers

config = transformers.LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
)
model = transformers.LlamaForCausalLM(config)
right = {"from_pretrained": 0, "HuggingFaceStorageReader": 0}
for name in ("ema", "fp16", "best", "old"):
    for order in ((None, name), (name, None)):  # which of the two was written first
        where = f"{sys.argv[1]}/{name}-{order[0]}"
        for variant in order:
            torch.nn.init.constant_(model.model.norm.weight, 1.0 if variant is None else 2.0)
            model.save_pretrained(where, variant=variant)
        loaded = transformers.LlamaForCausalLM.from_pretrained(where).model.norm.weight
        read = {"model.norm.weight": torch.zeros(8)}
        dcp.load(read, storage_reader=dcp.HuggingFaceStorageReader(where), no_dist=True)
        right["from_pretrained"] += int(loaded[0] == 1)
        right["HuggingFaceStorageReader"] += int(read["model.norm.weight"][0] == 1)
print("model.safetensors is what was read")
for name, count in right.items():
    print(f"{name:25} {count} of 8")
assert right["from_pretrained"] == 8 > right["HuggingFaceStorageReader"], right
PYTHON
