"""`apply_schedule_` and `reflection_state_update_`, against closed forms and against a search through all tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import warpup
from tests.reflection.schedules import (
    CLOSE,
    CODE,
    END,
    OPEN,
    SIMPLE,
    TOKENS,
    VOCAB,
    WAVES,
    schedules,
    token_lists,
    wave_of,
)
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens
from warpup.reflection.apply_schedule import PHASES, apply_schedule_, reflection_state_update_


def ended(tokens, marker):
    """Positions behind a marker, found from left to right without overlap but with itself."""
    n = len(marker)
    return [i for i in range(n, len(tokens) + 1) if n and tuple(tokens[i - n : i]) == marker]


def search(prompt, generated, schedule):
    """Phase, thought start, last reflection and their number, from all tokens at once."""
    tokens, p = [*prompt, *generated], len(prompt)
    events = {m: set(ended(tokens, marker)) for m, marker in zip("tecx", schedule.tokens.markers, strict=True)}
    phase, code, start, last, count = 0, False, 0, -1, 0
    for i, token in enumerate(tokens, 1):
        acting = PHASES[3 if code else phase or 1]
        wanted = (schedule.phase,) if isinstance(schedule.phase, str) else schedule.phase
        if i > p and token in schedule.tokens.ids and {acting, "any"} & set(wanted):
            last, count = i - p, count + 1
        if i in events["t"]:
            phase, start = 1, max(i - p, 0)
        phase = 2 if i in events["e"] else phase
        code = (code or i in events["c"]) and i not in events["x"]
    return (3 if code else phase or 1), start, last, count


def brute_delta(prompt, generated, schedule):
    phase, start, last, _ = search(prompt, generated, schedule)
    wanted = (schedule.phase,) if isinstance(schedule.phase, str) else schedule.phase
    if not {PHASES[phase], "any"} & set(wanted):
        return 0.0
    anchor = {"generation": 0, "think": start, "reflection": last if last >= 0 else start}[schedule.anchor]
    return schedule.replace(start_offset=0 if anchor else schedule.start_offset).delta(len(generated) - anchor)


# ---- the wave --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wave", "options"), WAVES)
@pytest.mark.parametrize("period", [100, 1200, 7.25])
def test_wave_is_the_closed_form(backend, wave, options, period):
    """Over several periods, one request a position, to 1e-6 of the amplitude (float32 holds no more)."""
    length = 3000
    schedule = wave_of(wave, amplitude=5.0, period=period, shift=0.3, start_offset=7, **options)
    batch = ReflectionBatch(length, schedule, device=backend.device)
    batch.tables.state[:, 0, 0] = torch.arange(length)  # so many generated tokens, and nothing in them
    logits = torch.zeros(length, VOCAB, device=backend.device)
    delta = batch.apply_(logits)
    np.testing.assert_allclose(delta.double().cpu(), schedule.delta(np.arange(length)), atol=1e-6 * 5)
    assert torch.equal(logits[:, 1], delta)
    assert torch.equal(logits[:, 2], delta)
    assert (logits[:, [0, *range(3, VOCAB)]] == 0).all()


def test_no_delta_changes_no_bit(backend):
    """0 at the wave's zeros, outside of the window and of the phase, and for a slot of none."""
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0)).to(backend.device)
    logits[:, 1] = torch.tensor([-0.0, math.nan, math.inf, -math.inf])
    for schedule, slots in [
        (wave_of("triangle"), [0, 1, 2, 3]),
        (wave_of("constant", amplitude=0.0), [0, 1, 2, 3]),
        (wave_of("constant", window=(1, None)), [0, 1, 2, 3]),
        (wave_of("constant", phase="answer"), [0, 1, 2, 3]),
        (wave_of("constant"), [-1, -1, -1, -1]),
    ]:
        batch = ReflectionBatch(4, schedule, device=backend.device)
        got = logits.clone()
        assert batch.apply_(got, torch.tensor(slots, device=backend.device)).tolist() == [0.0] * 4
        assert torch.equal(got.view(torch.int32), logits.view(torch.int32))


def test_unit_nat(backend):
    batch = ReflectionBatch(2, wave_of("constant", amplitude=2.0, unit="nat"), device=backend.device)
    logits = torch.zeros(2, VOCAB, device=backend.device)
    temperature = torch.tensor([0.5, 2.0], device=backend.device)
    assert batch.apply_(logits, temperature=temperature).tolist() == [1.0, 4.0]
    assert batch.apply_(logits, temperature=0.25).tolist() == [0.5, 0.5]


