"""Thinking budgets, token by token: what is forced, counted by hand."""

import math

import pytest
import torch

from tests.reflection.schedules import VOCAB
from warpup.reflection import BudgetState, ReflectionBatch, ReflectionTokens, ThinkingBudget

ONE = {"think_start": (3,), "think_end": (4,)}
LONG = {"think_start": (3, 3), "think_end": (4, 5, 4)}  # markers of several tokens, which overlap themselves
PLAIN = ThinkingBudget(3, **ONE)


def said(budgets, prompts, drawn, device="cpu", done=None):
    """What requests say that draw these tokens, one list each, where they are free; and where they were not."""
    budgets = budgets if isinstance(budgets, list) else [budgets] * len(prompts)
    markers = next(b for b in budgets if b).markers
    batch = ReflectionBatch(len(prompts), tokens=markers, device=device)
    state = BudgetState(batch, room=8)
    for slot, budget in enumerate(budgets):
        state.set([slot], budget)
    batch.begin(range(len(prompts)), prompts, done)
    for slot, tokens in enumerate(done or ()):
        ids = torch.tensor([[*prompts[slot], *tokens]], device=device)
        state.begin([slot], ids, torch.tensor([len(prompts[slot])], device=device))
    tokens, places = [[] for _ in prompts], [[] for _ in prompts]
    for t, row in enumerate(zip(*drawn, strict=True)):
        forced = state.forced()
        assert torch.equal(forced, state.forced())  # asking changes nothing
        taken = torch.where(forced < 0, torch.tensor(row, device=device), forced)
        batch.update(taken)
        for slot, (token, must) in enumerate(zip(taken.tolist(), forced.tolist(), strict=True)):
            tokens[slot].append(token)
            if must >= 0:
                places[slot].append(t)
    return tokens, places


