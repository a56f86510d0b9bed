"""What a warm-up minimizes: -log p of the tokens that are learned, times a factor that its objective gives.

    nll            1
    weighted       the example's score
    exp_weighted   exp(score / tau): reward-weighted regression; RISE, arXiv 2407.18219
    dco            n p (1-p)^(n-1) / (1 - (1-p)^n), p the probability of the completion: its gradient is that of
                   -log(1 - (1-p)^n), one success in n attempts (arXiv 2502.07154)
    a_lol          A clip(r, 1 - c, 1 + c), A the score where it is above 0, r the completion's probability relative to
                   the one before the stage (A-LoL, arXiv 2305.14718)

The first three are means over the tokens of a step, the last two over its completions, as their papers have them. No
factor gets a gradient.
"""

from __future__ import annotations

from torch import Tensor

from warpup import coverage_weights
from warpup.policy.rows import per_token, row_sums

from ..model.batch import Batch
from ..model.heads import Head
from ..model.soft_targets import cross_entropy
from ..model.supervised import Supervised
from .warmup_settings import BY_SEQUENCE, WarmupSettings


def batch_loss(
    settings: WarmupSettings,
    head: Head,
    hidden: Tensor,
    batch: Batch,
    examples: Supervised,
    denominator: float,
    before: Tensor | None = None,
) -> Tensor:
    """A batch's part of the step's loss, from the hidden states (N, H) of its learned tokens.

    denominator: tokens, or completions, of the whole step. before: (S,), of a_lol: log-probs of the completions under
    the model as it was before the stage.
    """
    scores = None if examples.scores is None else examples.score(batch)
    if settings.objective in BY_SEQUENCE:
        logp = sequence_logp(head, hidden, batch)
        if settings.objective == "dco":
            factor = coverage_weights(logp, settings.attempts)
        else:
            assert scores is not None
            assert before is not None
            ratio = (logp.detach() - before).exp()
            factor = scores * ratio.clamp(1 - settings.ratio_clip, 1 + settings.ratio_clip)
        return -(factor * logp).sum() / denominator
    weights = None if scores is None else per_token(scores, batch.completion, batch.cu_seqlens)
    if not settings.label_smoothing and not settings.soft_labels:
        return head.nll(hidden, batch.completion, denominator, weights)
    each = cross_entropy(head, hidden, *examples.targets(batch), settings.label_smoothing)
    return (each if weights is None else weights * each).sum() / denominator


def sequence_logp(head: Head, hidden: Tensor, batch: Batch) -> Tensor:
    """(S,): log-probs of the completions."""
    logp = head.logprob(hidden, batch.completion)
    assert isinstance(logp, Tensor)  # no entropies beside it
    return row_sums(logp, batch.cu_seqlens)


def sequence_losses(head: Head, hidden: Tensor, batch: Batch) -> Tensor:
    """(S,): of each completion the mean of -log p over the tokens that are learned."""
    return -sequence_logp(head, hidden, batch) / batch.cu_seqlens.diff().clamp_min(1)