# ---- the state -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=4), schedules)
def test_follows_like_a_search(backend, requests, schedule):
    """Token by token: delta, phase, thought start, last reflection; then the same from all tokens at once."""
    n = len(requests)
    batch = ReflectionBatch(n + 1, schedule, ring=3, device=backend.device)
    prompts, generated = [list(p) for p, _ in requests], [list(g) for _, g in requests]
    batch.begin(range(n), prompts)
    for t in range(max(map(len, generated)) + 1):
        logits = torch.zeros(n, VOCAB, device=backend.device)
        delta = batch.apply_(logits)
        at = batch.progress()
        so_far = [g[:t] for g in generated]
        for r, (p, g) in enumerate(zip(prompts, so_far, strict=True)):
            phase, start, last, count = search(p, g, schedule)
            state = [int(x[r]) for x in at]
            assert state == [phase, len(g), start, last, count]
            assert delta[r].item() == pytest.approx(brute_delta(p, g, schedule), abs=1e-5)
        going = [r for r in range(n) if t < len(generated[r])]
        if not going:
            break
        tokens = torch.tensor([generated[r][t] for r in going], device=backend.device)
        batch.update(tokens, torch.tensor(going, device=backend.device))
    rebuilt = ReflectionBatch(n + 1, schedule, ring=3, device=backend.device)
    rebuilt.begin(range(n), prompts, generated)
    assert torch.equal(rebuilt.tables.state[:n, 0], batch.tables.state[:n, 0])
    assert all(torch.equal(a[:n], b[:n]) for a, b in zip(rebuilt.progress(), batch.progress(), strict=True))


@given(st.data())
def test_rejected_drafts(backend, data):
    """Drafts are taken, their rows see the state before each of them, some are rejected: as if never taken."""
    schedule = data.draw(schedules)
    prompt, kept = data.draw(token_lists), data.draw(token_lists)
    batch, plain = (ReflectionBatch(1, schedule, ring=8, device=backend.device) for _ in range(2))
    for b in (batch, plain):
        b.begin([0], [prompt])
    slot, done = torch.tensor([0], device=backend.device), []
    while len(done) < len(kept):
        accepted = data.draw(st.integers(0, 3))
        drafts = kept[len(done) : len(done) + accepted] + data.draw(st.lists(st.integers(0, 8), max_size=3))
        if not drafts:
            drafts = [0]
        batch.update(torch.tensor([drafts], device=backend.device), slot)
        rows = len(drafts) + 1
        back = torch.arange(len(drafts), -1, -1, device=backend.device)
        delta = batch.apply_(torch.zeros(rows, VOCAB, device=backend.device), slot.expand(rows).contiguous(), back=back)
        want = [brute_delta(prompt, done + drafts[:i], schedule) for i in range(rows)]
        assert delta.tolist() == pytest.approx(want, abs=1e-5)
        n = min(accepted, len(kept) - len(done))
        batch.rollback(slot, torch.tensor([len(drafts) - n], device=backend.device))
        done += drafts[:n]
        if n == 0:  # the target model's own token
            batch.update(torch.tensor([kept[len(done)]], device=backend.device), slot)
            done.append(kept[len(done)])
    plain.begin([0], [prompt], [kept])
    assert all(torch.equal(a, b) for a, b in zip(batch.progress(), plain.progress(), strict=True))


def test_a_slot_is_used_again(backend):
    """Nothing of the former request is left, whatever it was; its neighbour does not notice."""
    schedule = wave_of("triangle", anchor="reflection")
    batch = ReflectionBatch(2, schedule, device=backend.device)
    batch.begin([0, 1], [[3, 1], [3]], [[1, 7, 4, 3], [2, 7]])
    before = [x[1].item() for x in batch.progress()]
    batch.begin([0], [[7]], schedule=wave_of("constant", amplitude=-1.0))
    fresh = ReflectionBatch(2, wave_of("constant", amplitude=-1.0), device=backend.device)
    fresh.begin([0], [[7]])
    logits = torch.zeros(2, VOCAB, device=backend.device)
    assert batch.apply_(logits)[0] == fresh.apply_(logits.clone())[0] == -1
    assert [int(x[0]) for x in batch.progress()] == [int(x[0]) for x in fresh.progress()]
    assert [x[1].item() for x in batch.progress()] == before