@pytest.mark.parametrize(
    ("budget", "prompt", "drawn", "want", "places"),
    [
        # Three tokens of thought, then the end; the answer is free, and so is an end marker in it.
        (PLAIN, [7, 3], [8, 8, 8, 8, 8, 4], [8, 8, 8, 4, 8, 4], [3]),
        # The start is the model's own: it counts from behind it.
        (PLAIN, [7], [8, 3, 8, 8, 8, 8, 8], [8, 3, 8, 8, 8, 4, 8], [5]),
        # The model ends in time, or with its last token.
        (PLAIN, [3], [8, 8, 4, 8, 8], [8, 8, 4, 8, 8], []),
        (PLAIN, [3], [8, 8, 8, 4, 8], [8, 8, 8, 4, 8], [3]),
        # It never thinks: without a start marker nothing is counted; the prompt ended the thinking.
        (PLAIN, [7], [8, 8, 8, 8, 8], [8, 8, 8, 8, 8], []),
        (PLAIN, [3, 8, 4], [8, 8, 8, 8, 8], [8, 8, 8, 8, 8], []),
        # Thought in the prompt is not counted: it was not generated.
        (PLAIN, [3, 8, 8, 8, 8], [8, 8, 8, 8, 8], [8, 8, 8, 4, 8], [3]),
        # Nothing may be thought.
        (PLAIN.replace(tokens=0), [3], [8, 8, 8], [4, 8, 8], [0]),
        (PLAIN.replace(tokens=0), [7], [3, 8, 8], [3, 4, 8], [1]),
        # A message before the end.
        (PLAIN.replace(message=(6, 7)), [3], [8] * 7, [8, 8, 8, 6, 7, 4, 8], [3, 4, 5]),
        # A warning in between; thinking that ends before it, or within the budget behind it.
        (PLAIN.replace(tokens=5, warn_at=2, warning=(6, 7)), [3], [8] * 7, [8, 8, 6, 7, 8, 4, 8], [2, 3, 5]),
        (PLAIN.replace(tokens=5, warn_at=2, warning=(6, 7)), [3], [8, 4, 8, 8, 8], [8, 4, 8, 8, 8], []),
        (PLAIN.replace(tokens=5, warn_at=2, warning=(6, 7)), [3], [8] * 4 + [4, 8], [8, 8, 6, 7, 4, 8], [2, 3]),
        (PLAIN.replace(tokens=2, warn_at=0, warning=(6, 7)), [3], [8] * 4, [6, 7, 4, 8], [0, 1, 2]),
        # Begun again within the budget: it goes on counting, and a warning whose place was passed is left out.
        (PLAIN.replace(tokens=6), [3], [8, 4, 8, 3, 8, 8, 8, 8], [8, 4, 8, 3, 8, 8, 4, 8], [6]),
        (PLAIN.replace(tokens=6, warn_at=2, warning=(6, 7)), [3], [8, 4, 3, 8, 8], [8, 4, 3, 8, 8], []),
        # Begun again after it, and again within thinking: no way around the budget.
        (PLAIN, [3], [8, 8, 8, 8, 8, 3, 8, 8], [8, 8, 8, 4, 8, 3, 4, 8], [3, 6]),
        (PLAIN, [3], [8, 3, 3, 3, 3, 8], [8, 3, 3, 4, 3, 4], [3, 5]),
        # Markers of several tokens. Half of an end that the model wrote itself is completed by what is forced.
        (ThinkingBudget(3, **LONG), [7, 3, 3], [8] * 8, [8, 8, 8, 4, 5, 4, 8, 8], [3, 4, 5]),
        (ThinkingBudget(3, **LONG), [3, 3], [8, 4, 5, 8, 8], [8, 4, 5, 4, 8], [3]),
        (ThinkingBudget(3, **LONG), [3, 3], [8, 8, 4, 8, 8, 8, 8], [8, 8, 4, 4, 5, 4, 8], [3, 4, 5]),
        (ThinkingBudget(3, **LONG), [3], [3, 8, 8, 8, 8, 8, 8, 8], [3, 8, 8, 8, 4, 5, 4, 8], [4, 5, 6]),
        # Thinking without a start marker: from the first token on.
        (ThinkingBudget(2, think_end=(4,)), [7], [8] * 4, [8, 8, 4, 8], [2]),
        (ThinkingBudget(2, think_end=(4,)), [7, 4], [8] * 4, [8] * 4, []),
    ],
)  # fmt: skip
def test_one_request(backend, budget, prompt, drawn, want, places):
    assert said(budget, [prompt], [drawn], backend.device) == ([want], [places])


def test_each_request_has_its_own(backend):
    budgets = [None, PLAIN, PLAIN.replace(tokens=1, message=(6,))]
    tokens, _ = said(budgets, [[3], [3, 3], [7, 3]], [[8] * 5] * 3, backend.device)
    assert tokens == [[8] * 5, [8, 8, 8, 4, 8], [8, 6, 4, 8, 8]]


def test_a_request_that_comes_back(backend):
    """What it had generated is counted, in the middle of what is forced too."""
    budget = PLAIN.replace(message=(6, 7))
    for done in ([], [8], [8, 8, 8], [8, 8, 8, 6], [8, 8, 8, 6, 7], [8, 8, 8, 6, 7, 4]):
        left = [8] * (8 - len(done))
        tokens, _ = said(budget, [[3]], [left], backend.device, done=[done])
        assert [*done, *tokens[0]] == [8, 8, 8, 6, 7, 4, 8, 8]


@pytest.mark.parametrize(
    ("markers", "prompts", "done", "want"),
    [
        # Thinking in the prompt; begun behind it, once and twice; begun and ended in the prompt; not at all.
        (
            ONE, [[7, 3], [7], [7], [3, 4], [3, 4], [7]], [[8, 3, 8], [8, 3, 8], [3, 4, 3], [8], [8, 3], [8]],
            [0, 2, 1, -1, 2, -1],
        ),
        # A marker half in the prompt, and one that overlaps itself.
        (LONG, [[7, 3], [7], [3, 3, 4, 5, 4]], [[3, 8], [3, 3, 3], [3, 3]], [1, 2, 2]),
        ({"think_end": (4,)}, [[7], [4], [7]], [[8], [8], [4, 8]], [0, -1, 0]),
    ],
)  # fmt: skip
def test_where_thinking_first_began(backend, markers, prompts, done, want):
    """Looked up in the tokens of rows of several lengths, what stands behind them left out."""
    budget = ThinkingBudget(3, **markers)
    batch = ReflectionBatch(len(prompts), tokens=budget.markers, device=backend.device)
    state, rows = BudgetState(batch, budget), [p + d for p, d in zip(prompts, done, strict=True)]
    ids = torch.tensor([row + [3] * (9 - len(row)) for row in rows], device=backend.device)
    prompt, count = (torch.tensor([len(x) for x in lists], device=backend.device) for lists in (prompts, rows))
    state.begin(range(len(rows)), ids, prompt, count)
    assert state.began[:-1].tolist() == want


