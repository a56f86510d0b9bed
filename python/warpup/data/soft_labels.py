"""Supervision beside the tokens: distributions over several traces, and which positions of a sequence are seen."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


def trace_labels(traces: Sequence[Sequence[int]]) -> dict[str, list[list[Any]]]:
    """At each place the shares of the tokens that traces have there, as a row of a column for `Warmup.soft_labels`:
    `{"ids": [[...], ...], "logprobs": [[...], ...]}`, the most frequent first.

    traces: B of one length. Raises ValueError otherwise.

    Source: the soft targets of "Continuous Chain of Thought Enables Parallel Exploration and Reasoning" (CoT2, arXiv
    2505.23648).
    """
    if not traces or len({len(trace) for trace in traces}) != 1:
        raise ValueError(f"trace_labels: expected traces of one length, got {[len(trace) for trace in traces]}")
    counts = [Counter(tokens).most_common() for tokens in zip(*traces, strict=True)]
    return {
        "ids": [[int(token) for token, _ in place] for place in counts],
        "logprobs": [[math.log(n / len(traces)) for _, n in place] for place in counts],
    }


def uniform_rate_mask(prompt: Any, rng: np.random.Generator) -> np.ndarray:
    """(B, T) bool, the positions that are seen: the prompt's, and of the others of each sequence a share that is itself
    drawn uniformly from 0 to 1. The loss is over those that are not: `weighted_nll(logp, ~seen)`.

    prompt: (B, T) bool.

    Source: MLM-U, "Transformers Can Navigate Mazes With Multi-Step Prediction" (arXiv 2412.05117).
    """
    prompt = np.asarray(prompt, bool)
    if prompt.ndim != 2:
        raise ValueError(f"uniform_rate_mask: prompt must have shape (B, T), got {prompt.shape}")
    return (rng.random((len(prompt), 1)) > rng.random(prompt.shape)) | prompt
