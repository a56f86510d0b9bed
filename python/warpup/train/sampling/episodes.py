"""Episodes: completions in several turns, between which an environment answers.

    class SecondTry:                                    # one instance an episode
        def reset(self, example):
            self.answer = example["answer"]
            return example["prompt"]                    # a text, or chat messages

        def step(self, completion):
            if completion.strip() == self.answer:
                return Turn(reward=1.0, done=True)
            return Turn("That is not it. Again: ")      # goes on behind what was said

What the environment says is read by the model and never learned from: it carries no loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from warpup import KeptTokens

from ..errors import TrainError
from ..examples import RewardName
from ..model.tokens import TokenPair, Tokens, encode_prompt, render, turn_end
from ..rewards.loading import load_named
from .rollouts import Rollouts, rollout


class Turn(NamedTuple):
    """What an environment answers: a text that goes on behind the completion (in a chat, the user's next message), the
    reward of this turn (NaN or None: it could not be told, the episode is left out), whether the episode is over, and
    if it can tell, whether it was solved (1.0 or 0.0). Where the model plays several roles a reward may be one for each
    of them, {0: 1.0, 1: -1.0}."""

    observation: str = ""
    reward: float | Mapping[int, float] = 0.0
    done: bool = False
    correct: float = math.nan


class Environment(Protocol):
    """One episode. An instance is made for each of them; if it has a method `close`, that is called at its end. Where
    the model plays several roles, an attribute `role` says for which of them it speaks next, from 0 on."""

    def reset(self, example: Mapping[str, Any]) -> str | Sequence[Mapping[str, Any]]:
        """The prompt of an example, for the first turn."""
        ...

    def step(self, completion: str) -> Turn:
        """What follows a completion (its text without special tokens)."""
        ...


class Episodes(NamedTuple):
    """N episodes. pairs: first prompt, and all that follows it; rolls: the same as (N, L), with `sampled` and `turn`;
    rewards (N, turns), NaN where an episode was over before, and throughout where a turn's reward is NaN; correct (N,);
    texts: what the model said in each turn; speakers: in which role; shares: what each role was given."""

    pairs: list[TokenPair]
    rolls: Rollouts
    rewards: Tensor
    correct: list[float]
    texts: list[list[str]]
    speakers: list[list[int]]
    shares: list[dict[int, float]]


def load_environment(name: RewardName) -> Callable[[], Environment]:
    """What makes an environment: itself, or the class or function that `module:name` or `file.py:name` names."""
    return name if callable(name) else load_named(str(name), "environment")


def play(
    model,
    tokenizer,
    make: Callable[[], Environment],
    examples: Sequence[Mapping[str, Any]],
    *,
    turns: int,
    ends: Sequence[int],
    copies: int,
    limit: int,
    **options: Any,
) -> Episodes:
    """Play `copies` episodes of each example, of at most `turns` turns. limit: tokens that prompt and episode may have
    together; one that has no room for another turn is cut off. options: those of `rollout` (max_new_tokens among them).
    """
    environments = make_some(make, len(examples) * copies)
    try:
        return _play(model, tokenizer, environments, examples, turns, ends, copies, limit, options)
    finally:
        close(environments)


def _play(
    model, tokenizer, environments: Sequence[Environment], examples: Sequence[Mapping[str, Any]], turns: int,
    ends: Sequence[int], copies: int, limit: int, options: dict[str, Any],
) -> Episodes:  # fmt: skip
    asked = [example for example in examples for _ in range(copies)]
    opened = [call(environment, "reset", example) for environment, example in zip(environments, asked, strict=True)]
    prompts = [encode_prompt(tokenizer, prompt, example) for prompt, example in zip(opened, asked, strict=True)]
    count, pad = len(prompts), tokenizer.pad_token_id
    said: list[Tokens] = [[] for _ in prompts]  # all tokens behind the prompt
    sampled: list[list[bool]] = [[] for _ in prompts]
    turn_of: list[list[int]] = [[] for _ in prompts]
    logp: list[list[float]] = [[] for _ in prompts]
    filtered = FilteredTurns(count)
    texts: list[list[str]] = [[] for _ in prompts]
    speakers: list[list[int]] = [[] for _ in prompts]
    shares: list[dict[int, float]] = [{} for _ in prompts]
    rewards, correct, finished = torch.full((count, turns), math.nan), [math.nan] * count, [True] * count
    going, penalties = list(range(count)), None

    for turn in range(turns):
        # The first turn's prompts are the same for all copies of an example, so each runs through the model once.
        same = turn == 0 and all(prompts[n] == prompts[n - n % copies] for n in range(count))
        contexts = [prompts[n] + said[n] for n in (going[::copies] if same else going)]
        rolls = rollout(model, contexts, eos=ends, pad=pad, copies=copies if same else 1, **options)
        still, penalties = [], rolls.penalties
        for row, n in enumerate(going):
            ids = rolls.completion(row)
            filtered.add(n, len(said[n]), rolls, row)
            own_logp, own = (x[row, : len(ids)].tolist() for x in (rolls.logp, rolls.learned()))
            extend(n, ids, own_logp, own, turn, said, logp, sampled, turn_of)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            texts[n].append(text)
            speakers[n].append(int(getattr(environments[n], "role", 0)))
            answer = step(environments[n], text)
            given = answer.reward if isinstance(answer.reward, Mapping) else {speakers[n][-1]: answer.reward}
            for role, reward in given.items():
                shares[n][role] = shares[n].get(role, 0.0) + reward
            rewards[n, turn] = sum(given.values())
            correct[n] = answer.correct
            if rewards[n, turn].isnan():
                rewards[n] = math.nan  # whoever judges it failed, so nothing is known of the whole
                continue
            if answer.done or turn + 1 == turns:
                finished[n] = answer.done or bool(rolls.finished[row])
                continue
            between = bridge(tokenizer, opened[n], answer.observation, asked[n], closed=ids[-1] in ends)
            if len(prompts[n]) + len(said[n]) + len(between) + options["max_new_tokens"] > limit:
                finished[n] = False
                continue
            zeros, nobody = [0.0] * len(between), [False] * len(between)
            extend(n, between, zeros, nobody, -1, said, logp, sampled, turn_of)
            still.append(n)
        going = still
        if not going:
            break

    lengths = torch.tensor([len(ids) for ids in said])
    width = int(lengths.max())

    def padded(rows: Sequence[Sequence], fill) -> Tensor:
        return torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows], device=model.device)

    whole = Rollouts(
        padded(said, pad), lengths.to(model.device), padded(logp, 0.0),
        torch.tensor(finished, device=model.device), sampled=padded(sampled, False), turn=padded(turn_of, -1),
        penalties=penalties, **filtered.joined(width),
    )  # fmt: skip
    pairs: list[TokenPair] = [(prompt, ids, own) for prompt, ids, own in zip(prompts, said, sampled, strict=True)]
    return Episodes(pairs, whole, rewards, correct, texts, speakers, shares)


class FilteredTurns:
    """What filters left at the tokens of `count` episodes, a turn at a time; nothing where none was recorded."""

    def __init__(self, count: int):
        self.turns: list[list[tuple[int, KeptTokens, Tensor]]] = [[] for _ in range(count)]

    def add(self, n: int, begin: int, rolls: Rollouts, row: int) -> None:
        """Row `row` of a turn's rollouts, the tokens of episode n from place `begin` on."""
        if rolls.kept is not None and rolls.kept_mass is not None:
            width, length = rolls.tokens.shape[1], int(rolls.lengths[row])
            places = torch.arange(row * width, row * width + length, device=rolls.tokens.device)
            self.turns[n].append((begin, rolls.kept.select(places), rolls.kept_mass[row, :length]))

    def joined(self, width: int) -> dict[str, Any]:
        """`kept` and `kept_mass` of all episodes as `Rollouts` of this width have them."""
        if not any(self.turns):
            return {}
        mass = next(turns[0][2] for turns in self.turns if turns).new_zeros(len(self.turns), width)
        counts, ids = torch.zeros_like(mass, dtype=torch.int64), []
        for n, turns in enumerate(self.turns):
            for begin, sets, share in turns:
                at = slice(begin, begin + len(share))
                counts[n, at], mass[n, at] = sets.counts(), share
                ids.append(sets.token_ids)
        return {"kept": KeptTokens.from_counts(torch.cat(ids), counts), "kept_mass": mass}


def first_prompts(make: Callable[[], Environment], examples: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What an episode of each example begins with."""
    environments = make_some(make, len(examples))
    try:
        return [
            call(environment, "reset", example) for environment, example in zip(environments, examples, strict=True)
        ]
    finally:
        close(environments)


def close(environments: Sequence[Environment]) -> None:
    """Those that have something to be closed, such as a connection, close it."""
    for environment in environments:
        if callable(end := getattr(environment, "close", None)):
            end()


def make_some(make: Callable[[], Environment], count: int) -> list[Environment]:
    """So many environments; what making one raises, as TrainError."""
    try:
        return [make() for _ in range(count)]
    except TrainError:
        raise
    except Exception as error:  # a user's class may raise anything
        raise TrainError(
            f"environment: one could not be made, which is called without arguments: {type(error).__name__}: {error}"
        ) from error


def step(environment: Environment, completion: str) -> Turn:
    """What follows a completion, its numbers as floats; TrainError on what is no `Turn`."""
    given, place = call(environment, "step", completion), f"{type(environment).__name__}.step"
    if not (isinstance(given, tuple) and 0 < len(given) <= len(Turn._fields) and isinstance(given[0], str)):
        raise TrainError(f"environment: {place} returned {given!r}, expected a Turn, whose observation is a text")
    turn = Turn(*given)
    try:
        if isinstance(turn.reward, Mapping):
            reward: Any = {role: number(part) for role, part in turn.reward.items()}
        else:
            reward = number(turn.reward)
        return turn._replace(reward=reward, correct=number(turn.correct))
    except (TypeError, ValueError):
        raise TrainError(
            f"environment: {place} returned {turn!r}, expected numbers as reward and correct, or None or NaN where it "
            "cannot tell"
        ) from None


def number(value: Any) -> float:
    """NaN of None and of what is not finite, as of what a reward function returns."""
    found = math.nan if value is None else float(value)
    return found if math.isfinite(found) else math.nan


def call(environment: Environment, method: str, argument: Any) -> Any:
    """What a method of an environment returns; what it raises, as TrainError that says where."""
    try:
        return getattr(environment, method)(argument)
    except Exception as error:  # a user's class may raise anything
        place = f"{type(environment).__name__}.{method}"
        raise TrainError(f"environment: {place} failed on {argument!r}: {type(error).__name__}: {error}") from error


def extend(
    n: int, ids: Sequence[int], logp: Sequence[float], own: Sequence[bool], turn: int, said, logps, sampled, turn_of
):
    """Tokens behind the others of episode n: those of the model's turn, of which it drew its `own`, or, as turn -1, the
    environment's."""
    said[n] += ids
    logps[n] += logp
    sampled[n] += own
    turn_of[n] += [turn] * len(ids)


def bridge(tokenizer, prompt, observation: str, example: Mapping[str, Any] | None = None, *, closed: bool) -> Tokens:
    """The tokens between a completion and the next one: what the environment said and, in a chat, all that the template
    puts around it, with the example's arguments as in its first turn. closed: whether the completion ended its turn
    itself."""
    if isinstance(prompt, str):
        return list(tokenizer(observation, add_special_tokens=False)["input_ids"])
    end = turn_end(tokenizer)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    before = render(tokenizer, chat, example, add_generation_prompt=False)
    more = [*chat, {"role": "user", "content": observation}]
    after = render(tokenizer, more, example, add_generation_prompt=True)
    at = max((i for i, token in enumerate(before) if token == end), default=len(before) - 1) + 1
    if after[:at] != before[:at]:
        raise TrainError(
            "the chat template changes earlier turns when one is added, so episodes cannot go on behind them"
        )
    return [*([] if closed else [end]), *after[at:]]


def turn_advantages(rewards: Tensor, turn: Tensor, advantage: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, L): of each token that of its turn, whose return, the rewards from this turn on, is held against those of the
    group's episodes at the same turn. rewards (N, turns), NaN behind an episode's end; turn (N, L), -1: not sampled."""
    returns = rewards.nan_to_num(0.0).flip(1).cumsum(1).flip(1).masked_fill(rewards.isnan(), math.nan)
    each = torch.stack([advantage(returns[:, t]) for t in range(rewards.shape[1])], 1)
    return each.gather(1, turn.clamp_min(0)).masked_fill(turn < 0, 0.0)