def test_tokens_that_are_taken_back(backend):
    """Drafts: a start that was rejected began nothing, an end that was rejected ended nothing."""
    batch = ReflectionBatch(1, tokens=PLAIN.markers, device=backend.device)
    state = BudgetState(batch, PLAIN)
    batch.begin([0], [[7]])

    def after(*tokens, back=0):
        back = torch.tensor([back], device=backend.device)
        batch.update(torch.tensor([tokens], dtype=torch.int64, device=backend.device), rollback=back)
        return state.forced().item()

    assert after(3) == -1
    assert after(8, back=1) == -1  # it was another token
    assert after(8, 8, 8, 8) == -1
    assert after(3) == -1  # here it begins, at 6
    assert after(8, 8, 8) == 4
    assert after(8, 8, back=3) == -1  # 8 generated
    assert after(8) == 4
    assert after(4) == -1
    assert after(back=1) == 4


def test_a_slot_is_taken_again(backend):
    batch = ReflectionBatch(2, tokens=PLAIN.markers, device=backend.device)
    state = BudgetState(batch, PLAIN)
    batch.begin([0, 1], [[3], [3]], [[8, 8], [8, 8, 8]])
    assert state.forced().tolist() == [-1, 4]
    batch.begin([1], [[7]])
    state.set([1], PLAIN)
    batch.update(torch.tensor([8, 3], device=backend.device))
    assert state.forced().tolist() == [4, -1]
    state.set([0], None)
    assert state.forced().tolist() == [-1, -1]


def test_rows_of_nobody(backend):
    batch = ReflectionBatch(2, tokens=PLAIN.markers, device=backend.device)
    state = BudgetState(batch, PLAIN)
    batch.begin([0, 1], [[3], [3]], [[8, 8, 8], [8]])
    slots = torch.tensor([-1, 1, -1, 0], device=backend.device)
    assert state.forced(slots).tolist() == [-1, -1, -1, 4]
    assert state.forced(slots[:0]).tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_forced_token_is_certain(backend, dtype):
    """Its log-prob is 0 at any temperature; the logits of the other rows keep their bits."""
    batch = ReflectionBatch(2, tokens=PLAIN.markers, device=backend.device)
    state = BudgetState(batch, PLAIN)
    batch.begin([0, 1], [[3], [3]], [[8], [8, 8, 8]])
    logits = (100 * torch.randn(2, VOCAB, device=backend.device)).to(dtype)
    before = logits.clone()
    assert state.force_(logits).tolist() == [-1, 4]
    assert torch.equal(logits[0], before[0])
    for temperature in (0.01, 1.0, 100.0):
        logp = (logits[1].double() / temperature).log_softmax(0)
        assert logp[4] == 0
        assert logp.argmax() == 4
        assert (logp < -math.log(2**60)).sum() == VOCAB - 1


def test_a_token_that_the_vocabulary_lacks_ends_no_server(backend):
    """A request may bring any ids: its row stays as it is, and the others are forced."""
    foreign = PLAIN.replace(message=(VOCAB,))
    batch = ReflectionBatch(2, tokens=PLAIN.markers, device=backend.device)
    state = BudgetState(batch)
    state.set([0], foreign)
    state.set([1], PLAIN)
    batch.begin([0, 1], [[3], [3]], [[8, 8, 8], [8, 8, 8]])
    logits = torch.randn(2, VOCAB, device=backend.device)
    before = logits.clone()
    state.force_(logits)
    assert torch.equal(logits[0], before[0])
    assert logits[1].argmax() == 4
    with pytest.raises(ValueError, match=f"message: expected token ids below {VOCAB}"):
        foreign.check_vocabulary(VOCAB)
    PLAIN.check_vocabulary(VOCAB)


