"""Accuracy of a model on held-out examples: greedy, and averaged over samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from warpup._evaluating import evaluating

from .examples import Budget
from .model.fsdp import whole
from .model.memory import rows_that_fit
from .model.tokens import encode_prompt, end_tokens
from .rewards.calls import completions_of
from .rewards.reward_set import Reward, RewardSet, Scores
from .sampling.decoding import DecodingStrategy
from .sampling.groups import mean
from .sampling.rollouts import rollout
from .sampling.stopping import stop_strings


@dataclass(frozen=True)
class Evaluation:
    """Means over examples (and samples). Rates in 0..1, NaN where the reward function does not tell; length in tokens,
    end token counted; reflections: reflection words per completion; unfinished: share cut off by the length limit.
    `avg` is accuracy over `samples` sampled completions, `greedy` that of the likeliest completion."""

    avg: float
    greedy: float
    samples: int
    temperature: float
    examples: int
    reward: float
    format_ok: float
    length: float
    reflections: float
    unfinished: float
    errors: int
    traces: list[dict[str, Any]]

    def numbers(self) -> dict[str, Any]:
        """All but the traces, as plain JSON."""
        return {k: v for k, v in asdict(self).items() if k != "traces"}


def evaluate(
    model,
    tokenizer,
    examples: Sequence[Mapping],
    reward: Reward | Sequence[Reward] | RewardSet,
    *,
    samples: int = 4,
    temperature: float = 0.7,
    top_p: float = 1.0,
    decoding: DecodingStrategy | None = None,
    greedy: bool = True,
    max_new_tokens: int = 256,
    stop: Sequence[str] = (),
    thinking_budget: Budget = None,
    reflection_words: Sequence[str] = (),
    seed: int = 0,
    rows: int | None = None,
    traces: int = 8,
) -> Evaluation:
    """Score `samples` sampled completions of each example and, if asked, its greedy one (else NaN).

    stop: texts that end a completion. thinking_budget: as the setting of RLVR. rows: completions sampled at once; None:
    as many as half of the free memory holds, at most 256. traces: keep the first so many examples' greedy (else first
    sampled) completions. The means of reward, format, length and reflections are over the samples, or over the greedy
    ones if samples is 0. The run's own random state is not touched. Raises TrainError as `rollout` and `RewardSet` do,
    and on what cannot be a budget.
    """
    rewards = reward if isinstance(reward, RewardSet) else RewardSet(reward)
    generator = torch.Generator(model.device).manual_seed(seed)
    if thinking_budget is not None:
        plain = decoding or DecodingStrategy()
        decoding = plain.under(thinking_budget, tokenizer, max_new_tokens, "thinking_budget")
    options = {"max_new_tokens": max_new_tokens, "generator": generator, "rows": rows, "decoding": decoding}
    options["stop"] = stop_strings(tokenizer, stop)
    with evaluating(model), whole(model):
        sampled = _run(model, tokenizer, examples, rewards, samples, temperature, top_p, **options)
        likeliest = _run(model, tokenizer, examples, rewards, int(greedy), 0.0, 1.0, **options)
    scores, texts, lengths, finished = sampled if samples else likeliest
    first = likeliest if greedy else sampled
    shown = list(zip(first[1], first[0].rewards, first[0].correct, strict=True))[:: 1 if greedy else samples]
    words = set(reflection_words)
    return Evaluation(
        avg=mean(sampled[0].correct),
        greedy=mean(likeliest[0].correct),
        samples=samples,
        temperature=temperature,
        examples=len(examples),
        reward=mean(scores.rewards),
        format_ok=mean(scores.format_ok),
        length=mean(lengths),
        reflections=mean([sum(word in words for word in text.split()) for text in texts]),
        unfinished=1 - mean(finished),
        errors=len(sampled[0].errors) + len(likeliest[0].errors),
        traces=[
            {
                "prompt": example["prompt"],
                "answer": example.get("answer"),
                "completion": text,
                "reward": value,
                "correct": right,
            }
            for example, (text, value, right) in zip(examples[:traces], shown, strict=False)
        ],
    )


def _run(model, tokenizer, examples, rewards, copies, temperature, top_p, rows, **options):
    """Scores, texts, lengths and finished flags of `copies` completions of each example."""
    if copies == 0 or not examples:
        return Scores(), [], [], []
    prompts = [encode_prompt(tokenizer, example["prompt"], example) for example in examples]
    rows = rows or rows_that_fit(model, max(map(len, prompts)) + options["max_new_tokens"])
    rolls = rollout(
        model, prompts, eos=end_tokens(model, tokenizer), pad=tokenizer.pad_token_id, copies=copies,
        temperature=temperature, top_p=top_p, rows=rows, **options,
    )  # fmt: skip
    said = completions_of(tokenizer, rolls)
    scores = rewards.score(said, [example for example in examples for _ in range(copies)], group=copies)
    return scores, [completion.text for completion in said], rolls.lengths.tolist(), rolls.finished.tolist()
