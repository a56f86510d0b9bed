"""One optimizer step of a policy on completions that it, or an earlier version of it, has sampled."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from warpup.integrations.router_replay import replay_experts
from warpup.policy.kinds import PolicyOptions
from warpup.policy.masks import clip_cov_tokens, kl_cov_tokens, sequence_mask, top_entropy_mask
from warpup.policy.rows import per_token

from .. import ranks
from ..model.batch import Batch, micro_batches
from ..model.compare import divergence_between
from ..model.fsdp import even_batches
from ..model.heads import Head
from ..model.reference import Snapshot
from ..model.routers import Routers
from ..model.tokens import TokenPair
from ..run import StageRun
from ..sampling.penalties import SeenTokens
from ..sampling.rollouts import Rollouts

if TYPE_CHECKING:
    from .critic import Critic


@dataclass(frozen=True)
class Experience:
    """N sampled completions, and what a loss needs to know of them; (N, L) as the tokens of `rolls`.

    pairs: prompt and completion of each. advantages (N,), or (N, L). temperature: that they were sampled at. ref_logp
    (N, L): log-probs under the reference, or None. own_logp (N, L): where the sampler's log-probs are corrected for,
    those of the model at the start of the step; weights (N,), or (N, L): of the policy's part of the loss. values,
    returns (N, L): what a critic expected at the start of the step, and what it learns; or None.
    """

    pairs: Sequence[TokenPair]
    rolls: Rollouts
    advantages: Tensor
    temperature: float
    ref_logp: Tensor | None = None
    own_logp: Tensor | None = None
    weights: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    @property
    def old_logp(self) -> Tensor:
        """(N, L): log-probs of the policy that the loss compares with."""
        return self.rolls.logp if self.own_logp is None else self.own_logp

    def packed(self, values: Tensor, batch: Batch) -> Tensor:
        """The values (N, L) of the batch's tokens, one row after the other; of values (N,) one a row."""
        found = values[batch.rows]
        return found if values.dim() == 1 else found[self.learned[batch.rows]]

    @functools.cached_property
    def learned(self) -> Tensor:
        """(N, L) bool: the tokens that carry loss."""
        return self.rolls.learned()

    def replay(self, batch: Batch) -> dict[str, Any]:
        """What a schedule and penalties did to the logits and which of them the filters left, so that the loss does it
        again and a fresh sample's ratio is 1."""
        rolls, found = self.rolls, {}
        if rolls.delta is not None:
            found |= {"delta": self.packed(rolls.delta, batch), "token_set": rolls.token_set}
        if rolls.kept is not None:
            places = torch.arange(rolls.tokens.numel(), device=rolls.tokens.device).view_as(rolls.tokens)
            found["kept"] = rolls.kept.select(self.packed(places, batch))
        if rolls.penalties is not None:
            turn = None if rolls.turn is None else rolls.turn[batch.rows]
            seen = SeenTokens([self.pairs[n] for n in batch.rows], self.learned[batch.rows], turn)
            found |= {"penalties": rolls.penalties, "seen": seen}
        return found

    def routed(self, model: nn.Module, batch: Batch) -> contextlib.AbstractContextManager[None]:
        """While open, a mixture goes through the experts that the engine took for the batch's tokens, if it told
        them: it rounds otherwise, and takes others where two are nearly as good. The backward belongs inside too,
        where checkpointed layers run again."""
        if self.rolls.experts is None or not batch.rows:
            return contextlib.nullcontext()
        rows = [self.rolls.experts[n] for n in batch.rows]
        return replay_experts(model, pad_sequence(rows, batch_first=True, padding_value=-1))


@dataclass(frozen=True)
class Update:
    """How a policy learns from its experience: the options of the loss, and what stands around it.

    clip: norm of the gradient; constant: what a loss with the normalizer "constant" is divided by; entropy_quantile,
    cov_share, cov_bounds, off_policy: which tokens are treated apart; full_kl: the reference, where the KL to it is
    taken over the whole vocabulary; critic: whose value head learns beside the policy; balance: weight of the routers'
    balance loss.
    """

    loss: PolicyOptions
    clip: float
    max_tokens: int
    constant: float
    entropy_quantile: float = 0.0
    cov_share: float = 2e-4
    cov_bounds: tuple[float, float] = (1.0, 5.0)
    off_policy: float | None = None
    full_kl: Snapshot | None = None
    critic: Critic | None = None
    balance: float | None = None


