"""Attention between segments, for torch's FlexAttention."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from warpup._arguments import explained

QUESTION, THOUGHT, STATE, INFORMATION = 0, 1, 2, 3  # the segments of an agent with constant memory


@explained
def memory_mask(kinds: Tensor, turns: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Who sees whom when an agent keeps only its last state: a `mask_mod` for `create_block_mask` of FlexAttention.

    An episode is the question, then turns of a thought, a state (with the action in it) and the information that came
    back. In training all turns are one sequence, and each token may see what was there when it was written:

    - a thought: the question, the state and the information of the turn before, and itself so far
    - a state: the same, and the thought of its turn
    - information, and the question: itself so far

    The loss counts what the model wrote: `(kinds == THOUGHT) | (kinds == STATE)`.

        mask = create_block_mask(memory_mask(kinds, turns), B, None, T, T, device=kinds.device)
        flex_attention(q, k, v, block_mask=mask)

    Dense, for other kernels: `create_mask(memory_mask(kinds, turns), B, None, T, T)`.

    Args:
        kinds: (B, T) integers, QUESTION, THOUGHT, STATE or INFORMATION; padding any other number, which sees itself.
        turns: (B, T) integers, the turn of each token, 0 for the question.

    Source: MEM1 (arXiv 2506.15841) and its authors' code.
    """
    if kinds.shape != turns.shape or kinds.dim() != 2:
        raise ValueError(
            f"memory_mask: kinds and turns must have one shape (B, T), got {tuple(kinds.shape)}, {tuple(turns.shape)}"
        )

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        reader, read = kinds[batch, query], kinds[batch, key]
        ago = turns[batch, query] - turns[batch, key]
        writes = (reader == THOUGHT) | (reader == STATE)
        own = (reader == read) & (ago == 0)
        question = writes & (read == QUESTION)
        memory = writes & (ago == 1) & ((read == STATE) | (read == INFORMATION))
        thought = (reader == STATE) & (read == THOUGHT) & (ago == 0)
        return (query >= key) & (own | question | memory | thought)

    return allowed