def test_the_draw_of_a_free_token_is_the_models_own(backend):
    """Sampling under a budget that is never spent draws the same tokens at the same log-probs."""
    logits = torch.randn(6, 2, VOCAB, device=backend.device)
    drawn = []
    for budget in (None, PLAIN.replace(tokens=100)):
        batch = ReflectionBatch(2, tokens=PLAIN.markers, device=backend.device)
        state = BudgetState(batch, budget)
        batch.begin([0, 1], [[3], [7]])
        batch.set_sampling([0, 1], 0.8, top_p=0.9, seed=5)
        for row in logits:
            step, forced = batch.sample(row), state.forced()
            batch.update(torch.where(forced < 0, step.token, forced))
            drawn.append((step.token.tolist(), step.logp.tolist()))
    assert drawn[:6] == drawn[6:]


def test_a_probe_by_hand(backend):
    """Every second token of thinking, where it is free; the thinking ends once the entropy has settled."""
    budget = PLAIN.replace(tokens=40, message=(6,), warn_at=3, warning=(7, 7, 7))
    budget = budget.replace(probe_every=2, probe_below=0.19, probe_least=4)
    batch = ReflectionBatch(3, tokens=budget.markers, device=backend.device)
    state = BudgetState(batch, budget)
    batch.begin(range(3), [[3], [7], [3]])  # the second does not think
    entropies = {2: 1.0, 6: 2.0, 8: 2.1, 10: 2.1, 12: 2.1, 14: 2.1, 16: 2.1, 18: 2.1}
    mean, variance, closed = 1.0, 0.0, None
    for t in range(22):
        due = state.due()
        expected = t in entropies and closed is None
        assert due.tolist() == [expected, False, t in entropies or t == 20], t  # the third never settles
        if t in entropies:
            other = float(t % 4)
            state.observe(torch.tensor([entropies[t], 0.0, other], device=backend.device), due)
            if t > 2 and closed is None:
                mean = 0.8 * mean + 0.2 * entropies[t]
                variance = 0.8 * variance + 0.2 * (entropies[t] - mean) ** 2
                if t >= 10 and variance < 0.19:
                    closed = t
        forced = state.forced()
        if closed is not None and t in (closed, closed + 1):
            assert forced[0] == (6, 4)[t - closed]
        elif t in (3, 4, 5):
            assert forced.tolist() == [7, -1, 7]
        else:
            assert forced.tolist() == [-1] * 3
        batch.update(torch.where(forced < 0, 8, forced))
    assert closed == 16