def test_schedules_differ_by_request(backend):
    one, other = wave_of("constant", amplitude=1.0), wave_of("constant", amplitude=2.0).replace(
        tokens=ReflectionTokens((7,), *TOKENS.markers)
    )  # fmt: skip
    batch = ReflectionBatch(3, one, device=backend.device)
    batch.set_schedule([1], other)
    batch.end([2])
    logits = torch.zeros(3, VOCAB, device=backend.device)
    assert batch.apply_(logits).tolist() == [1, 2, 0]
    assert logits.nonzero().tolist() == [[0, 1], [0, 2], [1, 7]]


def test_phases(backend):
    """A prompt that ended its thinking begins with the answer; code inside of either is code, then what it was."""
    batch = ReflectionBatch(1, wave_of("constant"), device=backend.device)
    batch.begin([0], [[*OPEN, 8, *CLOSE]])
    path = []
    for token in [8, *OPEN, 8, *CODE, 8, *END, *CLOSE]:
        batch.update(torch.tensor([token], device=backend.device))
        path.append(PHASES[int(batch.progress().phase[0])])
    assert path == ["answer", *["think"] * 4, *["code"] * 2, *["think"] * 3, "answer"]


@pytest.mark.parametrize(
    ("tokens", "phase"),
    [
        ([5, 5, *CODE[1:]], "code"),  # 5 5 5 7 ends in 5 5 7: where the third 5 does not fit, the last 5 is a beginning
        ([*CLOSE, *OPEN, 4], "answer"),  # 4 3 4 3 4: the end of one marker is the beginning of the next
        ([5, 7, 5, 5], "think"),
    ],
)
def test_markers_that_overlap_themselves(backend, tokens, phase):
    batch = ReflectionBatch(1, wave_of("constant"), device=backend.device)
    batch.begin([0], [[*OPEN]], [tokens])
    assert PHASES[int(batch.progress().phase[0])] == phase


@pytest.mark.parametrize("taken_back", [0, 1, 2, 3])
def test_rollback_to_the_oldest_state(backend, taken_back):
    """All tokens at once, more than the ring holds, then back as far as it reaches."""
    schedule = wave_of("constant", anchor="reflection")
    tokens = [8, 8, 8, 1, 8, 8, 1, 8, *OPEN, 1]
    batch, plain = (ReflectionBatch(1, schedule, ring=4, device=backend.device) for _ in range(2))
    batch.begin([0], [[7]], [tokens])
    batch.rollback(torch.tensor([0], device=backend.device), torch.tensor([taken_back], device=backend.device))
    plain.begin([0], [[7]], [tokens[: len(tokens) - taken_back]])
    assert [int(x[0]) for x in batch.progress()] == [int(x[0]) for x in plain.progress()]


def test_too_long_a_rollback(backend):
    batch = ReflectionBatch(2, wave_of("constant"), ring=4, device=backend.device)
    batch.begin([0, 1], [[7], [7]], [[8] * 6] * 2)
    slots, count = torch.tensor([0], device=backend.device), torch.tensor([4], device=backend.device)
    if backend.name == "cuda":
        batch.rollback(slots, count)
        assert batch.apply_(torch.zeros(2, VOCAB, device=backend.device)).tolist() == [0, 3]
        return
    with pytest.raises(ValueError, match=r"rollback\[0\] = 4, at most 3 of 7 tokens .* rebuild the slot"):
        batch.rollback(slots, count)


# ---- what replays it -------------------------------------------------------------------------------------------------


