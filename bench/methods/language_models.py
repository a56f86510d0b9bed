"""What the arms of language.py share: two plain texts, small models, a loop of steps.

The texts are in every Python: the manual of the language, "docs", and the source of its library, "code".
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from warpup import token_logprob, weighted_nll
from warpup.optim import warmup_stable_decay

MODULES = ("argparse", "configparser", "difflib", "inspect", "smtplib", "statistics", "tarfile", "zipfile")
VOCABULARY, WINDOW = 512, 64  # tokens


@dataclass(frozen=True)
class Size:
    """How long an arm trains, and models of which width; an arm whose task needs more or less takes a part of it."""

    steps: int = 128
    batch: int = 16
    width: int = 64
    layers: int = 2


# ---- Texts ----------------------------------------------------------------------------------------------------------


@functools.cache
def text(part: str) -> str:
    """The text "docs" or "code", some 400,000 characters of either."""
    if part == "docs":
        topics = import_module("pydoc_data.topics").topics
        return "\n".join(topics[name] for name in sorted(topics))
    return "\n".join(inspect.getsource(import_module(name)) for name in MODULES)


@functools.cache
def text_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, learned from both."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<eos>"], **options)
    bpe.train_from_iterator([text(part)[:200_000] for part in ("docs", "code")], trainer)
    tokens = {"pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **tokens)


@functools.cache
def windows(part: str, held_out: bool = False) -> Tensor:
    """(n, WINDOW): a text's tokens in windows one after the other, of which every tenth is held out."""
    ids = torch.tensor(text_tokenizer().backend_tokenizer.encode(text(part)).ids)
    rows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    return rows[(torch.arange(len(rows)) % 10 == 0) == held_out]


def drawn(parts: Sequence[str], batch: int, seed: int) -> Callable[[int], Tensor]:
    """Batch i: windows drawn at random, as many of each text."""
    sources = [windows(part) for part in parts]

    def of_step(i: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + i)
        picks = [source[torch.randint(len(source), (batch,), generator=generator)] for source in sources]
        return torch.stack(picks, 1).flatten(0, 1)[:batch]

    return of_step


def examples(rows: Tensor, **columns: str) -> list[dict[str, str]]:
    """Windows as plain texts, for the trainer."""
    return [{"prompt": "", "completion": said, **columns} for said in text_tokenizer().batch_decode(rows)]


# ---- Models and their training --------------------------------------------------------------------------------------


def llama(size: Size, seed: int, vocabulary: int = VOCABULARY, **options) -> LlamaForCausalLM:
    """A fresh model; its pad and end tokens are 0 and 1."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": size.width, "intermediate_size": 8 * size.width // 3, "num_hidden_layers": size.layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "vocab_size": vocabulary,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**shape | options))


def nll(model, ids: Tensor) -> Tensor:
    """Mean -log p of all tokens (B, T) but the first."""
    logp = token_logprob(model(input_ids=ids, use_cache=False).logits[:, :-1], ids[:, 1:].contiguous())
    return weighted_nll(logp, torch.ones_like(logp))


@torch.no_grad()
def losses(model) -> dict[str, float]:
    """The same of held-out windows of either text, and the mean of both."""
    found = {part: float(nll(model, windows(part, held_out=True)[:96])) for part in ("docs", "code")}
    return found | {"loss": sum(found.values()) / 2}


def rise(steps: int) -> Callable[[int], float]:
    """A rate that rises over the first steps and stays."""
    return lambda i: min(1.0, (i + 1) / max(1, steps // 16))


def fall(steps: int) -> Callable[[int], float]:
    """The same, with a linear decay over the last half of the steps."""
    return warmup_stable_decay(steps, steps // 2, warmup=max(1, steps // 16), shape="linear")


def train(
    model,
    batch: Callable[[int], Any],
    steps: range,
    factor: Callable[[int], float],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Callable[..., Tensor] = nll,
    after: Callable[[int], None] = lambda step: None,
) -> torch.optim.Optimizer:
    """Steps of AdamW on batch(i), at factor(i) times the rate of each of the optimizer's groups; after(i + 1) is
    called behind each."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for i in steps:
        loss(model, batch(i)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * factor(i)
        optimizer.step()
        optimizer.zero_grad()
        after(i + 1)
    return optimizer