def token_batches(
    run: StageRun, head: Head, experience: Experience, rows: Sequence[int], max_tokens: int
) -> list[Batch]:
    """This rank's part of the given rows of the N, in pieces of at most `max_tokens` padded tokens."""
    pad, device = run.tokenizer.pad_token_id, run.model.device
    pieces = micro_batches(experience.pairs, ranks.share(rows), pad, max_tokens, device, share=head.shares)
    return even_batches(run.model, pieces, pad)


def spread(packed: Tensor, experience: Experience, batch: Batch, into: Tensor) -> None:
    """Write one value a token of the batch to the places of its tokens in (N, L)."""
    for n, row in zip(batch.rows, packed.split(batch.cu_seqlens.diff().tolist()), strict=True):
        into[n, experience.learned[n]] = row


@torch.no_grad()
def score_tokens(
    run: StageRun, head: Head, experience: Experience, rows: Sequence[int], max_tokens: int, **asked: bool
) -> list[Tensor]:
    """Log-probs (N, L) under the model as it is, and what else is asked for of `Head.logprob` (entropy, sum_p2); 0 in
    other rows."""
    found = [torch.zeros_like(experience.rolls.logp) for _ in range(1 + sum(asked.values()))]
    for batch in token_batches(run, head, experience, rows, max_tokens):
        with run.computing(), experience.routed(run.model, batch):
            hidden, replay = head.hidden(batch), experience.replay(batch)
            values = head.logprob(hidden, batch.completion, experience.temperature, **asked, **replay)
        for into, packed in zip(found, values if isinstance(values, tuple) else (values,), strict=True):
            spread(packed, experience, batch, into)
    ranks.sum_(*found)
    return found


def in_rows(experience: Experience, rows: Sequence[int]) -> Tensor:
    """(N, L) bool: the tokens that carry loss in these rows."""
    picked = torch.zeros_like(experience.rolls.finished)
    picked[list(rows)] = True
    return experience.learned & picked[:, None]


def chosen_tokens(
    run: StageRun, head: Head, experience: Experience, rows: Sequence[int], update: Update
) -> dict[str, Tensor]:
    """Tokens (N, L) that the loss treats apart, chosen over the whole step: a choice in each micro-batch would depend
    on how the step is cut. `selected`: of clip_cov and kl_cov; `weights`: 0 on those that nothing is learned from,
    which are the certain ones, and completions with a negative advantage that the policy has left (off-policy mask)."""
    kind, quantile = update.loss.kind, update.entropy_quantile
    chosen = {} if experience.weights is None else {"weights": experience.weights}
    cov = kind in ("clip_cov", "kl_cov")
    if not cov and not quantile and update.off_policy is None:
        return chosen
    logp, *entropies = score_tokens(run, head, experience, rows, update.max_tokens, entropy=bool(quantile))
    mask, advantages = in_rows(experience, rows), experience.advantages
    if kind == "clip_cov":
        chosen["selected"] = clip_cov_tokens(
            logp, experience.old_logp, advantages, mask, clip=update.loss.clip_range(), share=update.cov_share,
            bounds=update.cov_bounds, generator=run.generator,
        )  # fmt: skip
    elif cov:
        chosen["selected"] = kl_cov_tokens(logp, advantages, mask, share=update.cov_share)
    kept = [top_entropy_mask(entropy, mask, quantile) for entropy in entropies]
    if update.off_policy is not None:
        kept.append(sequence_mask(logp, experience.rolls.logp, advantages, mask, delta=update.off_policy))
    for one in kept:
        weights = chosen.get("weights", torch.ones_like(logp))
        chosen["weights"] = per_token(weights, logp) * per_token(one, logp).to(logp.dtype)
    return chosen