def test_replay_is_exact(backend):
    """The log-prob under the schedule, from the plain logits, delta and the temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator).to(backend.device)
    schedule = wave_of("triangle", amplitude=4.0)
    batch = ReflectionBatch(6, schedule, device=backend.device)
    batch.begin(range(6), [[7]] * 6, [[8] * n for n in range(6)])
    scheduled = logits.clone()
    delta = batch.apply_(scheduled)
    targets = torch.tensor([1, 2, 3, 4, 1, 9], device=backend.device)
    want = torch.log_softmax(scheduled.double() / 0.7, -1).gather(1, targets[:, None])[:, 0]
    got = warpup.replay_logprob(logits, targets, temperature=0.7, delta=delta, token_set=schedule.tokens.ids)
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=0)
    assert (warpup.token_logprob(logits, targets, temperature=0.7) - got).abs().max() > 0.1


def test_wrong_calls():
    batch = ReflectionBatch(2, wave_of("constant"))
    with pytest.raises(ValueError, match=r"slots\[0\] = 2 is outside \[-1, 2\)"):
        batch.apply_(torch.zeros(1, 9), torch.tensor([2]))
    with pytest.raises(ValueError, match="slots must be int64, got int32"):
        batch.apply_(torch.zeros(1, 9), torch.tensor([0], dtype=torch.int32))
    with pytest.raises(ValueError, match="logits must have 2 dimensions"):
        batch.apply_(torch.zeros(9))
    with pytest.raises(ValueError, match=r"temperature must have shape \(2\), got \(3\)"):
        batch.apply_(torch.zeros(2, 9), temperature=torch.ones(3))
    with pytest.raises(ValueError, match="tokens must be int64, int32, got float32"):
        batch.update(torch.zeros(2))
    with pytest.raises(ValueError, match=r"row 0 has tokens \[0, 3\) of 2"):
        batch.update(torch.zeros(1, 2, dtype=torch.int64), count=torch.tensor([3]))
    zero = torch.tensor([0])
    with pytest.raises(ValueError, match=r"rollback\[0\] = 1 beside prompt\[0\] = 0: a slot that begins anew has no"):
        reflection_state_update_(batch.tables, zero[:, None], zero, prompt=zero, rollback=zero + 1)
    with pytest.raises(ValueError, match=r"markers .* are not the batch's"):
        batch.set_schedule([0], wave_of("constant", tokens=SIMPLE))
    with pytest.raises(ValueError, match="no room for 2 more sets"):
        ReflectionBatch(2, wave_of("constant"), ids=1)


def test_tables_are_used_again(backend):
    """A server meets more schedules than its tables hold at once: those that no slot has any more make room."""
    batch = ReflectionBatch(3, tokens=ReflectionTokens(()), ids=6, knots=4, device=backend.device)

    def table(k, *ids):
        return ReflectionSchedule("table", tokens=list(ids), table=[(0, k), (100, k)], phase="any")

    now = {}

    def check():
        logits = torch.zeros(len(now), 12, device=backend.device)
        batch.apply_(logits, torch.tensor(sorted(now), device=backend.device))
        for row, slot in zip(logits, sorted(now), strict=True):
            assert row.nonzero().flatten().tolist() == list(now[slot].tokens.ids)
            assert row.max() == now[slot].table[0][1]

    for k in range(1, 20):
        now[k % 2] = table(float(k), k % 7, 7 + k % 5)
        batch.begin([k % 2], [[8]], schedule=now[k % 2])
        check()
    with pytest.raises(ValueError, match="no room for 2 more knots, 0 are left"):
        batch.set_schedule([2], table(50.0, 1, 2))
    check()


def test_autograd_hears_of_what_is_written():
    """A backward that kept the logits raises; what autograd could not follow is refused, as by torch's own ops."""
    batch = ReflectionBatch(2, wave_of("constant", amplitude=2.0))
    slots = torch.tensor([0, 1])
    weight = torch.ones(2, VOCAB, requires_grad=True)
    logits = weight * 1.0
    loss = logits.square().sum()
    delta = apply_schedule_(logits, batch.tables, slots)
    assert (delta == 2).all()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    logits = weight * 1.0
    apply_schedule_(logits, batch.tables, slots)
    (2 * logits).sum().backward()  # an addition of a constant: the gradient goes through
    assert (weight.grad == 2).all()
    for leaf in (weight, weight[:]):
        with pytest.raises(ValueError, match="leaf that requires a gradient"):
            apply_schedule_(leaf, batch.tables, slots)
        with torch.no_grad():
            apply_schedule_(leaf, batch.tables, slots)
    with pytest.raises(ValueError, match="share memory"):
        apply_schedule_(torch.zeros(VOCAB).expand(2, VOCAB), batch.tables, slots)
    with torch.inference_mode():
        apply_schedule_(torch.zeros(2, VOCAB), batch.tables, slots)
    before = batch.tables.state._version
    reflection_state_update_(batch.tables, torch.tensor([[1], [1]]), slots)
    assert batch.tables.state._version > before
