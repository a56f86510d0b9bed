"""Segments and trees: what is sampled within completions, and what tokens are credited with, by hand."""

import contextlib
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, length_reward, llama, log_of, rlvr, same, weights
from warpup.train import Recipe, TrainError
from warpup.train.model.batch import collate
from warpup.train.model.heads import Head
from warpup.train.rewards.reward_set import RewardSet, Scores
from warpup.train.sampling import rounds, segments, trees
from warpup.train.sampling.groups import Sampled
from warpup.train.sampling.prompts import Prompts
from warpup.train.sampling.rollouts import Rollouts, rollout
from warpup.train.sampling.segments import Cut, cuts_of
from warpup.train.sampling.trees import Place, depth_of, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")


def chain(**options):
    return rlvr(**{"advantage": "segment", "branches": 3, "segment_every": 2, "segment_threshold": 0.2} | options)


def tree(**options):
    return rlvr(**{"advantage": "tree", "branches": 2, "samples": 8, "max_new_tokens": 9} | options)


def test_where_segments_begin():
    assert cuts_of(torch.tensor([[-1, 0, 0, 1, -1], [-1] * 5, [0, 1, 1, 2, 2]])) == [
        Cut(0, 0, 1), Cut(0, 1, 3), Cut(2, 0, 0), Cut(2, 1, 1), Cut(2, 2, 3),
    ]  # fmt: skip


def test_segments_are_credited_with_what_they_change(tmp_path, monkeypatch):
    """V of each cut is the mean reward of three continuations of what stands before it; the credit of a segment is the
    next one's V, or the outcome, less its own; tokens of more than the threshold are not learned."""
    seen, plain = {"worth": {}, "sampled": []}, segments.worth_of

    def continued(model, contexts, **options):
        seen["sampled"][-1].append(contexts)
        return rollout(model, contexts, **options)

    def worth_of(settings, run, prompts, picked, rewards, sampled, cuts):
        seen["sampled"].append([cuts])
        found = plain(settings, run, prompts, picked, rewards, sampled, cuts)
        seen["worth"] |= dict(zip([(cut.row, cut.segment) for cut in cuts], found, strict=True))
        return found

    calls, score = [], RewardSet.score
    monkeypatch.setattr(segments, "worth_of", worth_of)
    monkeypatch.setattr(segments, "rollout", continued)
    monkeypatch.setattr(RewardSet, "score", lambda s, c, e, group: calls.append((c, e)) or score(s, c, e, group=group))
    credit = rounds.credit_segments
    monkeypatch.setattr(rounds, "credit_segments", lambda *a: seen.setdefault("got", credit(*a)))
    Recipe([chain(steps=1)]).run(llama(), TOKENIZER, tmp_path)
    got = seen["got"]
    many = 0
    for n, (_, ids, own) in enumerate(got.pairs):
        p = got.rolls.logp[n, : len(ids)].exp().tolist()
        unsure = [t for t in range(len(ids)) if p[t] < 0.2]
        starts = unsure[::2]
        many += len(starts) > 1
        worth = [seen["worth"][n, k] for k in range(len(starts))] + [got.scores.rewards[n]]
        for t in range(len(ids)):
            k = sum(start <= t for start in starts) - 1
            assert own[t] == (k >= 0 and p[t] <= 0.2)
            want = worth[k + 1] - worth[k] if own[t] else 0.0
            assert got.advantages[n, t].item() == pytest.approx(want, abs=1e-6)
    assert many > 3
    # A continuation is judged as a whole completion: what stood before the cut, and what was sampled behind it.
    for (cuts, contexts), (completions, examples) in zip(seen["sampled"], calls[1:], strict=True):
        for n, (cut, context) in enumerate(zip(cuts, contexts, strict=True)):
            prompt, ids, _ = got.pairs[cut.row]
            assert context == prompt + ids[: cut.at]
            for completion in completions[3 * n : 3 * n + 3]:
                assert completion.token_ids[: cut.at] == ids[: cut.at]
                assert cut.at < completion.length <= 8
                assert completion.finished == (completion.token_ids[-1] == TOKENIZER.eos_token_id)
            asked = {example["prompt"] for example in examples[3 * n : 3 * n + 3]}
            assert [TOKENIZER(text)["input_ids"] for text in asked] == [prompt]
    [line] = [line for line in log_of(tmp_path) if "loss" in line]
    assert line["tokens"] == sum(
        sum(own) for n, (*_, own) in enumerate(got.pairs) if got.advantages[n - n % 4 :][:4].any()
    )
    assert line["length"] == sum(len(ids) for _, ids, _ in got.pairs) / 12


