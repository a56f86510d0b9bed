"""Sampling under a schedule, and its exact replay in the loss."""

import math

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, completion_logprob, llama, log_of
from warpup.reflection import ReflectionSchedule, ReflectionTokens
from warpup.train import RLVR, Recipe, TrainError, rollout
from warpup.train.model.batch import collate
from warpup.train.model.tokens import encode_pair
from warpup.train.sampling.decoding import DecodingStrategy
from warpup.train.stages.policy_step import Experience

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ("wait", "back")


def sample(decoding, temperature=0.7, copies=6, **options):
    model = llama().eval()
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:5]]
    rolls = rollout(
        model, prompts, eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=24, copies=copies, temperature=temperature,
        decoding=decoding, generator=torch.Generator().manual_seed(0), **options,
    )  # fmt: skip
    pairs = [(prompts[row // copies], rolls.completion(row)) for row in range(5 * copies)]
    experience = Experience(pairs, rolls, torch.zeros(len(pairs)), temperature)
    return model, experience, collate(pairs, range(len(pairs)), pad=0)


@pytest.mark.parametrize(
    "name", ["cyclic:amplitude=4,period=12", "tip:alpha=3,beta=10", "cyclic:amplitude=2,period=7,phase=any"]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_ratio_of_fresh_samples_is_one_under_the_replay(name, temperature):
    """And without it, it is not: every token's log-ratio is off by what the schedule moved in all."""
    model, experience, batch = sample(DecodingStrategy.parse(name, TOKENIZER, WORDS), temperature)
    assert experience.rolls.delta.abs().max() > 1
    old = experience.packed(experience.rolls.logp, batch)
    ratio = (completion_logprob(model, batch, temperature, **experience.replay(batch)) - old).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=3e-5)
    plain = (completion_logprob(model, batch, temperature) - old).abs()
    assert plain.max() > 0.05


def test_delta_is_the_wave_until_thinking_ends():
    schedule = ReflectionSchedule("triangle", 3.0, 12, tokens=ReflectionTokens.from_tokenizer(TOKENIZER, WORDS))
    rolls = sample(DecodingStrategy("given", schedule))[1].rolls
    end = schedule.tokens.think_end[0]
    for row in range(30):
        tokens = rolls.completion(row)
        if schedule.tokens.think_start[0] in tokens:  # thinking would begin again
            continue
        thought = tokens.index(end) + 1 if end in tokens else len(tokens)
        want = [float(schedule.delta(t)) if t < thought else 0.0 for t in range(len(tokens))]
        assert rolls.delta[row, : len(tokens)].tolist() == pytest.approx(want, abs=1e-6)
        assert not rolls.delta[row, len(tokens) :].any()


def test_a_schedule_that_is_off_draws_the_same():
    plain = sample(None)[1].rolls
    off = sample(DecodingStrategy.parse("tip:alpha=0,beta=10", TOKENIZER, WORDS))[1].rolls
    assert torch.equal(plain.tokens, off.tokens)
    assert torch.equal(plain.logp, off.logp)
    assert plain.delta is None
    assert not off.delta.any()


def test_nowait_never_draws_the_tokens():
    plain = sample(None, temperature=1.0, copies=12)[1].rolls
    decoding = DecodingStrategy(
        "nowait", ReflectionSchedule("constant", -math.inf, tokens=TOKENIZER.convert_tokens_to_ids(WORDS), phase="any")
    )
    banned = sample(decoding, temperature=1.0, copies=12)[1].rolls
    ids = torch.tensor(TOKENIZER.convert_tokens_to_ids(WORDS))
    assert torch.isin(plain.tokens, ids).any()
    assert not torch.isin(banned.tokens, ids).any()


def test_budget_forcing_puts_off_the_end_of_thinking():
    decoding = DecodingStrategy.parse("s1:times=1", TOKENIZER, WORDS)
    end, wait = decoding.tokens.think_end[0], TOKENIZER.convert_tokens_to_ids("wait")
    plain = sample(None, temperature=1.0, copies=12)[1].rolls
    forced = sample(decoding, temperature=1.0, copies=12)[1].rolls
    changed = 0
    for row in range(60):
        before, after = plain.completion(row), forced.completion(row)
        if end in before:
            at = before.index(end)
            changed += len(after) > at and after[at] == wait and after[:at] == before[:at]
    assert changed > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cyclical", "expected plain, cyclic, tip, nowait, s1 or a .json file"),
        ("cyclic:amplitud=3", "cyclic has no amplitud"),
        ("cyclic:period=0", "period: expected tokens, at least"),
        ("s1:beta=3", "s1 has no beta"),
        ("s1:times=0", "times: expected at least 1"),
        ("tip:anchor=think", "tip has no anchor"),
        ("nowait:phase=think", "nowait has no phase"),
        ("missing.json", "No such file"),
        ("cyclic:anchor=moon", "anchor: expected one of"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(TrainError, match=message):
        DecodingStrategy.parse(name, TOKENIZER, WORDS)


def test_json_round_trip(tmp_path):
    schedule = ReflectionSchedule("cosine", 2.0, 30, tokens=ReflectionTokens.from_tokenizer(TOKENIZER, WORDS))
    path = tmp_path / "schedule.json"
    path.write_text(schedule.to_json())
    assert DecodingStrategy.parse(str(path), TOKENIZER, WORDS).schedule == schedule


def test_rlvr_under_a_schedule(tmp_path):
    stage = RLVR(
        EXAMPLES, by_length, steps=2, prompts=3, samples=4, max_new_tokens=16, lr=1e-3, limit=None,
        schedule="cyclic:amplitude=4,period=8,phase=any", words="wait,back",
    )  # fmt: skip
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path / "run")
    lines = [line for line in log_of(tmp_path / "run") if "ratio_mean" in line]
    assert lines
    assert all(abs(line["ratio_mean"] - 1) < 1e-4 and abs(line["ratio_max"] - 1) < 1e-3 for line in lines)
    with pytest.raises(TrainError, match="cannot be replayed"):
        Recipe([RLVR(EXAMPLES, by_length, steps=1, schedule="s1", words="wait")]).run(
            llama(), TOKENIZER, tmp_path / "s1"
        )


def by_length(completion, example):
    return len(completion.split()) / 10
