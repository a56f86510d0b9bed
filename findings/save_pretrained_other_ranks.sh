#!/usr/bin/env bash
# save_pretrained in transformers: under torch.distributed all ranks but the first write nothing, whatever is asked.
#
# `is_main_process` says which process saves and is True by default; its documentation asks to set it to False elsewhere,
# to avoid races. But where a process group exists, every rank above 0 returns with an empty folder: no error, no warning,
# also with is_main_process=True and a folder of its own. Who trains another model on each rank (an ensemble, a
# population, a sweep under one launcher) has the first one's weights only. The tokenizer beside it is saved by all.
#
# Seen with torch 2.13.0 (CPU), transformers 5.24.0, two processes over gloo, each with a model and a folder of its own:
#   rank 0: config.json generation_config.json model.safetensors
#   rank 1: nothing
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
cat > "$folder/each.py" <<'PYTHON'
import os
import sys

import torch
import transformers

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
config = transformers.LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
)
torch.manual_seed(rank)
mine = f"{sys.argv[1]}/of-rank-{rank}"
transformers.LlamaForCausalLM(config).save_pretrained(mine, is_main_process=True)
torch.distributed.barrier()
if rank == 0:
    found = [sorted(os.listdir(f"{sys.argv[1]}/of-rank-{r}")) for r in range(2)]
    for r, names in enumerate(found):
        print(f"rank {r}: {' '.join(names) or 'nothing'}")
    assert "model.safetensors" in found[0] and found[1] == [], found
torch.distributed.destroy_process_group()
PYTHON
"$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 "$folder/each.py" "$folder"