def test_a_continuation_that_went_too_far_is_cut_off(monkeypatch):
    """Those of one part are sampled to one length: behind token 3 of 4 there is room for one token, whatever came."""
    eos, seen = TOKENIZER.eos_token_id, []
    rolls = Rollouts(torch.tensor([[9, eos], [9, eos]]), torch.tensor([2, 2]), torch.zeros(2, 2), torch.ones(2).bool())
    monkeypatch.setattr(segments, "rollout", lambda *a, **k: rolls)
    stage = chain(max_new_tokens=4, branches=1, samples=2, reward=lambda text, row: 1.0)
    rewards = stage.reward_set()
    score = rewards.score
    rewards.score = lambda completions, *a, **k: seen.extend(completions) or score(completions, *a, **k)
    sampled = Sampled([([1], [5, 6, 7, 8], []), ([1], [5, 6, 7, 8], [])], rolls, Scores(), torch.zeros(2), {}, 0.0)
    run = SimpleNamespace(computing=contextlib.nullcontext, model=None, tokenizer=TOKENIZER, generator=None)
    prompts = Prompts(EXAMPLES, [], [eos], None, 99)
    segments.worth_of(stage, run, prompts, [0], rewards, sampled, [Cut(0, 0, 2), Cut(1, 0, 3)])
    assert [(c.token_ids, c.finished) for c in seen] == [([5, 6, 9, eos], True), ([5, 6, 7, 9], False)]


def test_a_failed_reward_leaves_its_completion_out(tmp_path, monkeypatch):
    """One of the completions; and all continuations of a cut, whose segments then have no credit."""
    count = iter(range(10**6))

    def reward(text, row):
        n = next(count)
        return math.nan if n == 0 or 15 <= n < 18 else float(n % 5)

    seen, credit = {}, rounds.credit_segments
    monkeypatch.setattr(rounds, "credit_segments", lambda *a: seen.setdefault("got", credit(*a)))
    Recipe([chain(steps=1, reward=reward)]).run(llama(), TOKENIZER, tmp_path)
    got = seen["got"]
    assert not any(got.pairs[0][2])
    assert got.advantages.isfinite().all()
    [line] = [line for line in log_of(tmp_path) if "loss" in line]
    assert math.isfinite(line["loss"])
    assert line["reward_errors"] == 4


def test_depth_is_that_of_a_whole_tree():
    assert [depth_of(8, 2), depth_of(16, 4), depth_of(3, 3)] == [3, 2, 1]
    for samples, branches in ((6, 2), (4, 1), (1, 2)):
        with pytest.raises(ValueError, match=f"samples, {samples}, is not a power of {branches}"):
            depth_of(samples, branches)


def test_the_first_row_that_has_an_edge_learns_it():
    ends = [
        Place(0, [5, 6, 7], [-1.0, -2, -3], [(0, 0, 0), (1, 0, 2), (2, 2, 3)], True),
        Place(0, [5, 6, 8, 9], [-1.0, -2, -4, -5], [(0, 0, 0), (1, 0, 2), (3, 2, 4)], False),
        Place(0, [4], [-6.0], [(0, 0, 0), (4, 0, 1)], True, copies=2),
        Place(0, [4], [-6.0], [(0, 0, 0), (4, 0, 1)], True, copies=2),
    ]
    rolls, owned = rows_of(ends, 0, "cpu")
    assert owned == [[True, True, True], [False, False, True, True], [True], [False]]
    assert rolls.learned().sum(1).tolist() == [3, 2, 1, 0]
    assert rolls.tokens.tolist() == [[5, 6, 7, 0], [5, 6, 8, 9], [4, 0, 0, 0], [4, 0, 0, 0]]
    assert rolls.lengths.tolist() == [3, 4, 1, 1]


