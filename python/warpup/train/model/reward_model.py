"""A model that scores: the steps of a solution, or completions as a whole, by a value head on its hidden states.

Its folder is that of a language model, as `transformers` or `peft` saves it, with beside the weights
    score.safetensors   the value head
    score.json          what it scores, and what stands between steps
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import checkpoint
from ..checksums import seal
from ..errors import TrainError
from ..files import read_table, read_tensors, write_folder
from .batch import Batch, micro_batches
from .fsdp import full_state
from .heads import Head
from .load_model import load_model
from .precision import autocast_dtype, computing
from .tokens import TokenPair, Tokens, encode_pair, encode_prompt, end_tokens
from .value_head import ValueHead

WEIGHTS, ABOUT = "score.safetensors", "score.json"
Marked = tuple[Tokens, Tokens, list[bool]]  # a token pair, and the tokens in front of which a score is read


@dataclass(frozen=True)
class RewardModel:
    """A language model with a value head. scores: "steps", the logit of each step being right; or "completions",
    numbers of which the higher is better; or "progress", what each step gives to the whole. separator: what stands
    between steps."""

    model: Any
    tokenizer: Any
    value: ValueHead
    scores: Literal["steps", "progress", "completions"]
    separator: str = "\n"

    @functools.cached_property
    def head(self) -> Head:
        """The model's output layer taken apart: here only its hidden states are wanted."""
        return Head(self.model)

    def steps(self, example: Mapping[str, Any], steps: Sequence[str]) -> Marked:
        """An example's prompt and steps as tokens, to be read behind each step and its separator."""
        ids: Tokens = []
        ends = []
        for step in steps:
            for text in (step, self.separator):
                ids += self.tokenizer(text, add_special_tokens=False)["input_ids"]
            ends.append(len(ids))
        return self._read_at(encode_prompt(self.tokenizer, example["prompt"], example), ids, ends)

    def whole(self, example: Mapping[str, Any], completion: Any, finished: bool = True) -> Marked:
        """An example's prompt and a completion, to be read behind its end token, or where the limit cut it off."""
        ends = end_tokens(self.model, self.tokenizer)
        prompt, ids = encode_pair(self.tokenizer, {**example, "completion": completion}, ends)
        ids = ids if finished else ids[:-1]
        return self._read_at(prompt, ids, [len(ids)])

    def _read_at(self, prompt: Tokens, ids: Tokens, ends: Sequence[int]) -> Marked:
        """A batch holds the hidden state in front of each marked token, which has read all before it; one token more
        makes a place behind the last."""
        marked = set(ends)
        return prompt, [*ids, self.tokenizer.pad_token_id], [n in marked for n in range(len(ids) + 1)]

    def read(self, batch: Batch) -> Tensor:
        """(N,) float32: the scores of a batch of such pairs, one row after the other."""
        return self.value(self.head.hidden(batch))

    @torch.no_grad()
    def score(self, pairs: Sequence[TokenPair], max_tokens: int) -> list[list[float]]:
        """The scores of each pair, in pieces of at most `max_tokens` padded tokens."""
        found: list[list[float]] = [[] for _ in pairs]
        dtype, device = autocast_dtype("auto", self.model), self.value.weight.device
        for batch in micro_batches(pairs, range(len(pairs)), self.tokenizer.pad_token_id, max_tokens, device):
            with computing(self.model, dtype):
                values = self.read(batch)
            for n, row in zip(batch.rows, values.split(batch.mask.sum(1).tolist()), strict=True):
                found[n] = row.tolist()
        return found

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all. All ranks call it, the first one writes."""
        state = full_state(self.model)

        def fill(path: Path) -> None:
            checkpoint.save_weights(self.model, self.tokenizer, path, state)
            save_file({k: v.detach().contiguous() for k, v in self.value.state_dict().items()}, path / WEIGHTS)
            (path / ABOUT).write_text(json.dumps({"scores": self.scores, "separator": self.separator}) + "\n")
            seal(path)

        write_folder(folder, fill)


def about(folder: str | Path) -> dict[str, Any]:
    """What the reward model in a folder scores and what stands between steps; TrainError if there is none."""
    if not (Path(folder) / ABOUT).is_file():
        raise TrainError(
            f"{folder} holds no reward model; a run with the stage step_reward writes one, to its folder reward"
        )
    return read_table(Path(folder) / ABOUT, "scores", "separator")


def load_reward_model(folder: str | Path, device: str | torch.device = "cpu") -> RewardModel:
    """The reward model in a folder, ready to score; TrainError if there is none."""
    told = about(folder)
    model, tokenizer = load_model(folder, device=device)
    path = Path(folder) / WEIGHTS
    state, value = read_tensors(path, str(device)), ValueHead(model.config.get_text_config().hidden_size, device)
    checkpoint.check_tensors(path, state, value.state_dict())
    value.load_state_dict(state)
    return RewardModel(model.eval().requires_grad_(False), tokenizer, value.requires_grad_(False), **told)


def split_steps(text: str, separator: str) -> list[str]:
    """The steps of a text that are not empty; of an empty text, one empty step."""
    return [step for step in text.split(separator) if step.strip()] or [""]


def step_ends(pieces: Sequence[str], separator: str) -> list[int]:
    """For each step of a text that comes in pieces (tokens), which of them ends it."""
    behind = list(accumulate(map(len, pieces)))
    found, at = [], 0
    for step in "".join(pieces).split(separator):
        at += len(step)
        if step.strip():
            found.append(next(n for n, end in enumerate(behind) if end >= at))
        at += len(separator)
    return found or [len(pieces) - 1]
