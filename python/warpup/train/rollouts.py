"""Sampling completions in batches: a key/value cache written in place, and finished rows dropped from the batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from warpup import token_logprob

from .batch import arguments_of
from .decoding import DecodingStrategy
from .errors import TrainError


@dataclass(frozen=True)
class Rollouts:
    """N completions, row i of prompt i // copies.

    tokens (N, L) int64, padded on the right; lengths (N,) int64, the end token counted; logp (N, L) float32, log-probs
    of the tokens at the sampling temperature and under the schedule, before any top-p cut, 0 in the padding; finished
    (N,) bool, False where the length limit cut a row off; delta (N, L) float32, what the schedule added to the
    logits of its tokens, token_set (V,) bool; both None without one.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    logp: torch.Tensor
    finished: torch.Tensor
    delta: torch.Tensor | None = None
    token_set: torch.Tensor | None = None

    def completion(self, row: int) -> list[int]:
        """Token ids of one completion, with its end token."""
        return self.tokens[row, : self.lengths[row]].tolist()


@torch.no_grad()
def rollout(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int,
    pad: int,
    max_new_tokens: int,
    copies: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    decoding: DecodingStrategy | None = None,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Sample `copies` completions of each prompt (token ids); temperature 0 takes the likeliest token.

    `decoding` is what stands between logits and tokens, such as a reflection schedule.
    A prompt runs through the model once, whatever `copies` is. The caller sets the model's mode (eval, no dropout).
    Raises TrainError if the model's logits are NaN.
    """
    if temperature == 0 and top_p < 1:
        raise TrainError(f"top_p: temperature 0 takes the likeliest token, no nucleus is drawn from, got {top_p}")
    device = model.device

    # Prompts: once through the model, padded on the left so that all completions begin in the same column. Positions
    # count real tokens only.
    width = max(map(len, prompts))
    rows = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache = growing_cache(model, width + max_new_tokens)
    # transformers renamed the argument; models that take only the old name remain.
    options = {"cache" if "cache" in arguments_of(type(model)) else "past_key_values": cache, "use_cache": True}
    logits = model(
        input_ids=rows,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        **options,
    ).logits[:, -1]

    # Copies: the group of a prompt shares the work on it, then each copy has a row and a place in the cache.
    if copies > 1:
        cache.batch_repeat_interleave(copies)
        logits, mask = logits.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)

    # Results for all rows, and the state of those that are still in the batch.
    count = len(prompts) * copies
    tokens = torch.full((count, max_new_tokens), pad, device=device)
    logp = torch.zeros(count, max_new_tokens, device=device)
    lengths = torch.full((count,), max_new_tokens, device=device)
    alive = torch.arange(count, device=device)  # the result row of each row that is still in the batch
    position = mask.sum(1)
    open_mask = torch.ones(count, width + max_new_tokens, dtype=mask.dtype, device=device)
    open_mask[:, :width] = mask
    done = torch.zeros(count, dtype=torch.bool, device=device)

    # A schedule follows each completion token by token, and what it adds is kept, for the loss to add it again.
    state = decoding.follow([p for p in prompts for _ in range(copies)], device) if decoding else None
    deltas = torch.zeros(count, max_new_tokens, device=device) if decoding and decoding.schedule else None

    for t in range(max_new_tokens):
        if logits.isnan().any():
            raise TrainError(
                f"the model's logits are NaN at generated token {t}: its weights or its precision are broken"
            )
        going = ~done

        # Choose the next token of every row. Rows that are done stay in the batch for a while; what they draw is
        # left out (`going`).
        if state:
            logits = logits.float().contiguous()  # in float32, as the loss will add the schedule
            delta = state.before(logits, alive, temperature or 1.0)
            if deltas is not None:
                deltas[alive[going], t] = delta[going]
        token = choose(logits, temperature, top_p, generator)
        if state:
            token = state.after(token, alive)

        # Keep the token, and the log-prob it was drawn at: the old log-prob of the loss.
        tokens[alive[going], t] = token[going]
        logp[alive[going], t] = token_logprob(logits, token, temperature=temperature or 1.0)[going]
        ended = going & (token == eos)
        lengths[alive[ended]] = t + 1
        done |= ended

        # Completions end at very different lengths, and a finished row would cost as much as a live one: they are
        # dropped from the batch and its cache, a tenth of the rows at a time, since dropping copies the cache.
        left = len(done) - int(done.sum())
        if left == 0 or t + 1 == max_new_tokens:
            break
        if left < 0.9 * len(done):
            keep = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            alive, done, token, position, open_mask = (x[keep] for x in (alive, done, token, position, open_mask))

        # One token a row through the model; all before it is in the cache.
        logits = model(
            input_ids=token[:, None],
            attention_mask=open_mask[:, : width + t + 1],
            position_ids=position[:, None],
            **options,
        ).logits[:, -1]
        position = position + 1

    finished = torch.ones(count, dtype=torch.bool, device=device)
    finished[alive[~done]] = False
    longest = int(lengths.max())
    replay = () if deltas is None else (deltas[:, :longest], state.token_set(logits.shape[1]))
    return Rollouts(tokens[:, :longest], lengths, logp[:, :longest], finished, *replay)


def choose(logits: torch.Tensor, temperature: float, top_p: float, generator) -> torch.Tensor:
    """Next token (B,) int64 of logits (B, V): argmax at temperature 0, else a draw from the top-p nucleus."""
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        ordered, index = probs.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0  # the token that crosses top_p stays
        probs = torch.zeros_like(probs).scatter_(-1, index, ordered)
    return torch.multinomial(probs, 1, generator=generator).squeeze(-1)


def growing_cache(model, capacity: int) -> DynamicCache:
    """The model's own kind of cache, with plain attention layers replaced by buffers that are written in place."""
    cache = DynamicCache(config=model.config)
    cache.layers = [InPlaceLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class InPlaceLayer(DynamicLayer):
    """Keys and values (B, H, capacity, D) allocated once, where `DynamicLayer` copies them all for every token."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length, self.is_initialized = capacity, 0, False

    def lazy_initialization(self, key_states, value_states):
        self.dtype, self.device = key_states.dtype, key_states.device
        self.buffers = [x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (key_states, value_states)]
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = new
        return self._views()

    def get_seq_length(self) -> int:
        return self.length

    def batch_select_indices(self, indices):
        self.buffers = [self._take(buffer, indices) for buffer in self.buffers]
        self._views()

    def batch_repeat_interleave(self, repeats):
        rows = torch.arange(self.buffers[0].shape[0], device=self.device).repeat_interleave(repeats)
        self.batch_select_indices(rows)

    def _take(self, buffer, rows):
        taken = buffer.new_empty(len(rows), *buffer.shape[1:])
        taken[:, :, : self.length] = buffer[:, :, : self.length].index_select(0, rows)
        return taken

    def _views(self):
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values
