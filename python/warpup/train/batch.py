"""From examples to tokens to padded batches, and the log-probs of a batch's completion tokens under a model."""

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from warpup import replay_logprob, token_logprob

from .errors import TrainError

IGNORE = -100  # target of a position that carries no loss

Tokens = list[int]
TokenPair = tuple[Tokens, Tokens]  # of a prompt and of its completion


def check_tokenizer(model, tokenizer) -> None:
    """Raise TrainError unless the tokenizer has pad and end tokens and all its ids fit the model's embedding."""
    for kind in ("pad", "eos"):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            cure = "tokenizer.pad_token = tokenizer.eos_token" if kind == "pad" else "tokenizer.eos_token = '...'"
            raise TrainError(f"the tokenizer has no {kind} token: set one ({cure}) and save the tokenizer again")
    rows, words = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if words > rows:
        raise TrainError(
            f"tokenizer and model do not fit: the tokenizer has {words} tokens, the model's embedding {rows} rows; "
            "load the model's own tokenizer or call model.resize_token_embeddings(len(tokenizer))"
        )


def check_length(model, length: int, what: str) -> None:
    """Raise TrainError if `length` tokens are more than the model has positions for."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and length > limit:
        raise TrainError(f"{what} has {length} tokens, the model takes at most {limit}")


def encode_prompt(tokenizer, prompt) -> Tokens:
    """Token ids of a prompt: a string (special tokens as the tokenizer adds them) or a list of chat messages."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
    if not ids:
        raise TrainError(f"a prompt has no tokens: {prompt!r}")
    return list(ids)


def encode_pair(tokenizer, example: Mapping) -> TokenPair:
    """Token ids of an example's prompt and of its completion; the completion ends with the end token."""
    completion = tokenizer(example["completion"], add_special_tokens=False)["input_ids"]
    return encode_prompt(tokenizer, example["prompt"]), [*completion, tokenizer.eos_token_id]


@dataclass(frozen=True)
class Batch:
    """Right-padded rows, shifted by one: `inputs[i, t]` predicts `targets[i, t]`.

    inputs, attention (B, T) int64; targets (B, T) int64, IGNORE outside the completion. rows: where the B rows came
    from, in the caller's numbering.
    """

    inputs: torch.Tensor
    attention: torch.Tensor
    targets: torch.Tensor
    rows: list[int]

    @property
    def mask(self) -> torch.Tensor:
        """(B, T) bool, True on completion tokens."""
        return self.targets != IGNORE


def collate(pairs: Sequence[TokenPair], rows: Sequence[int], pad: int, device="cpu") -> Batch:
    """Batch of `pairs[row]` for each of `rows`."""
    picked = [pairs[row] for row in rows]
    width = max(len(prompt) + len(completion) for prompt, completion in picked) - 1
    inputs = torch.full((len(picked), width), pad, dtype=torch.long)
    targets = torch.full_like(inputs, IGNORE)
    attention = torch.zeros_like(inputs)
    for i, (prompt, completion) in enumerate(picked):
        ids, start = torch.tensor(prompt + completion), len(prompt) - 1
        length = len(ids) - 1
        inputs[i, :length], attention[i, :length] = ids[:-1], 1
        targets[i, start:length] = ids[start + 1 :]
    return Batch(inputs.to(device), attention.to(device), targets.to(device), list(rows))


def micro_batches(
    pairs: Sequence[TokenPair], rows: Sequence[int], pad: int, max_tokens: int, device="cpu"
) -> Iterator[Batch]:
    """Cut `rows` into batches of similar length, each of at most `max_tokens` padded tokens (and at least one row)."""
    todo = sorted(rows, key=lambda row: -len(pairs[row][0]) - len(pairs[row][1]))
    while todo:
        size = max(1, max_tokens // (len(pairs[todo[0]][0]) + len(pairs[todo[0]][1])))
        yield collate(pairs, todo[:size], pad, device)
        todo = todo[size:]


def completion_logprob(
    model, batch: Batch, temperature: float = 1.0, *, delta: torch.Tensor | None = None, token_set=None
) -> torch.Tensor:
    """Log-probs (B, T) float32 of the batch's targets under the model at a temperature; 0 where there is no target.
    delta (B, T): what a schedule added to the logits of `token_set` at each target.

    Logits are made only from the first completion token on, where the model can leave out the rest.
    """
    first = int(batch.mask.any(dim=0).to(torch.int8).argmax())
    keep = {"logits_to_keep": batch.inputs.shape[1] - first} if "logits_to_keep" in arguments_of(type(model)) else {}
    logits = model(input_ids=batch.inputs, attention_mask=batch.attention, use_cache=False, **keep).logits
    if not keep:
        logits = logits[:, first:]
    targets = batch.targets[:, first:]
    if delta is None:
        logp = token_logprob(logits, targets, temperature=temperature)
    else:
        logp = replay_logprob(logits, targets, temperature=temperature, delta=delta[:, first:], token_set=token_set)
    return torch.nn.functional.pad(logp, (first, 0))


@functools.cache
def arguments_of(kind: type) -> frozenset[str]:
    """Names of the arguments of a model class's `forward`."""
    return frozenset(inspect.signature(kind.forward).parameters)
