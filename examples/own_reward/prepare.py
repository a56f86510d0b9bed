"""Makes what train.toml names: a model folder `start/` and `train.jsonl`, `test.jsonl`.

    python prepare.py

The task: add two small numbers. The model is a random one of a few thousand parameters with a tokenizer of whole
words; with a checkpoint of yours, name its folder in train.toml and write only the two files.
"""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def rows(count: int, seed: int) -> list[dict]:
    """Examples: `prompt` for both stages, `completion` to imitate in the warm-up, `answer` for the reward."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(10), draw.randrange(10)) for _ in range(count)]
    return [{"prompt": f"{a} + {b} =", "completion": f"{a + b}", "answer": str(a + b)} for a, b in pairs]


def main() -> None:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "+", "=", *map(str, range(19))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.save_pretrained("start")

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)
    ).save_pretrained("start")
    for name, count, seed in (("train", 200, 0), ("test", 50, 1)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed)))


if __name__ == "__main__":
    main()
