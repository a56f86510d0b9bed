"""Training under a thinking budget: what it writes carries no loss, and what is drawn keeps its probability."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    Killed,
    completion_logprob,
    killer,
    llama,
    log_of,
    rlvr,
    same,
    weights,
)
from tests.train.sampling.test_episodes import Asks
from tests.train.sampling.test_rollouts import RECURRENT, SHAPE
from warpup.policy.kinds import PolicyOptions
from warpup.train import Recipe, TrainError, rollout
from warpup.train.evaluation import evaluate
from warpup.train.model.batch import collate
from warpup.train.model.heads import Head
from warpup.train.model.tokens import encode_pair
from warpup.train.rewards.reward_set import VERIFIER
from warpup.train.sampling.decoding import DecodingStrategy
from warpup.train.sampling.episodes import play
from warpup.train.stages.policy_step import Experience

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*what makes its logits:UserWarning"),
]
START, END, WAIT, BACK = TOKENIZER.convert_tokens_to_ids(["<think>", "</think>", "wait", "back"])
BUDGET = {"tokens": 7, "message": "back", "warn_at": 3, "warning": "wait wait"}
LIMIT = 20


def under(budget, schedule="plain"):
    return DecodingStrategy.parse(schedule, TOKENIZER, ("wait", "back")).under(budget, TOKENIZER, LIMIT, "budget")


def sample(decoding, copies=6, **options):
    """Completions of prompts that open the thinking, as a chat template does."""
    model = llama().eval()
    prompts = [[*encode_pair(TOKENIZER, row)[0], START] for row in EXAMPLES[:4]]
    rolls = rollout(
        model, prompts, eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=LIMIT, copies=copies, temperature=0.9,
        decoding=decoding, generator=torch.Generator().manual_seed(0), record=True, **options,
    )  # fmt: skip
    own = rolls.learned()
    pairs = [
        (prompts[n // copies], rolls.completion(n), own[n, : rolls.lengths[n]].tolist()) for n in range(4 * copies)
    ]
    experience = Experience(pairs, rolls, torch.linspace(-1, 1, len(pairs)), 0.9)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1)).tolist()
    return model, experience, collate(pairs, order, pad=0)


def written_by_hand(said, limit, warn_at=None, stops=lambda t: False):
    """What the budget wrote in a completion whose prompt thinks: at each place the token, or None. `stops` says of the
    places where a probe is due whether the thinking is closed there."""
    thinking, start, found = True, 0, []
    for t, token in enumerate(said):
        warned, late = t - (limit if warn_at is None else warn_at), t - max(limit, start)
        free = thinking and late < 0 and not (0 <= warned < 2 and start <= t - warned)
        if free and stops(t):
            limit, late = t, 0
        if thinking and late >= 0:
            found.append([BACK, END][late])
        else:
            found.append(None if free or not thinking else WAIT)
        if token in (START, END):
            thinking, start = token == START, t + 1 if token == START else start
    return found


def test_what_is_written_and_what_is_drawn():
    rolls = sample(under(BUDGET))[1].rolls
    warned = closed = 0
    for n in range(24):
        said, length = rolls.completion(n), int(rolls.lengths[n])
        written = written_by_hand(said, 7, warn_at=3)
        assert all(must in (None, token) for must, token in zip(written, said, strict=True))
        assert rolls.sampled[n, :length].tolist() == [must is None for must in written]
        assert (rolls.logp[n, :length] == 0).tolist() == [must is not None for must in written]
        assert not rolls.sampled[n, length:].any()
        warned, closed = warned + (WAIT in written), closed + (END in written)
    assert warned > 10
    assert closed > 10


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("plain", {}),
        ("plain", {"top_p": 0.9}),
        ("plain", {"repetition": 1.3, "presence": 0.4}),
        ("cyclic:amplitude=3,period=6", {"top_k": 9, "repetition": 1.2}),
    ],
    ids=str,
)
def test_the_ratio_of_fresh_samples_is_one(schedule, options):
    """Of the tokens that were drawn, at the log-probs they were drawn at; the others are not in the batch."""
    model, experience, batch = sample(under(BUDGET, schedule), **options)
    rolls = experience.rolls
    assert len(batch.completion) == rolls.learned().sum() < rolls.lengths.sum()
    old = experience.packed(rolls.logp, batch)
    replayed = completion_logprob(model, batch, 0.9, **experience.replay(batch))
    torch.testing.assert_close((replayed - old).exp(), torch.ones_like(old), rtol=0, atol=3e-5)


def test_the_gradient_is_that_of_the_drawn_tokens():
    """By hand: the advantage-weighted log-probs of the drawn tokens alone, each after all that was said."""
    model, experience, batch = sample(under(BUDGET), copies=2)
    rolls, head, tokens = experience.rolls, Head(model), int(experience.learned.sum())
    options = PolicyOptions(kind="grpo", normalizer=("token", tokens))
    old, advantages = experience.packed(rolls.logp, batch), experience.packed(experience.advantages, batch)
    loss, _ = head.policy_loss(
        options, head.hidden(batch), batch.completion, old, advantages, batch.cu_seqlens, 0.9,
        replay=experience.replay(batch),
    )  # fmt: skip
    loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    by_hand = 0.0
    for n, (prompt, said, own) in enumerate(experience.pairs):
        logp = (model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1] / 0.9).log_softmax(-1)
        for t, mine in enumerate(own):
            if mine:
                by_hand = by_hand - experience.advantages[n] * logp[t, said[t]] / tokens
    by_hand.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-3, atol=1e-6)
    assert got["lm_head.weight"].abs().sum() > 0


def test_a_budget_that_is_never_spent_changes_nothing():
    plain, under_one = (sample(decoding)[1].rolls for decoding in (None, under(LIMIT - 2)))
    assert torch.equal(plain.tokens[:, :17], under_one.tokens[:, :17])
    assert torch.equal(plain.logp[:, :17], under_one.logp[:, :17])


def test_a_probe_is_the_models_own_answer():
    """By hand, row by row and without a cache: where its entropies settle, the thinking is closed. What is drawn before
    that is what would be drawn without a probe, at the same log-probs."""
    budget = {"tokens": 17, "message": "back", "probe_every": 2, "probe_below": 0.05, "probe_least": 3}
    plain = sample(under({"tokens": 17, "message": "back"}))[1].rolls
    model, experience, batch = sample(under(budget))
    rolls, stopped, unclear = experience.rolls, 0, 0
    for n, (prompt, said, own) in enumerate(experience.pairs):
        entropies, margins = [], []

        def stops(t, prompt=prompt, said=said, entropies=entropies, margins=margins):
            if t == 0 or t % 2:
                return False
            logits = model(torch.tensor([prompt + said[:t] + [BACK, END]])).logits[0, -1].detach()
            entropies.append(float(-(logits.softmax(0) * logits.log_softmax(0)).sum()))
            mean, variance = entropies[0], 0.0
            for entropy in entropies[1:]:
                mean = 0.8 * mean + 0.2 * entropy
                variance = 0.8 * variance + 0.2 * (entropy - mean) ** 2
            margins.append(abs(variance - 0.05))
            return len(entropies) >= 3 and variance < 0.05

        written = written_by_hand(said, 17, stops=stops)
        if min(margins, default=1.0) < 1e-4:  # too near to tell by another rounding
            unclear += 1
            continue
        assert own == [must is None for must in written]
        stop = own.index(False) if False in own else len(said)
        assert torch.equal(rolls.tokens[n, :stop], plain.tokens[n, :stop])
        torch.testing.assert_close(rolls.logp[n, :stop], plain.logp[n, :stop], atol=2e-5, rtol=1e-4)
        stopped += stop < 17
    assert stopped > 5
    assert unclear < 3
    old = experience.packed(rolls.logp, batch)
    replayed = completion_logprob(model, batch, 0.9, **experience.replay(batch))
    torch.testing.assert_close((replayed - old).exp(), torch.ones_like(old), rtol=0, atol=3e-5)


def test_a_model_that_cannot_be_probed_is_refused(tmp_path):
    config = Gemma3TextConfig(**SHAPE | RECURRENT["Gemma3Text"])
    probed = {"tokens": 5, "probe_every": 1, "probe_below": 0.1, "probe_least": 2}
    with pytest.raises(TrainError, match=r"its cache has layers that cannot go back .*; leave probe_every out"):
        Recipe([rlvr(thinking_budget=probed)]).run(Gemma3ForCausalLM(config), TOKENIZER, tmp_path)


def test_a_stage_is_resumed(tmp_path):
    """Bit for bit, and every ratio of its first step is 1."""

    def stage():
        data = [e | {"prompt": e["prompt"] + " <think>"} for e in EXAMPLES]
        return rlvr(data=data, steps=4, max_new_tokens=12, thinking_budget={"tokens": 3, "message": "back"})

    whole = weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "whole"))
    line = next(line for line in log_of(tmp_path / "whole") if "loss" in line)
    assert line["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert line["tokens"] < 12 * line["length"]
    with pytest.raises(Killed):
        Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(3))
    assert same(whole, weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run")))


@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"repetition": 1.2, "presence": -0.5}], ids=str)
def test_episodes(options):
    """Each turn has a budget of its own, if it thinks; what was written belongs to its turn."""
    model = llama().eval()
    examples = [e | {"prompt": e["prompt"] + " <think>"} for e in EXAMPLES[:3]]

    class Thinks(Asks):
        def step(self, completion):
            return super().step(completion)._replace(observation=" wait <think>")

    played = play(
        model, TOKENIZER, Thinks, examples, turns=3, ends=[TOKENIZER.eos_token_id], copies=4, limit=500,
        max_new_tokens=6, generator=torch.Generator().manual_seed(0), record=True, decoding=under(2), **options,
    )  # fmt: skip
    rolls = played.rolls
    written = (rolls.turn >= 0) & ~rolls.learned()
    assert len(rolls.turn[written].unique()) > 1
    assert (rolls.tokens[written] == END).all()
    experience, batch = Experience(played.pairs, rolls, torch.zeros(12), 1.0), collate(played.pairs, range(12), pad=0)
    old = experience.packed(rolls.logp, batch)
    replayed = completion_logprob(model, batch, **experience.replay(batch))
    torch.testing.assert_close(replayed, old, rtol=0, atol=3e-5)


@pytest.mark.parametrize("advantage", ["gae", "reinforce_pp", "opo", "optimal_token_baseline"])
def test_advantages_of_tokens_go_with_a_budget(tmp_path, advantage):
    own = {"loss": "ppo"} if advantage == "gae" else {}
    data = [e | {"prompt": e["prompt"] + " <think>"} for e in EXAMPLES]
    stage = rlvr(data=data, steps=1, thinking_budget=2, advantage=advantage, **own)
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    assert any("loss" in line for line in log_of(tmp_path))


def test_a_turn_pays_the_last_token_that_was_drawn(tmp_path):
    data = [e | {"prompt": e["prompt"] + " <think>"} for e in EXAMPLES]
    stage = rlvr(
        data=data, steps=1, environment=Asks, reward=VERIFIER, turns=2, advantage="gae", loss="ppo", thinking_budget=2
    )
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    (line,) = (line for line in log_of(tmp_path) if "loss" in line)
    assert line["return"] > 0


def test_held_out_measurements():
    examples = [e | {"prompt": e["prompt"] + " <think>"} for e in EXAMPLES[:4]]
    options = {"samples": 2, "max_new_tokens": 16, "traces": 4}
    plain, cut = (
        evaluate(llama(), TOKENIZER, examples, VERIFIER, thinking_budget=b, **options) for b in (None, {"tokens": 0})
    )
    assert all(trace["completion"].split()[0] == "</think>" for trace in cut.traces)
    assert not all(trace["completion"].split()[0] == "</think>" for trace in plain.traces)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking_budget": -1}, "rlvr.thinking_budget: tokens: expected a whole number of at least 0, got -1"),
        ({"thinking_budget": {"message": "wait"}}, "rlvr.thinking_budget: tokens is missing"),
        ({"thinking_budget": {"tokens": 2, "text": "a"}}, "rlvr.thinking_budget: it has tokens, .* got text"),
        ({"thinking_budget": {"tokens": 2, "message": 3}}, "rlvr.thinking_budget: expected a text for message, got 3"),
        ({"thinking_budget": {"tokens": 2.5}}, "rlvr.thinking_budget: expected a whole number for tokens, got 2.5"),
        ({"thinking_budget": {"tokens": 2, "warn_at": 1}}, "rlvr.thinking_budget: warn_at, warning: a warning has"),
        ({"thinking_budget": 7}, "7 tokens of thinking and 1 that close it leave none of max_new_tokens, 8,"),
        ({"thinking_budget": 2, "advantage": "segment"}, "rlvr.thinking_budget: got 2, but advantage 'segment'"),
        ({"thinking_budget": 2, "advantage": "tree", "branches": 2}, "rlvr.thinking_budget: got 2, but advantage"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(TrainError, match=message):
        Recipe([rlvr(**options)]).run(llama(), TOKENIZER, tmp_path)