def test_edges_are_credited_with_what_they_change(tmp_path, monkeypatch):
    """Recursively by hand: V of a place is the mean of those behind it. Log-probs are those of the whole text, and each
    sampled token is learned once."""
    seen, plain, drawn = {}, rounds.grow, []
    monkeypatch.setattr(rounds, "grow", lambda *a: seen.setdefault("got", plain(*a)))
    monkeypatch.setattr(trees, "rollout", lambda *a, **k: drawn.append(rollout(*a, **k)) or drawn[-1])
    model = llama()
    Recipe([tree(steps=1, lr=1e-12, reward=lambda text, row: length_reward(text, row) ** 2)]).run(
        model, TOKENIZER, tmp_path
    )
    got = seen["got"]
    rolls = got.rolls
    assert len(got.pairs) == 3 * 8
    assert [d.tokens.shape[1] for d in drawn] == [3, 3, 3]
    assert int(rolls.learned().sum()) == sum(int(d.lengths.sum()) for d in drawn)
    batch = collate(got.pairs, range(24), pad=0)
    head = Head(model.eval())
    with torch.no_grad():
        logp = head.logprob(head.hidden(batch), batch.completion)
    torch.testing.assert_close(logp, rolls.logp[rolls.learned()], atol=2e-5, rtol=1e-4)

    def value(rows, at):
        """Of the rows that share their first `at` tokens."""
        return sum(got.scores.rewards[n] for n in rows) / len(rows)

    def walk(rows, begin, level):
        if level == 3 or len(got.pairs[rows[0]][1]) <= begin:
            return
        half = len(rows) // 2
        for part in (rows[:half], rows[half:]):
            end = min(begin + 3, len(got.pairs[part[0]][1]))
            credit = value(part, end) - value(rows, begin)
            owner = next(n for n in part if rolls.learned()[n, begin])
            assert rolls.learned()[part, begin].sum() == 1
            assert got.advantages[owner, begin:end].tolist() == pytest.approx([credit] * (end - begin), abs=1e-5)
            walk(part, end, level + 1)

    for prompt in range(3):
        walk(list(range(8 * prompt, 8 * prompt + 8)), 0, 0)
    assert got.advantages[~rolls.learned()].abs().sum() == 0
    [line] = [line for line in log_of(tmp_path) if "loss" in line]
    assert line["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert line["length"] == float(rolls.lengths.sum()) / 24


@pytest.mark.parametrize("make", [chain, tree])
def test_how_a_step_is_cut_changes_nothing_and_a_kill_neither(tmp_path, make):
    more = {"steps": 4, "save_every": 1, "lr": 1e-3, "inner_epochs": 2}
    whole = weights(Recipe([make(**more)]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([make(**more)]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(3))
    assert same(whole, weights(Recipe([make(**more)]).run(llama(), TOKENIZER, tmp_path / "run")))
    cut = weights(Recipe([make(**more, max_tokens=50, rows=5)]).run(llama(), TOKENIZER, tmp_path / "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=2e-3, atol=5e-5)


@pytest.mark.parametrize("make", [chain, tree])
def test_a_bandit_is_learned(tmp_path, make):
    """Paid for each `knight`, which credit by places finds."""
    more = {"reward": lambda text, row: text.split().count("knight") / 4, "data": EXAMPLES[:4], "max_new_tokens": 4}
    Recipe([make(**more, steps=25, prompts=4, branches=2, samples=8, segment_every=1)] if make is chain else
           [make(**more, steps=25, prompts=4)]).run(llama(initializer_range=0.02), TOKENIZER, tmp_path)  # fmt: skip
    rewards = [line["reward"] for line in log_of(tmp_path) if "reward" in line]
    assert sum(rewards[:3]) / 3 < 0.2
    assert sum(rewards[-3:]) / 3 > 0.6


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (chain(schedule="cyclic:amplitude=4,period=8"), "rlvr.schedule: .*'segment' does not follow it"),
        (chain(repetition=1.2), "rlvr.repetition: .*'segment' does not follow it"),
        (tree(presence=0.5), "rlvr.presence: .*'tree' does not follow it"),
        (chain(stop=("back",)), "rlvr.stop: .*'segment' does not follow it"),
        (chain(segment_threshold=0.0), "rlvr.segment_threshold: expected above 0"),
        (chain(scale="std"), "rlvr.scale: .*'segment' has its own"),
        (tree(samples=6), "rlvr.branches: samples, 6, is not a power of 2"),
        (tree(top_p=0.9), "rlvr.top_p: .*'tree' does not follow it"),
        (tree(edge_tokens=5), "rlvr.edge_tokens: expected 2 edges before the last"),
        (tree(scale="batch_std"), "rlvr.*scale must be one of none, std"),
        (tree(mask_truncated=True), "rlvr.mask_truncated: .*what others begin with"),
        (tree(segment_every=3), "rlvr.segment_every: .*there are no segments"),
        (chain(edge_tokens=3), "rlvr.edge_tokens: .*there is no tree"),
        (rlvr(branches=3), "rlvr.branches: .*only advantages segment and tree branch"),
    ],
)
def test_wrong_settings(stage, message):
    with pytest.raises(TrainError, match=message):
        replace(stage).check()