def test_a_probe_needs_several():
    """Two equal entropies in a row have no variance, and say little: not before the least number of probes."""
    budget = PLAIN.replace(tokens=40, probe_every=1, probe_below=0.5, probe_least=3)
    batch = ReflectionBatch(1, tokens=budget.markers)
    state = BudgetState(batch, budget)
    batch.begin([0], [[3]])
    for _ in range(3):
        assert state.forced().item() == -1
        batch.update(torch.tensor([8]))
        state.observe(torch.ones(1), state.due())
    assert state.forced().item() == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": -1}, "tokens: expected a whole number of at least 0, got -1"),
        ({"tokens": 2.5}, "tokens: expected a whole number of at least 0, got 2.5"),
        ({"tokens": True}, "tokens: expected a whole number"),
        ({"think_end": ()}, "of the end at least one"),
        ({"think_start": range(9)}, "expected at most 8 ids"),
        ({"message": (6, -1)}, "message: expected token ids, 0 or more"),
        ({"message": (6, 1 << 40)}, "message: expected token ids, 0 or more"),
        ({"message": (6.5,)}, "message: expected token ids, 0 or more"),
        ({"think_end": "45"}, "think_end: expected token ids, 0 or more, got '45'"),
        ({"warn_at": 1.5, "warning": (6,)}, "warn_at: expected a whole number"),
        ({"probe_every": 1.5, "probe_below": 0.1, "probe_least": 2}, "probe_every: expected a whole number"),
        ({"probe_every": 1, "probe_below": 0.1, "probe_least": 2.5}, "probe_least: expected a whole number"),
        ({"message": (6, 4)}, "message: the end of thinking is in it"),
        ({"message": (6, 3)}, "message: it would begin the thinking anew"),
        ({"warn_at": 1, "warning": (6, 4)}, "warning: the end of thinking is in it"),
        ({"warn_at": 1, "warning": (3, 6)}, "warning: it would begin the thinking anew"),
        ({"warn_at": 1}, "warn_at, warning: a warning has both"),
        ({"warning": (6,)}, "warn_at, warning: a warning has both"),
        ({"warn_at": 4, "warning": (6, 7)}, "warn_at: expected 0 to 3, so that the warning's 2 tokens are within"),
        ({"warn_at": -1, "warning": (6,)}, "warn_at: expected 0 to 4"),
        ({"think_start": (3, 6), "message": (6, 7)}, "message: it would begin the thinking anew"),
        ({"think_end": (4, 5, 4), "message": (4, 5)}, "message: the end of thinking is in it"),
        ({"probe_every": 3}, "probe_every, probe_below: a probe has both"),
        ({"probe_below": 0.1}, "probe_every, probe_below: a probe has both"),
        ({"probe_least": 3}, "probe_least: there is no probe"),
        ({"probe_every": 1, "probe_below": 0.0, "probe_least": 2}, "expected a variance above 0 and at least 2"),
        ({"probe_every": 1, "probe_below": 0.1, "probe_least": 1}, "expected a variance above 0 and at least 2"),
        ({"probe_every": 0, "probe_below": 0.1, "probe_least": 2}, "probe_every: expected 2 times at least one token"),
        ({"probe_every": 3, "probe_below": 0.1, "probe_least": 2}, "probe_every: expected 2 times at least one token"),
    ],
)
def test_wrong_budgets(options, message):
    with pytest.raises(ValueError, match=message):
        ThinkingBudget(**{"tokens": 5, **ONE, **options})


def test_wrong_places():
    batch = ReflectionBatch(1, tokens=ReflectionTokens((), (3,), (5,)))
    with pytest.raises(ValueError, match=r"the budget's markers .* are not the batch's"):
        BudgetState(batch, PLAIN)
    state = BudgetState(ReflectionBatch(1, tokens=PLAIN.markers), room=4)
    with pytest.raises(ValueError, match="closing: 5 ids, there is room for 4"):
        state.set([0], PLAIN.replace(message=(6, 6, 6, 6)))


def test_json():
    budget = PLAIN.replace(message=(6,), warn_at=1, warning=(7, 8))
    assert ThinkingBudget.from_json(budget.to_json()) == budget
    for wrong in ("3", "{", '{"tokens": 3}', '{"tokens": 3, "think_end": [4], "more": 1}'):
        with pytest.raises(ValueError, match="not the JSON of a ThinkingBudget"):
            ThinkingBudget.from_json(wrong)


def test_texts_of_a_tokenizer():
    from tests.support.tiny import TOKENIZER

    budget = ThinkingBudget.from_tokenizer(TOKENIZER, 9, message="wait", warn_at=2, warning="back wait")
    start, end, wait, back = TOKENIZER.convert_tokens_to_ids(["<think>", "</think>", "wait", "back"])
    assert budget == ThinkingBudget(
        9, think_start=(start,), think_end=(end,), message=(wait,), warn_at=2, warning=(back, wait)
    )
    assert budget.closing == (wait, end)
    other = ThinkingBudget.from_tokenizer(TOKENIZER, 9, think=("wait", "back"))
    assert (other.think_start, other.think_end) == ((wait,), (back,))