def full_kl(
    head: Head, reference: Snapshot, batch: Batch, hidden: Tensor, temperature: float, replay: dict[str, Any]
) -> Tensor:
    """(N,): the KL of the model from its reference at each of the batch's tokens, over all that could be drawn."""
    with reference.restored(), torch.no_grad():
        theirs, layer = head.hidden(batch), head.fixed()  # of the reference, as its body
    return divergence_between(head, hidden, layer, theirs, replay, kind="reverse", temperature=temperature)


def policy_step(
    run: StageRun,
    head: Head,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    rows: Sequence[int],
    update: Update,
    lr: float,
) -> dict[str, Any]:
    """One optimizer step on the given rows of the N; returns its numbers, means over tokens but the loss.

    The rows go through the model in pieces of at most `max_tokens` padded tokens. What the loss is divided by is
    counted over all of them, so the pieces' gradients add up to the step's, however it is cut.
    """
    tokens = int(experience.learned[list(rows)].sum())
    name, _ = update.loss.division()
    denominator = {"token": tokens, "constant": update.constant}.get(name, len(rows))
    options = replace(update.loss, normalizer=(name, denominator))
    apart = chosen_tokens(run, head, experience, rows, update)
    if experience.ref_logp is not None:
        apart["ref_logp"] = experience.ref_logp
    total: dict[str, Any] = {}  # numbers on the device are read once all is under way
    batches = token_batches(run, head, experience, rows, update.max_tokens)
    routers = Routers(run.model, update.balance)
    (attended,) = ranks.total(sum(int(batch.attended.sum()) for batch in batches))
    attended = attended or 1  # 0: one token each behind shared prompts

    def surveyed(batch: Batch) -> Tensor:
        with experience.routed(run.model, batch):
            return head.hidden(batch)

    with run.computing():
        routers.survey(batches, surveyed)
    for batch in batches:
        with experience.routed(run.model, batch):
            with run.computing():
                with routers.watch(batch.attended):
                    hidden = head.hidden(batch)
                tensors, replay = {k: experience.packed(v, batch) for k, v in apart.items()}, experience.replay(batch)
                if update.full_kl:
                    tensors["ref_kl"] = full_kl(head, update.full_kl, batch, hidden, experience.temperature, replay)
                loss, metrics = head.policy_loss(
                    options,
                    hidden,
                    batch.completion,
                    experience.packed(experience.old_logp, batch),
                    experience.packed(experience.advantages, batch),
                    batch.cu_seqlens,
                    experience.temperature,
                    replay=replay,
                    **tensors,
                )
                value_loss = 0.0
                if update.critic:
                    assert experience.values is not None
                    assert experience.returns is not None
                    old, returns = (experience.packed(v, batch) for v in (experience.values, experience.returns))
                    value_loss, more = update.critic.loss(hidden, old, returns, tokens)
                    total["value_loss"] = total.get("value_loss", 0.0) + value_loss.detach().double()
                    metrics |= more
            (loss + value_loss + routers.loss(int(batch.attended.sum()) / attended)).backward()
        if not batch.rows:
            continue
        share = int(batch.mask.sum()) / tokens
        # Metrics are means over this piece's tokens, weighted by its share of the step's; a maximum stays one.
        total["loss"] = total.get("loss", 0.0) + loss.detach().double()
        for name, value in metrics.items():
            before, value = total.get(name, 0.0), value.detach().double()
            total[name] = value.clamp_min(before) if name == "ratio_max" else before + value * share
    total = ranks.totals({name: float(value) for name, value in total.items()}, largest=("ratio_max",))
    if experience.ref_logp is None and not update.full_kl:
        total.pop("ref_kl", None)  # 0 for want of a reference would read as a policy that stays where it was
    if (weights := apart.get("weights")) is not None:
        total["weight"] = float(per_token(weights, experience.rolls.logp)[in_rows(experience, rows)].mean())
    norm = run.optimizer_step(optimizer, total["loss"], lr, update.clip)
    return total | routers.numbers() | {"grad_norm": norm, "lr": lr, "tokens": tokens}
